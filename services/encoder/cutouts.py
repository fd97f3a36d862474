"""Cutouts: random square crops of an image, resized to what CLIP takes, differentiable.

CLIP sees a 224-pixel image; guiding through many random crops keeps its gradient from finding adversarial
noise (Crowson's CLIP-guided diffusion). A cutout's side is u^cut_power * (S - s) + s, u uniform in [0, 1),
S the image's shorter side, s the smallest side.
"""

import torch
from torch.nn import functional as F

# Where an image is about as small as CLIP's input, as with the emoji family's 64 pixels, the smallest
# cutout is so much of its side: with s = S all cutouts would be one and the same.
SMALLEST_SHARE = 0.6


def make_cutouts(
    image: torch.Tensor, size: int, num_cutouts: int, cut_power: float, seed: int
) -> torch.Tensor:
    """Random crops, or for num_cutouts 1 the centred square, as CLIP's own preprocessing takes it.

    Args:
        image: [1, 3, height, width].
        size: side that CLIP takes, in pixels.
        num_cutouts: at least 1.
        cut_power: above 0; larger favours small cutouts.
        seed: of places and sizes.

    Returns:
        [num_cutouts, 3, size, size], by antialiased bicubic interpolation.
    """
    height, width = image.shape[2:]
    largest = min(height, width)
    if num_cutouts == 1:
        top, left = (height - largest) // 2, (width - largest) // 2
        return resize(image[:, :, top : top + largest, left : left + largest], size)
    smallest = min(size, round(SMALLEST_SHARE * largest))
    generator = torch.Generator().manual_seed(seed)
    cutouts = []
    for u, v, w in torch.rand(num_cutouts, 3, generator=generator, dtype=torch.float64).tolist():
        side = int(u**cut_power * (largest - smallest + 1)) + smallest
        side = min(side, largest)
        top, left = int(v * (height - side + 1)), int(w * (width - side + 1))
        cutouts.append(resize(image[:, :, top : top + side, left : left + side], size))
    return torch.cat(cutouts)


def resize(image: torch.Tensor, size: int) -> torch.Tensor:
    """A square image at size x size."""
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, (size, size), mode="bicubic", antialias=True, align_corners=False)
