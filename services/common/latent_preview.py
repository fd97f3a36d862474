"""Previews of latents without the autoencoder: a linear map, fitted to what its decoder makes.

A latent pixel and its eight neighbours give its block of the image: one matrix product. The blocks of one
latent pixel alone show the grid, and its mean colour alone shows little: docs/performance.md has the figures.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

NEIGHBOURS = 3  # a side, in latent pixels
SIDE = 16  # of the latents that are decoded for the fit
EQUATIONS = 20  # for each unknown of a pixel's colour
SCALES = (1, 2, 4)  # of the noise in them, in latent pixels
RIDGE = 1e-5  # of the equations' number; keeps channels that say nothing from large coefficients


def fit_projection(
    pixels: Callable[[torch.Tensor], torch.Tensor], latent_channels: int, factor: int
) -> torch.Tensor:
    """The least-squares projection, always the same for the same decoder.

    Args:
        pixels: the decoder: scaled latents [n, latent_channels, h, w] to [n, 3, factor * h, factor * w] in
            about -1 to 1.
        latent_channels, factor: of the autoencoder.

    Returns:
        float32 [9 * latent_channels + 1, 3 * factor ** 2].
    """
    unknowns, _ = projection_shape(latent_channels, factor)
    latents = random_latents(math.ceil(EQUATIONS * unknowns / SIDE**2), latent_channels)
    images = torch.cat([pixels(row).float().cpu() for row in latents.split(1)]).clamp(-1, 1)
    inputs = neighbourhoods(latents).flatten(0, 2).double()
    blocks = F.pixel_unshuffle(images, factor).permute(0, 2, 3, 1).flatten(0, 2).double()
    normal = inputs.T @ inputs + RIDGE * len(inputs) * torch.eye(unknowns, dtype=torch.float64)
    return torch.linalg.solve(normal, inputs.T @ blocks).float()


def projection_shape(latent_channels: int, factor: int) -> tuple[int, int]:
    """Of a projection: what is said of a latent pixel, by the values of its block."""
    return NEIGHBOURS**2 * latent_channels + 1, 3 * factor**2


def random_latents(count: int, channels: int) -> torch.Tensor:
    """[count, channels, SIDE, SIDE] of variance 1: noise of several scales in several parts, as pictures'."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.zeros(count, channels, SIDE, SIDE)
    for scale in SCALES:
        noise = torch.randn(count, channels, SIDE // scale, SIDE // scale, generator=generator)
        share = torch.rand(count, 1, 1, 1, generator=generator)
        latents += share * F.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    return latents / latents.std((1, 2, 3), keepdim=True)


def neighbourhoods(latents: torch.Tensor) -> torch.Tensor:
    """[n, h, w, 9 * C + 1]: each latent pixel with its neighbours, at the edges repeated, and a 1."""
    n, _, height, width = latents.shape
    reach = NEIGHBOURS // 2
    padded = F.pad(latents, (reach,) * 4, mode="replicate")
    columns = F.unfold(padded, NEIGHBOURS).unflatten(2, (height, width)).permute(0, 2, 3, 1)
    return torch.cat([columns, columns.new_ones(n, height, width, 1)], 3)


def project(latents: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """About what the decoder makes of latents.

    Args:
        latents: scaled, float32 [1, C, h, w].
        projection: of `fit_projection`.

    Returns:
        [1, 3, factor * h, factor * w], about -1 to 1, not clamped.
    """
    factor = math.isqrt(projection.shape[1] // 3)
    blocks = neighbourhoods(latents) @ projection
    return F.pixel_shuffle(blocks.permute(0, 3, 1, 2), factor)
