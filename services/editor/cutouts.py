"""Cutouts: the views of an image under which CLIP judges it (VQGAN-CLIP, Crowson et al. 2022, section 2.2).

In: float [1, 3, h, w] in [0, 1]. Out: float [num_cutouts, 3, side, side]. All randomness comes from the
generator.
"""

import torch
from torch.nn import functional as F

from sfumato.common import augmentations as augment

NOISE = 0.1


def make_cutouts(
    image: torch.Tensor, kind: str, num_cutouts: int, side: int, power: float, generator: torch.Generator
) -> torch.Tensor:
    """Cutouts of a kind: "pooled" (the whole image, varied by augmentation) or "cropped" (random squares)."""
    if kind == "pooled":
        views = pooled_cutouts(image, num_cutouts, side)
    else:
        views = cropped_cutouts(image, num_cutouts, side, power, generator)
    return add_noise(augmented(views, generator), generator)


def pooled_cutouts(image: torch.Tensor, num_cutouts: int, side: int) -> torch.Tensor:
    """The whole image pooled to the side, (average + max) / 2, and repeated."""
    pooled = (F.adaptive_avg_pool2d(image, side) + F.adaptive_max_pool2d(image, side)) / 2
    return pooled.expand(num_cutouts, -1, -1, -1)


def cropped_cutouts(
    image: torch.Tensor, num_cutouts: int, side: int, power: float, generator: torch.Generator
) -> torch.Tensor:
    """Random squares of side u^power * (shorter - cut) + cut, averaged down to the cut."""
    height, width = image.shape[-2:]
    longest, shortest = min(height, width), min(height, width, side)
    drawn = augment.uniform(generator, 0, 1, num_cutouts, 3).tolist()
    views = []
    for size_draw, top_draw, left_draw in drawn:
        size = int(size_draw**power * (longest - shortest) + shortest)
        top, left = int(top_draw * (height - size + 1)), int(left_draw * (width - size + 1))
        views.append(F.adaptive_avg_pool2d(image[..., top : top + size, left : left + size], side))
    return torch.cat(views)


def augmented(views: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """VQGAN-CLIP's default augmentations: affine, perspective, colour jitter, erasing, each with p 0.7."""
    n = len(views)
    matrices = augment.affine(generator, n, degrees=15, shift=0.1, shear=5, p=0.7)
    matrices = matrices @ augment.perspective(generator, n, distortion=0.7, p=0.7)
    views = augment.warp(views, matrices)
    views = augment.colour_jitter(views, generator, 0.1, 0.1, 0.1, 0.1, p=0.7)
    return augment.random_erasing(views, generator, 0.1, 0.4, p=0.7)


def add_noise(views: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise times U(0, 0.1), another factor for each view."""
    factors = augment.uniform(generator, 0, NOISE, len(views), 1, 1, 1)
    noise = torch.randn(views.shape, generator=generator, device=views.device)
    return views + factors * noise
