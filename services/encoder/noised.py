"""The noise-aware CLIP as guidance asks for it: features of x_t, and the space of its texts and images."""

from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor

from sfumato.common.family import read_json
from sfumato.common.forwards import Forward, Tensors, torch_rows
from sfumato.common.glide_clip import GlideClip
from sfumato.common.noised_clip import check_latents, load_noised_clip


class Space(Protocol):
    """What texts and images become unit vectors in."""

    embedding_size: int
    text_forward: Forward  # of what tokenize gives: unit vectors [texts, embedding_size]
    image_forward: Forward  # of what pixels gives: unit vectors [images, embedding_size]

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """Token ids [texts, context length]; one thread at a time."""

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        """Images made as large as the CLIP takes them, [images, 3, side, side]."""


class GlideSpace:
    """The space of GLIDE's CLIP: its own text tower, and for images its image tower at timestep 0."""

    def __init__(self, model: GlideClip, device: torch.device) -> None:
        self._model, self._device = model, device
        # CLIP's vocabulary; behind the end token it pads with 0, and cuts before it, as GLIDE's.
        self._tokenizer = SimpleTokenizer(context_length=model.context_length)
        self.text_forward = Forward("embed_text", self._encode_tokens, torch_rows(device))
        self.image_forward = Forward("embed_image", self._encode_pixels, torch_rows(device))
        self.embedding_size = int(self.text_forward.run(self.tokenize(["warm"]))[0].shape[-1])

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """As Space has it."""
        return self._tokenizer(texts)

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        """As Space has it; of an image its middle square, in [-1, 1]."""
        side = (self._model.side, self._model.side)
        fitted = [ImageOps.fit(image.convert("RGB"), side, Image.Resampling.BICUBIC) for image in images]
        return torch.stack([pil_to_tensor(image) for image in fitted]).float() / 127.5 - 1

    @torch.inference_mode()
    def _encode_tokens(self, tokens: torch.Tensor) -> Tensors:
        return (self._model.embed_tokens(tokens.to(self._device)).cpu(),)

    @torch.inference_mode()
    def _encode_pixels(self, pixels: torch.Tensor) -> Tensors:
        timesteps = torch.zeros(len(pixels), device=self._device)
        return (self._model(pixels.to(self._device), timesteps).cpu(),)


class NoisedClip:
    """The noise-aware CLIP of a family; float64 to check gradients by."""

    def __init__(
        self, family: Path, device: torch.device, joint: Space | None, dtype: torch.dtype = torch.float32
    ) -> None:
        """joint: the space of clip/, which all but GLIDE's compare in.

        Raises:
            WeightsError: it does not take the latents of the family's UNet.
        """
        if (family / "unet").is_dir():
            check_latents(family)
        model = load_noised_clip(family / "clip_noised")
        self.model = model.to(device=device, dtype=dtype).requires_grad_(False)
        self.device, self.dtype = device, dtype
        self.space: Space | None = joint
        self._timesteps: torch.Tensor | None = None
        if isinstance(self.model, GlideClip):
            self.space = GlideSpace(self.model, device)
            self._timesteps = glide_timesteps(family)

    @property
    def latents_shape(self) -> tuple[int | None, ...]:
        """[1, C, h, w] that it takes; None: any."""
        side = self.model.side or None
        return 1, self.model.in_channels, side, side

    def features(self, latents: torch.Tensor, timestep: float) -> torch.Tensor:
        """x_t [1, C, h, w] at the family's timestep to unit vectors [1, embedding_size]; differentiable."""
        if self._timesteps is not None:
            timestep = float(self._timesteps[min(max(round(timestep), 0), len(self._timesteps) - 1)])
        features: torch.Tensor = self.model(latents, torch.tensor([timestep], device=self.device))
        return features


def glide_timesteps(family: Path) -> torch.Tensor:
    """For each timestep of the family's schedule the one of GLIDE's (cosine) that is as noisy: int [T]."""
    own: Any = DDPMScheduler.from_config(read_json(family, "scheduler", "scheduler_config.json"))
    glide: Any = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    # The angle whose cosine is the signal's share: in it the cosine schedule's steps are about as long.
    angles, glide_angles = (s.alphas_cumprod.double().sqrt().acos() for s in (own, glide))
    return (angles[:, None] - glide_angles).abs().argmin(1)
