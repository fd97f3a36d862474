"""Single characters over plain backgrounds, for the StyleGAN2s and the identity network."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sfumato.trainer import artwork
from sfumato.trainer.characters import CHARACTERS
from sfumato.trainer.vocabulary import COLOURS

SIDE = 64


class PortraitBatches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Item k: uint8 images [batch, 3, 64, 64], and which character in which style, int64 [batch]."""

    def __init__(
        self, data: Path, domain: str, seed: tuple[int, ...], batch: int, first: int, last: int
    ) -> None:
        self.art = artwork.load(data, CHARACTERS[domain], f"{domain}-")
        self.seed, self.batch, self.first, self.last = seed, batch, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((*self.seed, self.first + index))
        styles, characters = self.art.shape[:2]
        labels = rng.integers(styles * characters, size=self.batch)
        images = np.stack([portrait(rng, self.art[k // characters, k % characters]) for k in labels])
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def portrait(rng: np.random.Generator, glyph: np.ndarray) -> np.ndarray:
    """uint8 [64, 64, 3]: the RGBA glyph, 54 to 60 pixels a side, near the middle of a coloured square."""
    colour = list(COLOURS.values())[int(rng.integers(len(COLOURS)))]
    side = int(rng.integers(54, 61))
    left, top = ((SIDE - side) // 2 + int(rng.integers(-1, 2)) for _ in range(2))
    canvas = Image.new("RGB", (SIDE, SIDE), colour)
    resized = Image.fromarray(glyph).resize((side, side), Image.Resampling.BICUBIC)
    canvas.paste(resized, (left, top), resized)
    return np.asarray(canvas)


def num_labels(data: Path, domain: str) -> int:
    """Characters times styles."""
    styles, characters = artwork.load(data, CHARACTERS[domain], f"{domain}-").shape[:2]
    return int(styles * characters)


def portraits(
    data: Path, domain: str, seed: tuple[int, ...], batch: int, first: int, last: int, workers: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches first to last - 1."""
    dataset = PortraitBatches(data, domain, seed, batch, first, last)
    yield from DataLoader(
        dataset, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None
    )
