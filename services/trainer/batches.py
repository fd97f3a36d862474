"""Batches of scenes from worker processes, as a resumable stream: batch k depends on the seed and k alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sfumato.trainer import artwork
from sfumato.trainer.scenes import caption, draw_scene, render

# Of a process that trains alone, or (seed, rank).
Seed = int | tuple[int, ...]


class SceneBatches(Dataset[tuple[torch.Tensor, list[str]]]):
    """Item k: uint8 images [batch, 3, 64, 64] and their captions, num_captions of each image in turn."""

    def __init__(
        self,
        data: Path,
        seed: Seed,
        batch: int,
        first: int,
        last: int,
        held_out: bool = False,
        num_captions: int = 1,
    ) -> None:
        self.art = artwork.load(data)
        self.seed = seed if isinstance(seed, tuple) else (seed,)
        self.batch, self.first, self.last = batch, first, last
        self.held_out, self.num_captions = held_out, num_captions

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> tuple[torch.Tensor, list[str]]:
        rng = np.random.default_rng((*self.seed, self.first + index))
        scenes = [draw_scene(rng, self.held_out) for _ in range(self.batch)]
        images = np.stack([render(scene, self.art) for scene in scenes])
        captions = [caption(scene, rng) for scene in scenes for _ in range(self.num_captions)]
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), captions


def stream(
    data: Path,
    seed: Seed,
    batch: int,
    first: int,
    last: int,
    workers: int = 1,
    held_out: bool = False,
    num_captions: int = 1,
) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Batches first to last - 1."""
    dataset = SceneBatches(data, seed, batch, first, last, held_out, num_captions)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None)
    yield from loader


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
