"""Text2LIVE's views of images (Bar-Tal et al. 2022, appendix A.2; augmentations of their code).

Images are float [1, 3, h, w] in [0, 1]; all randomness comes from the generator.
"""

import torch
from torch.nn import functional as F

from sfumato.common import augmentations as augment

# Of 224-pixel CLIP: views are cut from an image of at most 320 pixels.
WORKING_SIDE = 320 / 224


def clip_views(image: torch.Tensor, num_views: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """[num_views, 3, side, side]: the whole image, then crops of 0.6 to 1 of each side; all augmented."""
    longest = max(image.shape[-2:])
    factor = min(1.0, side * WORKING_SIDE / longest)
    if factor < 1:
        size = tuple(max(1, round(length * factor)) for length in image.shape[-2:])
        image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    n = num_views
    matrices = augment.crop(generator, n, 0.6)
    matrices[0] = torch.eye(3, device=matrices.device)
    matrices = matrices @ augment.flip(generator, n)
    matrices = matrices @ augment.affine(generator, n, degrees=15, shift=0.1, p=0.8)
    matrices = matrices @ augment.perspective(generator, n, distortion=0.4, p=0.5)
    views = augment.warp(image.expand(n, -1, -1, -1), matrices, fill=1.0, size=(side, side))
    views = augment.colour_jitter(views, generator, 0.1, 0.1, 0.1, 0.1, p=0.7)
    return augment.random_greyscale(views, generator, 0.15)


def training_view(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What the generator sees: a crop of at least 85 % of each side, flipped, jittered, rescaled."""
    scale = float(augment.uniform(generator, 0.8, 1.2, 1))
    height, width = (max(8, round(length * scale)) for length in image.shape[-2:])
    matrices = augment.crop(generator, 1, 0.85) @ augment.flip(generator, 1)
    view = augment.warp(image, matrices, size=(height, width))
    return augment.colour_jitter(view, generator, 0.1, 0.1, 0.1, 0.1)
