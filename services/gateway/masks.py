"""Inpainting masks: from an image file to a mask of latents."""

import io

import numpy as np
import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument
from sfumato.common.images import open_image


def latent_mask(
    mask: bytes, image: bytes, width: int, height: int, factor: int, max_pixels: int
) -> torch.Tensor:
    """White (above the middle) is repainted, as diffusers' mask processor has it.

    Args:
        mask: the mask's file.
        image: the image's file, whose size the mask must have.
        width, height: of the image to make, in pixels.
        factor: pixels per latent pixel.
        max_pixels: largest mask that is read.

    Returns:
        float32 [1, 1, height / factor, width / factor] of 0 and 1.
    """
    pixels = open_image(mask, "mask", max_pixels)
    try:
        size = Image.open(io.BytesIO(image)).size
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidArgument("image", "a PNG, JPEG or WebP file", f"{len(image)} bytes: {error}") from error
    if pixels.size != size:
        expected = f"of the image's size, {size[0]}x{size[1]}"
        raise InvalidArgument("mask", expected, f"{pixels.size[0]}x{pixels.size[1]}")
    grey = pixels.resize((width, height), Image.Resampling.LANCZOS).convert("L")
    binary = (torch.from_numpy(np.array(grey, dtype=np.float32)) / 255.0 >= 0.5).float()
    return torch.nn.functional.interpolate(binary[None, None], size=(height // factor, width // factor))
