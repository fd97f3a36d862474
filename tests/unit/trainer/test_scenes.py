"""Scenes: captions are true of the picture, held-out pairs stay out, a seed names a scene."""

import numpy as np

from sfumato.trainer.scenes import SIDE, caption, draw_scene, is_held_out, render
from sfumato.trainer.vocabulary import COLOURS, EMOJI, STYLES

# Every emoji a solid square of a colour of its own, so that a pixel says whose it is.
ART = np.zeros((len(STYLES), len(EMOJI), 64, 64, 4), dtype=np.uint8)
ART[..., 3] = 255
for _index in range(len(EMOJI)):
    ART[:, _index, ..., 0] = _index + 1
    ART[:, _index, ..., 1] = 7


def middle_of(image: np.ndarray, emoji: int) -> tuple[float, float]:
    """Mean row and column of an emoji's pixels."""
    rows, columns = np.nonzero((image[..., 0] == emoji + 1) & (image[..., 1] == 7) & (image[..., 2] == 0))
    return float(rows.mean()), float(columns.mean())


def test_the_first_emoji_stands_where_the_caption_says() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        scene = draw_scene(rng)
        if not scene.relation:
            continue
        image = render(scene, ART)
        (row1, column1), (row2, column2) = (middle_of(image, box.emoji) for box in scene.placed)
        truth = {
            "left of": column1 < column2,
            "right of": column1 > column2,
            "above": row1 < row2,
            "below": row1 > row2,
        }
        assert truth[scene.relation]
        assert scene.relation in caption(scene, rng)
        seen.add(scene.relation)
    assert len(seen) == 4


def test_the_background_has_the_named_colour() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        scene = draw_scene(rng)
        assert tuple(render(scene, ART)[0, SIDE // 2 if scene.size_word == "large" else 0]) in (
            COLOURS[scene.colour],
            *(tuple(ART[0, box.emoji, 0, 0, :3]) for box in scene.placed),
        )
        words = [caption(scene, rng) for _ in range(20)]
        assert any(f"{scene.colour} background" in text for text in words)


def test_held_out_pairs_never_reach_training() -> None:
    rng = np.random.default_rng(2)
    for _ in range(2000):
        scene = draw_scene(rng)
        assert not any(is_held_out(box.emoji, scene.colour) for box in scene.placed)
    for _ in range(100):
        scene = draw_scene(rng, held_out=True)
        assert all(is_held_out(box.emoji, scene.colour) for box in scene.placed)


def test_a_seed_names_a_scene_and_its_caption() -> None:
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(20):
        scene = draw_scene(first)
        assert scene == draw_scene(second)
        assert caption(scene, first) == caption(scene, second)
