"""CLIP in torch: transformers' text encoders for conditioning, open_clip for the joint space."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sfumato.common.adapters import adapted, read_change
from sfumato.common.clip import load_clip
from sfumato.common.family import part_of
from sfumato.common.family_parts import check_part, pipeline_config
from sfumato.common.traced import Traced
from sfumato.encoder.words import Word, words_of


class EncodedTexts(NamedTuple):
    """Conditioning [texts, max_tokens, hidden_size], how many tokens of each text were cut, and with SDXL the
    pooled embedding [texts, pooled_size]."""

    prompt_embeds: torch.Tensor
    num_cut: list[int]
    pooled_prompt_embeds: torch.Tensor | None


@dataclass(frozen=True)
class Tower:
    """One text encoder and its tokenizer.

    Attributes:
        part: folder of the family.
    """

    part: str
    tokenizer: Any
    model: Any

    def token_ids(self, text: str, max_tokens: int) -> torch.Tensor:
        """[1, max_tokens]."""
        tokens = self.tokenizer(
            text, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt"
        )
        ids: torch.Tensor = tokens.input_ids
        return ids


class TextEncoder:
    """The family's text encoder(s) and tokenizer(s), as Stable Diffusion and SDXL use them.

    SDXL has both, its refiner the second alone.
    """

    def __init__(self, family: Path, device: torch.device) -> None:
        is_xl = (family / "text_encoder_2").is_dir()
        self.towers = []
        if not is_xl or (family / "text_encoder").is_dir():
            self.towers.append(_tower(family, "", CLIPTextModel, device))
        if is_xl:
            self.towers.append(_tower(family, "_2", CLIPTextModelWithProjection, device))
        self.weights = part_of(family, self.towers[0].part)
        # SDXL's null text is no text: zeros (diffusers' default for its pipeline).
        config = pipeline_config(family)
        self.null_is_zero = is_xl and config.get("force_zeros_for_empty_prompt", True)
        self.tokenizer, self.model = self.towers[0].tokenizer, self.towers[0].model
        self.device = device
        # Another engine's forward may take its place, where there is no pooled embedding.
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.hidden_states
        positions = int(self.model.config.max_position_embeddings)
        self.max_tokens = min(int(self.tokenizer.model_max_length), positions)
        self.hidden_size = sum(int(tower.model.config.hidden_size) for tower in self.towers)
        self.pooled_size = int(self.towers[-1].model.config.projection_dim) if is_xl else 0

    def with_adapter(self, file: Path) -> "TextEncoder":
        """The encoder with a LoRA adapter in it, on torch; itself where the adapter leaves the text alone.

        Raises:
            WeightsError: it is not an adapter of this encoder.
        """
        changes = [read_change(file, tower.part) for tower in self.towers]
        if not any(changes):
            return self
        changed = copy.copy(self)
        changed.towers = [
            replace(tower, model=adapted(tower.model, change, str(file)))
            for tower, change in zip(self.towers, changes, strict=True)
        ]
        changed.model = changed.towers[0].model
        changed.forward = changed.hidden_states
        return changed

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> EncodedTexts:
        """The conditioning of each text."""
        # One forward per text: its bits must not depend on which texts come with it.
        encoded = [self._encode(text) for text in texts]
        cut = [
            max(0, len(self.tokenizer(text, truncation=False)["input_ids"]) - self.max_tokens)
            for text in texts
        ]
        embeds = torch.cat([states for states, _ in encoded])
        pooled = [one for _, one in encoded if one is not None]
        return EncodedTexts(embeds, cut, torch.cat(pooled) if pooled else None)

    def _encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.pooled_size:
            return self.forward(self.towers[0].token_ids(text, self.max_tokens)), None
        if not text and self.null_is_zero:
            return torch.zeros(1, self.max_tokens, self.hidden_size), torch.zeros(1, self.pooled_size)
        outputs = [
            tower.model(tower.token_ids(text, self.max_tokens).to(self.device), output_hidden_states=True)
            for tower in self.towers
        ]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return states.cpu(), outputs[-1].text_embeds.cpu()

    def hidden_states(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [1, max_tokens] to the first encoder's last hidden states, on the CPU."""
        states: torch.Tensor = self.model(token_ids.to(self.device))[0]
        return states.cpu()

    def words(self, texts: list[str]) -> list[list[Word]]:
        """The words of each text and their tokens; cut ones are left out."""
        return [words_of(self.tokenizer, text, self.max_tokens) for text in texts]


def _tower(family: Path, suffix: str, kind: Any, device: torch.device) -> Tower:
    part = f"text_encoder{suffix}"
    weights = check_part(family, part)
    tokenizer: Any = CLIPTokenizer.from_pretrained(part_of(family, f"tokenizer{suffix}"))
    model: Any = kind.from_pretrained(
        family / part, use_safetensors=True, variant=weights.variant, dtype=torch.float32
    )
    return Tower(part, tokenizer, model.to(device).eval().requires_grad_(False))


class JointEncoder:
    """CLIP's joint space, by open_clip; float64 to check gradients by."""

    def __init__(self, source: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """source: as common.clip.clip_source has it."""
        model, self.preprocess, self.tokenizer = load_clip(source)
        self.model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        size = self.model.visual.image_size
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.mean, self.std = (
            torch.tensor(values, device=device, dtype=dtype).view(3, 1, 1)
            for values in (self.model.visual.image_mean, self.model.visual.image_std)
        )
        self.traced_features = Traced(self.features_of)
        with torch.inference_mode():
            self.embedding_size = int(self.embed_texts(["warm"]).shape[-1])

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors [texts, embedding_size]."""
        tokens = self.tokenizer(texts).to(self.device)
        features: torch.Tensor = self.model.encode_text(tokens, normalize=True)
        return features.cpu()

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Unit vectors [images, embedding_size]."""
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        features: torch.Tensor = self.model.encode_image(pixels, normalize=True)
        return features.cpu()

    def features_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """RGB [images, 3, image_size, image_size] in [-1, 1] to unit vectors; differentiable."""
        features: torch.Tensor = self.model.encode_image(
            ((pixels + 1) / 2 - self.mean) / self.std, normalize=True
        )
        return features
