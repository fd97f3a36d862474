"""A trained generator to the family's stylegan2/, with a sheet of samples and one of interpolations."""

from pathlib import Path

import torch
from PIL import Image

from sfumato.common.stylegan2 import StyleGAN2, save_stylegan2
from sfumato.trainer.checkpoint import average_of
from sfumato.trainer.reconstruction import to_uint8
from sfumato.trainer.stylegan2 import Trained

TRUNCATION = 0.7
SEED = 30_000


def export_generator(path: Path, family: Path, domain: str) -> None:
    """Weights (the average's, float16), samples.jpg and interpolations.jpg."""
    trained = Trained()
    trained.load_state_dict(average_of(path))
    folder = family / "stylegan2" / domain
    save_stylegan2(trained.generator, folder)
    samples_sheet(trained.generator).save(folder / "samples.jpg", quality=92)
    interpolation_sheet(trained.generator).save(folder / "interpolations.jpg", quality=92)


@torch.inference_mode()
def samples_sheet(stylegan: StyleGAN2, columns: int = 10, rows: int = 6) -> Image.Image:
    """Samples at truncation 0.7."""
    return _sheet(stylegan(stylegan.spread(_latents(stylegan, columns * rows))), columns)


@torch.inference_mode()
def interpolation_sheet(stylegan: StyleGAN2, columns: int = 10, rows: int = 6) -> Image.Image:
    """From a sample at the left to another at the right, along a straight line in W."""
    left, right = _latents(stylegan, 2 * rows).chunk(2)
    steps = torch.linspace(0, 1, columns).view(1, -1, 1)
    w = (left[:, None] * (1 - steps) + right[:, None] * steps).flatten(0, 1)
    return _sheet(stylegan(stylegan.spread(w)), columns)


def _latents(stylegan: StyleGAN2, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    mean = stylegan.mean_w(generator)
    return mean + TRUNCATION * (stylegan.mapping(torch.randn(n, stylegan.d, generator=generator)) - mean)


def _sheet(images: torch.Tensor, columns: int) -> Image.Image:
    pixels = to_uint8(images)
    n, channels, side, _ = pixels.shape
    grid = pixels.view(n // columns, columns, channels, side, side).permute(0, 3, 1, 4, 2)
    return Image.fromarray(grid.reshape(n // columns * side, columns * side, channels).numpy())
