"""Masks of a clip's foreground, where the camera goes far and where there is nothing to cut."""

import cv2
import numpy as np
import pytest
from PIL import Image

from sfumato.editor import flow, motion_mask


def texture(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).random((height, width, 3), np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 4)
    return cv2.normalize(soft, np.zeros_like(soft), 20, 235, cv2.NORM_MINMAX).astype(np.uint8)


def test_a_foreground_is_found_where_the_camera_goes_further_than_half_a_frame() -> None:
    step, count = 4, 40
    wide = texture(64, 96 + step * count)
    y, x = np.mgrid[:64, :96]
    frames, masks = [], []
    for t in range(count):
        mask = (x - 30 - t) ** 2 + (y - 32) ** 2 < 10**2
        frames.append(np.where(mask[..., None], np.uint8([250, 30, 30]), wide[:, t * step : t * step + 96]))
        masks.append(mask)
    clip = np.stack(frames)
    found = motion_mask.mask_of(clip, flow.estimate(clip), None, None) > 0.5
    shared = [(a & b).sum() / (a | b).sum() for a, b in zip(found, masks, strict=True)]
    assert min(shared) > 0.8


def test_the_background_is_the_median_of_what_the_frames_show() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3)).astype(np.uint8)
    moves = np.array([[0, 0], [3, 0], [0, 2], [5, 1], [40, 0]])
    matrices = np.stack([np.array([[1.0, 0, x], [0, 1, y]]) for x, y in moves])
    background, seen = motion_mask._background(frames, matrices, np.array([64, 30]))
    laid = np.full((5, 30, 64, 3), np.nan)
    for k, (x, y) in enumerate(moves):
        laid[k, y : y + 20, x : x + 24] = frames[k]
    known = ~np.isnan(laid[..., 0]).all(0)
    assert np.array_equal(seen > 0, known)
    assert np.array_equal(background[known], np.nanmedian(laid[:, known], 0))
    assert not background[~known].any()


@pytest.mark.parametrize("grey", [0, 1])
def test_a_foreground_that_is_the_whole_frame_is_kept(grey: int) -> None:
    clip = np.stack([texture(32, 48)] * 4)
    scribble = np.full((32, 48), 255, np.uint8)
    scribble[5, :grey] = 128
    found = motion_mask.mask_of(clip, flow.estimate(clip), Image.fromarray(scribble), None)
    assert found.mean() > 0.99
