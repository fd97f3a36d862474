"""What each channel of S does to an image, to CLIP's eyes (Patashnik et al. 2021, section 6).

    dS(c) = unit( mean over w of  CLIP(G(s + a e_c)) - CLIP(G(s - a e_c)) ),   a = 5 sigma_c

It does not depend on the text: it is computed once for a generator, in chunks that are each cached, so that
it can be interrupted. toRGB's styles are left out: they change colour alone and entangle (Wu et al. 2021,
section 3).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from sfumato.common.seeding import generator_of
from sfumato.editor.clip import Clip
from sfumato.editor.inversion import TRUNCATION
from sfumato.editor.method import Models

STEP = 5.0  # a, in standard deviations
CHUNK = 16  # channels per chunk
STATISTICS = 2048  # latents for sigma
SEED = 0  # of the table, which all edits share


@dataclass(frozen=True)
class Chunk:
    """Channels first to last - 1 of one convolution's style."""

    style: int
    first: int
    last: int


def chunks_of(stylegan: Any) -> list[Chunk]:
    """All channels outside toRGB, in the order of the table."""
    widths = [style.shape[1] for style in stylegan.styles(torch.zeros(1, stylegan.num_layers, stylegan.d))]
    return [
        Chunk(style, first, min(first + CHUNK, width))
        for style, (width, rgb) in enumerate(zip(widths, stylegan.is_rgb(), strict=True))
        if not rgb
        for first in range(0, width, CHUNK)
    ]


@torch.no_grad()
def deviations(stylegan: Any, device: torch.device) -> list[torch.Tensor]:
    """sigma_c of every style, [channels] each."""
    z = torch.randn(STATISTICS, stylegan.d, generator=generator_of(SEED, device), device=device)
    return [style.std(0) for style in stylegan.styles(stylegan.spread(stylegan.mapping(z)))]


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a family whose weights the tables are made from."""
    return "clip", f"stylegan2/{name}"


def chunk_relevance(models: Models, clip: Clip, name: str, chunk: Chunk, num_images: int) -> torch.Tensor:
    """dS [last - first, embedding] of a chunk, cached for the generator's and CLIP's weights."""
    key = f"relevance-{name}-{num_images}-{chunk.style}-{chunk.first}"
    table = models.cached(
        key, parts_of(name), lambda: {"relevance": _relevance(models, clip, name, chunk, num_images)}
    )
    return table["relevance"].to(models.device)


def mean_embedding(models: Models, clip: Clip, name: str, num_images: int) -> torch.Tensor:
    """The unit mean [embedding] of what the generator makes, truncated as an edit's start; cached."""
    key = f"mean-embedding-{name}-{num_images}"
    table = models.cached(
        key, parts_of(name), lambda: {"mean_embedding": _mean_embedding(models, clip, name, num_images)}
    )
    return table["mean_embedding"].to(models.device)


@torch.no_grad()
def _mean_embedding(models: Models, clip: Clip, name: str, num_images: int) -> torch.Tensor:
    stylegan, generator = models.stylegan2(name), generator_of(SEED + 2, models.device)
    z = torch.randn(num_images, stylegan.d, generator=generator, device=models.device)
    mean = stylegan.mean_w(generator)
    images = stylegan(stylegan.spread(mean + TRUNCATION * (stylegan.mapping(z) - mean)))
    return F.normalize(clip.embed_images((images / 2 + 0.5).clamp(0, 1)).mean(0), dim=0)


@torch.no_grad()
def _relevance(models: Models, clip: Clip, name: str, chunk: Chunk, num_images: int) -> torch.Tensor:
    stylegan = models.stylegan2(name)
    generator = generator_of(SEED + 1, models.device)
    z = torch.randn(num_images, stylegan.d, generator=generator, device=models.device)
    styles = stylegan.styles(stylegan.spread(stylegan.mapping(z)))
    sigma = deviations(stylegan, models.device)[chunk.style]
    rows = []
    for channel in range(chunk.first, chunk.last):
        offset = torch.zeros_like(styles[chunk.style])
        offset[:, channel] = STEP * sigma[channel]
        up, down = (
            clip.embed_images(
                (stylegan.synthesis(_with(styles, chunk.style, sign * offset)) / 2 + 0.5).clamp(0, 1)
            )
            for sign in (1, -1)
        )
        rows.append(F.normalize((up - down).mean(0), dim=0))
    return torch.stack(rows)


def _with(styles: list[torch.Tensor], index: int, offset: torch.Tensor) -> list[torch.Tensor]:
    return [style + offset if k == index else style for k, style in enumerate(styles)]
