"""Captioned 64x64 scenes: one or two emoji on a coloured background, composed on the fly.

A scene is drawn from a numpy generator, so a seed names it. Combinations of (emoji, background) are held
out from training by a hash, so that figures are about combinations that the models never saw.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sfumato.trainer.vocabulary import COLOURS, EMOJI, STYLES

SIDE = 64
HELD_OUT_SHARE = 0.08
SINGLE_SHARE = 0.6
# Word, smallest and largest side in pixels, of an emoji that is alone.
SIZES = (("small", 26, 34), ("", 44, 56), ("large", 56, 62))
SIZE_SHARES = (0.15, 0.6, 0.25)
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Placed:
    """An emoji in a scene: its index, and its box (left, top, side) in pixels."""

    emoji: int
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """What is in a scene, back to front."""

    style: int
    colour: str
    placed: tuple[Placed, ...]
    relation: str
    size_word: str


def is_held_out(emoji: int, colour: str) -> bool:
    """Whether training never shows this emoji on this background."""
    digest = zlib.crc32(f"{EMOJI[emoji].code} {colour}".encode())
    return digest % 1000 < HELD_OUT_SHARE * 1000


def draw_scene(rng: np.random.Generator, held_out: bool = False, pair: bool = False) -> Scene:
    """A random scene, all of whose (emoji, background) pairs are held out, or none.

    Held-out scenes show one emoji, or two where `pair` asks for it.
    """
    single = not pair and (held_out or rng.random() < SINGLE_SHARE)
    while True:
        style = int(rng.integers(len(STYLES)))
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        emoji = [int(index) for index in rng.choice(len(EMOJI), 1 if single else 2, replace=False)]
        if all(is_held_out(index, colour) == held_out for index in emoji):
            break
    if single:
        size_word, low, high = SIZES[int(rng.choice(3, p=SIZE_SHARES))]
        side = int(rng.integers(low, high + 1))
        middle = (SIDE - side) // 2
        shift = int(rng.integers(-2, 3)), int(rng.integers(-2, 3))
        left, top = (min(max(middle + s, 0), SIDE - side) for s in shift)
        return Scene(style, colour, (Placed(emoji[0], left, top, side),), "", size_word)
    relation = RELATIONS[int(rng.integers(4))]
    side = int(rng.integers(27, 32))
    near, far = (SIDE // 2 - side) // 2, SIDE // 2 + (SIDE // 2 - side) // 2
    across = (SIDE - side) // 2 + int(rng.integers(-6, 7))
    first, second = (near, far) if relation in ("left of", "above") else (far, near)
    if relation in ("left of", "right of"):
        boxes = Placed(emoji[0], first, across, side), Placed(emoji[1], second, across, side)
    else:
        boxes = Placed(emoji[0], across, first, side), Placed(emoji[1], across, second, side)
    return Scene(style, colour, boxes, relation, "")


def render(scene: Scene, art: np.ndarray) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]; art as artwork.load gives it."""
    canvas = Image.new("RGB", (SIDE, SIDE), COLOURS[scene.colour])
    for box in scene.placed:
        glyph = Image.fromarray(art[scene.style, box.emoji]).resize(
            (box.side, box.side), Image.Resampling.BICUBIC
        )
        canvas.paste(glyph, (box.left, box.top), glyph)
    return np.asarray(canvas)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of several phrasings, true of the scene; what it leaves out, it leaves open."""
    names = [_name(box.emoji, rng) for box in scene.placed]
    what = _with_article(f"{scene.size_word} {names[0]}".strip())
    if scene.relation:
        what = f"{what} {scene.relation} {_with_article(names[1])}"
    where = f" on {_with_article(scene.colour)} background" if rng.random() < 0.9 else ""
    style = list(STYLES)[scene.style]
    pick = rng.random()
    if pick < 0.35:
        return f"{what}{where}"
    if pick < 0.6:
        return f"{what}{where}, {style} style"
    if pick < 0.8:
        return f"{_with_article(style)} emoji of {what}{where}"
    return f"a picture of {what}{where}"


def _name(emoji: int, rng: np.random.Generator) -> str:
    """The noun, or one time in five a synonym."""
    entry = EMOJI[emoji]
    if rng.random() < 0.8:
        return entry.noun
    return entry.synonyms[int(rng.integers(len(entry.synonyms)))]


def _with_article(noun: str) -> str:
    if noun.endswith("ies") or noun in ("fire", "guacamole fruit"):
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
