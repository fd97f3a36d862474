"""The autoencoder in torch, as diffusers' pipelines call it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from sfumato.common.family import part_of
from sfumato.common.family_parts import check_part
from sfumato.common.forwards import Tensors
from sfumato.common.gradients import Linearised, linearise
from sfumato.common.latent_preview import fit_projection
from sfumato.common.traced import Traced


class TorchAutoencoder:
    """The family's vae/, in float32 (float64 to check gradients by). RGB; tensors lie in [-1, 1]."""

    def __init__(self, family: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.weights = part_of(family, "vae")
        variant = check_part(family, "vae").variant
        model: Any = AutoencoderKL.from_pretrained(
            self.weights, use_safetensors=True, variant=variant, torch_dtype=dtype
        )
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        config = self.model.config
        self.latent_channels = int(config.latent_channels)
        self.vae_scale_factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scaling_factor = float(config.scaling_factor)
        self.shift_factor = float(config.shift_factor or 0.0)
        self._traced = Traced(self.pixels)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Tensors:
        """Scaled latents [rows, latent_channels, height, width] to images, as `to_images` has them."""
        return (to_images(self.pixels(latents.to(self.device, self.dtype))),)

    def linearise(self, latents: torch.Tensor) -> Linearised:
        """Scaled latents to pixels [1, 3, height, width], not clamped, kept for `vjp`."""
        return linearise(self._traced, latents.to(self.device, self.dtype))

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents to pixels [rows, 3, height, width], not clamped, on the model's device."""
        unscaled = latents / self.scaling_factor + self.shift_factor
        sample: torch.Tensor = self.model.decode(unscaled, return_dict=False)[0]
        return sample

    @torch.inference_mode()
    def preview_projection(self) -> torch.Tensor:
        """What latent_preview.project takes for this decoder; a few small images are decoded for it."""
        return fit_projection(
            lambda latents: self.pixels(latents.to(self.device, self.dtype)),
            self.latent_channels,
            self.vae_scale_factor,
        )

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> Tensors:
        """Pixels [rows, 3, height, width] in [-1, 1] to mean and standard deviation of unscaled latents."""
        posterior = self.model.encode(pixels.to(self.device), return_dict=False)[0]
        return posterior.mean.cpu(), posterior.std.cpu()


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """[rows, 3, height, width] in [-1, 1] to uint8 [rows, height, width, 3], RGB, rounded as in diffusers."""
    values = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()
    return (values * 255).round().to(torch.uint8)


def to_pixels(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """An image, resized, to [1, 3, height, width] in [-1, 1]."""
    resized = image.resize((width, height), resample=Image.Resampling.LANCZOS)
    pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)[None] / 255.0
    return torch.from_numpy(2.0 * pixels - 1.0)
