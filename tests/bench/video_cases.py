"""Clips with ground truth for the video report, taken apart; what was made is kept on disk."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sfumato.editor import layered_atlas
from sfumato.editor.atlas_networks import coordinates
from sfumato.editor.decomposition import Decomposition, maps_of, render_frame
from sfumato.editor.method import Inputs, Models
from sfumato.editor.video import Video
from sfumato.trainer.clips import Clip
from sfumato_client.atlases import QUICK_ATLAS

FRAME_RATE = 25.0


@dataclass(frozen=True)
class Parted:
    """A clip, what was found of it, and the seconds that took."""

    clip: Clip
    found: Decomposition
    seconds: float


def take_apart(clip: Clip, path: Path, models: Models, most: int) -> Parted:
    """With the mask found from the motion; or reads what an earlier run left at the path."""
    if not (path / "seconds.json").exists():
        options = {**QUICK_ATLAS, "num_iterations": min(most, QUICK_ATLAS["num_iterations"])}
        begun = time.monotonic()
        inputs = Inputs(video=Video(clip.frames, FRAME_RATE))
        state = layered_atlas.start(layered_atlas.Options(**options), inputs, models)
        for _ in layered_atlas.run(state):
            pass
        seconds = time.monotonic() - begun
        path.mkdir(parents=True, exist_ok=True)
        save_file(state.decomposition().tensors(), path / "decomposition.safetensors")
        (path / "seconds.json").write_text(json.dumps(seconds) + "\n")
    found = Decomposition.of_tensors(load_file(path / "decomposition.safetensors"), models.device)
    return Parted(clip, found, json.loads((path / "seconds.json").read_text()))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB, of 8-bit pixels."""
    return float(10 * np.log10(255**2 / max(float(np.square(a.astype(float) - b).mean()), 1e-9)))


def reconstruction_psnr(parted: Parted) -> float:
    """Mean over frames."""
    made = [np.asarray(render_frame(parted.found, t)[0]) for t in range(len(parted.clip.frames))]
    return float(np.mean([psnr(a, b) for a, b in zip(made, parted.clip.frames, strict=True)]))


def alpha_iou(parted: Parted) -> float:
    """Of all frames together, at 0.5."""
    alpha = np.stack([maps_of(parted.found, t)[2].numpy() for t in range(len(parted.clip.frames))]) > 0.5
    truth = parted.clip.alpha > 0.5
    return float((alpha & truth).sum() / (alpha | truth).sum())


def track_errors(parted: Parted, count: int, rng: np.random.Generator, foreground: bool) -> list[float]:
    """How far apart, in atlas pixels, two random frames place the same point of a layer."""
    clip, errors = parted.clip, []
    num_frames, height, width = clip.alpha.shape
    index = 0 if foreground else 1
    while len(errors) < count:
        start, end = rng.integers(num_frames, size=2)
        rows, columns = np.nonzero((clip.alpha[start] > 0.5) == foreground)
        pick = rng.integers(len(rows))
        point = np.array([[columns[pick] + 0.5, rows[pick] + 0.5]])
        there = clip.follow(point, start, end, foreground)
        x, y = np.floor(there[0]).astype(int)
        seen = 0 <= x < width and 0 <= y < height and (clip.alpha[end, y, x] > 0.5) == foreground
        if start == end or not seen:
            continue
        pixels: Any = [[*(point[0] - 0.5), start], [*(there[0] - 0.5), end]]
        with torch.no_grad():
            uv = parted.found.networks.uv(coordinates(torch.tensor(pixels).float(), parted.found.shape))
        errors.append(float((uv[index][0] - uv[index][1]).norm()) * parted.found.atlas_side / 2)
    return errors
