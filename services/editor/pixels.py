"""Images to tensors and back, and fitting a request's image to what a method works on."""

import numpy as np
import torch
from PIL import Image


def to_tensor(image: Image.Image, device: torch.device | str = "cpu") -> torch.Tensor:
    """RGB (or L) to float32 [1, 3 (or 1), h, w] in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array.transpose(2, 0, 1).copy())[None].to(device)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """Float [1, 3 or 4, h, w] in [0, 1] to RGB or RGBA; values outside are clamped."""
    array = pixels.detach()[0].float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def limited(image: Image.Image, longest: int, multiple: int = 1) -> Image.Image:
    """Shrunk so that the longer side is at most `longest`, both sides whole multiples (at least one)."""
    factor = min(1.0, longest / max(image.size))
    width, height = (max(1, round(side * factor / multiple)) * multiple for side in image.size)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)
