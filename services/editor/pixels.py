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
    image: Image.Image | None, size: int, own: int, multiple: int = 1, most: int = 512
) -> tuple[int, int]:
    """(width, height) that a method works on.

    Args:
        image: what is edited; None: generation, a square.
        size: longest side that was asked for; 0: the image's, at most `most`; without an image `own`.
        own: side that the model was made for.
        multiple: both sides become whole multiples of it, at least one.

    Raises:
        InvalidArgument: the image, or what is left of it at that size, has a side of less than 8 pixels.
    """
    given = (own, own) if image is None else image.size
    if size and image is None:
        given = (size, size)
    factor = min(1.0, (size or most) / max(given))
    if min(given) * factor < MIN_SIDE:
        shape = f"{given[0]}x{given[1]}" + (
            f", shrunk to {size or most} on the longer side" if factor < 1 else ""
        )
        raise InvalidArgument("image", f"at least {MIN_SIDE} pixels a side", shape)
    width, height = (max(1, round(side * factor / multiple)) * multiple for side in given)
    return width, height


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resized (bicubic) where it is not of that (width, height)."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def side_by_side(*rows: list[Image.Image]) -> Image.Image:
    """Pictures in rows, on black."""
    size = max(sum(p.width for p in row) for row in rows), sum(max(p.height for p in row) for row in rows)
    sheet, top = Image.new("RGB", size), 0
    for row in rows:
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width
        top += max(picture.height for picture in row)
    return sheet
