"""Clips with ground truth: an emoji moves, turns and scales over a textured background that pans.

Each layer is a picture under an affine motion, so alpha, flow and tracks are known exactly. Coordinates are
in pixels, x to the right and y down, the middle of the first pixel at (0.5, 0.5). A seed names a clip.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sfumato.trainer.vocabulary import EMOJI, STYLES

WIDTH, HEIGHT, NUM_FRAMES = 128, 72, 70
SUPERSAMPLING = 4
# Cells of the background's noise in pixels at 72 rows, and their amplitude.
OCTAVES = ((36.0, 1.0), (16.0, 0.8), (8.0, 0.45))
MARGIN = 0.15  # of a side, by which the background is larger than the frame on every side


@dataclass(frozen=True)
class Clip:
    """Frames and what is true of them; n frames of h x w."""

    noun: str  # what moves: "cat"
    frames: np.ndarray  # uint8 [n, h, w, 3]
    alpha: np.ndarray  # float32 [n, h, w], 0 to 1
    foreground: np.ndarray  # uint8 [n, h, w, 4], straight alpha
    background: np.ndarray  # uint8 [n, h, w, 3]
    foreground_motion: np.ndarray  # float64 [n, 3, 3], from the emoji's pixels to the frame's
    background_motion: np.ndarray  # float64 [n, 3, 3], from the background picture's pixels to the frame's

    def follow(self, points: np.ndarray, start: int, end: int, foreground: bool) -> np.ndarray:
        """Where points [k, 2] of a layer in frame `start` are in frame `end`."""
        motion = self.foreground_motion if foreground else self.background_motion
        return _moved(motion[end] @ np.linalg.inv(motion[start]), points)

    def flow(self, start: int, end: int) -> np.ndarray:
        """Displacement of what each pixel shows (the emoji where alpha is above 0.5): float64 [h, w, 2]."""
        height, width = self.alpha.shape[1:]
        middles = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) + 0.5
        moves = [self.follow(middles, start, end, layer) - middles for layer in (False, True)]
        is_foreground = (self.alpha[start] > 0.5)[..., None]
        background, foreground = (move.reshape(height, width, 2) for move in moves)
        return np.where(is_foreground, foreground, background)


def make_clip(
    seed: int, art: np.ndarray, num_frames: int = NUM_FRAMES, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Clip:
    """The clip of a seed; art as artwork.load gives it, size (width, height)."""
    rng = np.random.default_rng(seed)
    style, emoji = int(rng.integers(len(STYLES))), int(rng.integers(len(EMOJI)))
    glyph = Image.fromarray(art[style, emoji])
    texture = _texture(rng, size)
    time = np.linspace(0, 1, num_frames)
    foreground_motion = _emoji_motion(rng, time, size, glyph.width)
    background_motion = _pan(rng, time, size)
    above = np.stack([_warp(glyph, matrix, size) for matrix in foreground_motion])
    below = np.stack([_warp(texture, matrix, size) for matrix in background_motion])
    alpha = above[..., 3].astype(np.float32) / 255
    frames = above[..., :3] * alpha[..., None] + below * (1 - alpha[..., None])
    return Clip(
        EMOJI[emoji].noun, frames.round().astype(np.uint8), alpha, above, below,
        foreground_motion, background_motion,
    )  # fmt: skip


def _emoji_motion(rng: np.random.Generator, time: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """From side to side with a swing up and down, turning and breathing, always inside the frame."""
    width, height = size
    drawn = rng.uniform(0.48, 0.58) * height  # its mean side
    reach = min(0.62 * drawn * 1.15, 0.45 * height)  # half of its diagonal at its largest, about
    first, last = reach, width - reach
    if rng.random() < 0.5:
        first, last = last, first
    x = first + (last - first) * (1 - np.cos(np.pi * time)) / 2
    phase, turns = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.6, 1.2, 3)
    y = height / 2 + (height / 2 - reach) * np.sin(2 * np.pi * turns[0] * time + phase[0])
    angle = np.deg2rad(rng.uniform(20, 40)) * np.sin(2 * np.pi * turns[1] * time + phase[1])
    scale = drawn / side * (1 + 0.15 * np.sin(2 * np.pi * turns[2] * time + phase[2]))
    matrices = [
        _shift(*at) @ _turn(a) @ _scale(s) @ _shift(-side / 2, -side / 2)
        for at, a, s in zip(np.stack([x, y], 1), angle, scale, strict=True)
    ]
    return np.stack(matrices)


def _pan(rng: np.random.Generator, time: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A slow pan, never beyond the background picture."""
    start, end = (rng.uniform(-0.8, 0.8, 2) * MARGIN for _ in range(2))
    along = (1 - np.cos(np.pi * time)) / 2
    shifts = (start + (end - start) * along[:, None] - MARGIN) * size
    return np.stack([_shift(*shift) for shift in shifts])


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Smooth noise of several scales between two colours, larger than the frame by MARGIN."""
    unit = size[1] / HEIGHT
    width, height = (round(side * (1 + 2 * MARGIN)) for side in size)
    noise = np.zeros((height, width))
    for cell, amplitude in OCTAVES:
        grid = rng.uniform(-1, 1, [round(side / (cell * unit)) + 1 for side in (height, width)])
        coarse = Image.fromarray(grid.astype(np.float32))
        noise += amplitude * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    dark, light = rng.uniform(10, 110, 3), rng.uniform(120, 245, 3)
    return Image.fromarray((dark + (light - dark) * noise[..., None]).round().astype(np.uint8))


def _warp(picture: Image.Image, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture under a motion, averaged over each pixel; premultiplied where it has alpha."""
    inverse = np.linalg.inv(_scale(SUPERSAMPLING) @ matrix)
    large = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    data = tuple(inverse[:2].ravel())
    warped = picture.transform(large, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    return np.asarray(warped.reduce(SUPERSAMPLING))


def _moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    moved: np.ndarray = points @ matrix[:2, :2].T + matrix[:2, 2]
    return moved


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _scale(s: float) -> np.ndarray:
    return np.diag([s, s, 1.0])


def _turn(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
