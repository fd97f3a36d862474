"""Words' attention maps: read, measured, and drawn over their image."""

import io
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from sfumato_protos.v1 import gateway_pb2, tensor_pb2

# From dark to bright with even steps of lightness, like the field's "inferno".
COLOURS = np.array(
    [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
     (252, 255, 164)],
    dtype=np.float32,
)  # fmt: skip
TILE, LABEL, COLUMNS = 192, 22, 6  # pixels, pixels, tiles across


@dataclass(frozen=True)
class WordMaps:
    """Attention maps of one image's words, averaged over `step` of `num_steps` steps.

    Attributes:
        words: as written in the prompt, in order.
        maps: float32 [words, height, width], 0 to 1: the share of attention that a place pays to the word.
    """

    words: list[str]
    maps: npt.NDArray[np.float32]
    step: int
    num_steps: int

    def of(self, phrase: str) -> npt.NDArray[np.float32]:
        """The map [height, width] of one or more words in a row: their sum. The first place that matches.

        Raises:
            ValueError: the prompt has no such words.
        """
        wanted, words = phrase.lower().split(), [word.lower() for word in self.words]
        for start in range(len(words) - len(wanted) + 1):
            if wanted and words[start : start + len(wanted)] == wanted:
                total: npt.NDArray[np.float32] = self.maps[start : start + len(wanted)].sum(0)
                return total
        raise ValueError(f"the prompt has no {phrase!r}; its words are {', '.join(self.words)}")


def word_maps(message: gateway_pb2.AttentionMaps) -> WordMaps:
    """From the wire."""
    if message.maps.dtype != tensor_pb2.DATA_TYPE_FLOAT32:
        raise ValueError(f"attention maps must be float32, but are of type {message.maps.dtype}")
    maps = np.frombuffer(message.maps.data, "<f4").reshape(message.maps.shape)
    return WordMaps(list(message.words), maps, message.step, message.num_steps)


def centre_of_mass(heat: npt.NDArray[np.float32]) -> tuple[float, float]:
    """x and y of a map [height, width], as shares of its width and height: (0.5, 0.5) is the middle."""
    height, width = heat.shape
    total = float(heat.sum())
    if not total:
        return 0.5, 0.5
    x = float((heat.sum(0) * (np.arange(width) + 0.5)).sum()) / total / width
    y = float((heat.sum(1) * (np.arange(height) + 0.5)).sum()) / total / height
    return x, y


def heat_colours(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Colours [..., 3] of values from 0 to 1."""
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(values, places, COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def overlay(image: Image.Image, heat: npt.NDArray[np.float32]) -> Image.Image:
    """The map over the image, stretched to its own smallest and largest value: for display only."""
    low, high = float(heat.min()), float(heat.max())
    stretched = (heat - low) / ((high - low) or 1.0)
    large = Image.fromarray(stretched.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(large), 0, 1)[..., None]
    opacity = 0.35 + 0.5 * values
    mixed = (1 - opacity) * np.asarray(image.convert("RGB")) + opacity * heat_colours(values[..., 0])
    return Image.fromarray(mixed.astype(np.uint8))


def draw_sheet(image: bytes, attention: WordMaps) -> Image.Image:
    """A labelled sheet: the image, then one heat map per word."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    height = round(TILE * picture.height / picture.width)
    picture = picture.resize((TILE, height), Image.Resampling.NEAREST)
    tiles = [("image", picture)]
    tiles += [
        (word, overlay(picture, heat)) for word, heat in zip(attention.words, attention.maps, strict=True)
    ]
    columns = min(COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (height + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (label, tile) in enumerate(tiles):
        left, top = index % columns * TILE, index // columns * (height + LABEL)
        draw.text((left + 6, top + 5), label[:28], "black")
        sheet.paste(tile, (left, top + LABEL))
    return sheet
