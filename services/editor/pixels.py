"""Images to tensors and back, and fitting a request's image to what a method works on."""

import numpy as np
import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument

MIN_SIDE = 8


def to_tensor(image: Image.Image, device: torch.device | str = "cpu") -> torch.Tensor:
    """RGB (or L) to float32 [1, 3 (or 1), h, w] in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array.transpose(2, 0, 1).copy())[None].to(device)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """Float [1, 3 or 4, h, w] in [0, 1] to RGB or RGBA; values outside are clamped."""
    array = pixels.detach()[0].float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def working_size(
    image: Image.Image | None, width: int, height: int, own: int, multiple: int = 1, most: int = 512
) -> tuple[int, int]:
    """(width, height) that a method works on, and of its result.

    Args:
        image: what is edited, or None.
        width, height: asked for; 0: the image's, shrunk to at most `most` on the longer side, or without an
            image `own`.
        own: side that the model was made for.
        multiple: both sides become whole multiples of it, at least one.

    Raises:
        InvalidArgument: the image, or what is left of it at that size, has a side of less than 8 pixels.
    """
    given = (own, own) if image is None else image.size
    factor = min(1.0, most / max(given))
    asked = width or given[0] * factor, height or given[1] * factor
    if min(*given, *asked) < MIN_SIDE:
        shape = f"{given[0]}x{given[1]}, worked on at {round(asked[0])}x{round(asked[1])}"
        raise InvalidArgument("image", f"at least {MIN_SIDE} pixels a side", shape)
    rounded = tuple(max(1, round(side / multiple)) * multiple for side in asked)
    return rounded[0], rounded[1]


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resized (bicubic) where it is not of that (width, height)."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
