"""A preview from latents, here: no service is asked."""

import torch
from PIL import Image

from sfumato.common.images import encode_image
from sfumato.common.latent_preview import project

KINDS = ("projected", "decoded")


def preview_file(latents: torch.Tensor, projection: torch.Tensor, image_format: str) -> bytes:
    """About what the decoder would make of them, as a file; arguments as latent_preview.project's."""
    values = (project(latents, projection)[0] * 0.5 + 0.5).clamp(0, 1) * 255
    pixels = values.round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return encode_image(Image.fromarray(pixels.numpy()), image_format)
