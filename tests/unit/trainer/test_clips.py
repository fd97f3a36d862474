"""Clips: their alpha, flow and layers are true of their frames, and a seed names a clip."""

import numpy as np
import pytest

from sfumato.trainer.clips import Clip, make_clip
from sfumato.trainer.vocabulary import EMOJI, STYLES

# Every emoji a disc of stripes that no background has.
ART = np.zeros((len(STYLES), len(EMOJI), 64, 64, 4), np.uint8)
_y, _x = np.mgrid[:64, :64]
ART[..., 0] = 128 + 100 * np.sin(_x / 4)
ART[..., 1] = 128 + 100 * np.cos(_y / 5)
ART[..., 3] = np.where((_x - 31.5) ** 2 + (_y - 31.5) ** 2 < 30**2, 255, 0)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip(3, ART, num_frames=10)


def test_the_frames_are_the_layers_under_alpha(clip: Clip) -> None:
    assert clip.frames.shape == (10, 72, 128, 3)
    alpha = clip.alpha[..., None]
    made = alpha * clip.foreground[..., :3] + (1 - alpha) * clip.background
    assert np.abs(made - clip.frames).max() <= 0.5
    assert 0.03 < (clip.alpha > 0.5).mean() < 0.25


def test_what_a_pixel_shows_is_where_the_flow_leads(clip: Clip) -> None:
    y, x = np.mgrid[:72, :128]
    for start, end in ((0, 1), (4, 7), (9, 5)):
        flow = clip.flow(start, end)
        across, down = (np.rint(base + flow[..., k]).astype(int) for k, base in enumerate((x, y)))
        inside = (across >= 0) & (across < 128) & (down >= 0) & (down < 72)
        there = clip.frames[end][down.clip(0, 71), across.clip(0, 127)].astype(int)
        # Not at the emoji's edge, nor where it covers what was seen.
        solid = (clip.alpha[start] < 0.01) | (clip.alpha[start] > 0.99)
        same = (clip.alpha[end][down.clip(0, 71), across.clip(0, 127)] > 0.5) == (clip.alpha[start] > 0.5)
        error = np.abs(there - clip.frames[start]).mean(-1)[inside & solid & same]
        assert error.mean() < 10
        still = np.abs(clip.frames[end].astype(int) - clip.frames[start]).mean(-1)[clip.alpha[start] > 0.99]
        assert error.mean() < 0.5 * still.mean()


def test_a_track_returns_to_its_point(clip: Clip) -> None:
    points = np.array([[60.5, 30.5], [20.0, 10.0]])
    for foreground in (True, False):
        there = clip.follow(points, 0, 8, foreground)
        assert np.abs(there - points).max() > 1
        assert np.allclose(clip.follow(there, 8, 0, foreground), points)


def test_the_emoji_stays_inside_and_crosses_the_frame() -> None:
    for seed in range(4):
        clip = make_clip(seed, ART, num_frames=12)
        border = np.concatenate(
            [
                clip.alpha[:, 0].ravel(),
                clip.alpha[:, -1].ravel(),
                clip.alpha[..., 0].ravel(),
                clip.alpha[..., -1].ravel(),
            ]
        )
        assert border.max() < 0.5
        weights = clip.alpha.sum(1)
        middles = (weights * np.arange(128)).sum(1) / weights.sum(1)
        assert abs(middles[-1] - middles[0]) > 0.3 * 128


def test_a_seed_names_a_clip_of_any_size() -> None:
    one, same, other = (make_clip(seed, ART, 3, (192, 108)) for seed in (5, 5, 6))
    assert one.frames.shape == (3, 108, 192, 3)
    assert np.array_equal(one.frames, same.frames)
    assert not np.array_equal(one.frames, other.frames)
