"""What the UNet is told beside latents and timestep: one row for each prediction of a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding

NAMES = ("prompt_embeds", "pooled_prompt_embeds", "time_ids", "timestep_cond")


@dataclass(frozen=True)
class Conditioning:
    """Rows of conditioning.

    Attributes:
        prompt_embeds: float32 [rows, tokens, cross_attention_dim].
        pooled_prompt_embeds: float32 [rows, width]; SDXL's UNets only (Podell et al. 2023, section 2.2).
        time_ids: float32 [rows, ids]: sizes and crop; SDXL's UNets only.
        timestep_cond: float32 [rows, time_cond_proj_dim]: the guidance scale, of UNets that were distilled
            with it (Luo et al. 2023, "Latent consistency models", section 4.3).
    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None
    timestep_cond: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def __getitem__(self, rows: slice | Sequence[int]) -> "Conditioning":
        """Some of the rows, in the order asked for."""
        return Conditioning(**{name: tensor[rows] for name, tensor in self.tensors.items()})

    def split(self) -> list["Conditioning"]:
        """Each row alone."""
        return [self[row : row + 1] for row in range(len(self))]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Conditioning":
        """On the model's device, in its precision."""
        return Conditioning(**{name: tensor.to(device, dtype) for name, tensor in self.tensors.items()})

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What there is, by name."""
        given = (self.prompt_embeds, self.pooled_prompt_embeds, self.time_ids, self.timestep_cond)
        return {name: tensor for name, tensor in zip(NAMES, given, strict=True) if tensor is not None}

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of diffusers' UNet."""
        given: dict[str, Any] = {"encoder_hidden_states": self.prompt_embeds}
        if self.pooled_prompt_embeds is not None:
            given["added_cond_kwargs"] = {"text_embeds": self.pooled_prompt_embeds, "time_ids": self.time_ids}
        if self.timestep_cond is not None:
            given["timestep_cond"] = self.timestep_cond
        return given


def needed(config: Any) -> dict[str, tuple[int, ...]]:
    """What a UNet of this configuration takes beside prompt_embeds: name to the shape of a row.

    Raises:
        ValueError: it takes something that is not served.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if config.addition_embed_type == "text_time":
        # Original height and width, crop's top and left; then the target's height and width, or, of SDXL's
        # refiner, the aesthetic score. The refiner's one text encoder is as wide as its pooled embedding.
        width, each = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
        num_ids = 5 if width - 5 * each == config.cross_attention_dim else 6
        shapes["pooled_prompt_embeds"], shapes["time_ids"] = (width - num_ids * each,), (num_ids,)
    elif config.addition_embed_type is not None or config.class_embed_type is not None:
        kind = config.addition_embed_type or config.class_embed_type
        raise ValueError(f"a UNet with {kind} embeddings is not served")
    if config.encoder_hid_dim_type is not None:
        raise ValueError(f"a UNet with encoder_hid_dim_type {config.encoder_hid_dim_type} is not served")
    if config.time_cond_proj_dim is not None:
        shapes["timestep_cond"] = (config.time_cond_proj_dim,)
    return shapes


def guidance_embedding(guidance_scale: float, width: int, rows: int) -> torch.Tensor:
    """The sinusoids of 1000 (guidance_scale - 1): float32 [rows, width], as in diffusers' pipelines."""
    scales = torch.full((rows,), 1000 * (guidance_scale - 1))
    embedding: torch.Tensor = get_timestep_embedding(scales, width, downscale_freq_shift=1)
    return embedding
