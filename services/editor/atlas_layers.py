"""Edit layers on an atlas, and where they come to lie in each frame.

An edit layer is float [1, 4, s, s] in [0, 1], colour and opacity over the atlas, or over a box of it; in a
frame it is [1, 4, h, w], its opacity times the share of the pixel that its layer of the clip has:

    c' = (1 - a) c + a E(uv),  a = alpha_E(uv) alpha   (1 - alpha for the background)

where E(uv) is its mean over the pixel: a pixel of the clip covers several of the atlas.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn import functional as F

from sfumato.editor.decomposition import Decomposition, maps_of

VISIBLE = 0.5  # share of a pixel
SAMPLES = 2  # along each side of a pixel, whose mean is what it shows
LEAST_SIDE = 8  # pixels of a box, which the generator needs
MARGIN = 0.1  # of its sides, around the part of the atlas that the clip shows


@dataclass(frozen=True)
class LayerMaps:
    """Where each pixel of a clip lies in one layer's atlas."""

    uv: torch.Tensor  # [n, h, w, 2], -1 to 1
    share: torch.Tensor  # [n, h, w], 0 to 1: how much of the pixel the layer is
    frames: torch.Tensor  # float [n, 3, h, w], the clip, 0 to 1
    frame_rate: float

    @classmethod
    def of(cls, found: Decomposition, layer: str) -> "LayerMaps":
        """Of "foreground" or "background"."""
        maps = [maps_of(found, t) for t in range(found.shape[0])]
        index = 0 if layer == "foreground" else 1
        alpha = torch.stack([entry[2] for entry in maps])
        share = alpha if layer == "foreground" else 1 - alpha
        frames = found.frames.permute(0, 3, 1, 2).float() / 255
        return cls(torch.stack([entry[index] for entry in maps]), share, frames, found.frame_rate)

    def box(self, side: int) -> tuple[int, int, int, int]:
        """The part of a square atlas of that side that the clip shows: left, top, right, bottom in pixels."""
        seen = self.uv[self.share > VISIBLE]
        seen = seen if len(seen) else self.uv.view(-1, 2)
        low, high = seen.amin(0), seen.amax(0)
        reach = (high - low) * MARGIN
        pixels = (torch.stack([low - reach, high + reach]).clamp(-1, 1) + 1) / 2 * side
        left, top = pixels[0].floor().clamp(max=side - LEAST_SIDE).int().tolist()
        right, bottom = pixels[1].ceil().int().tolist()
        return left, top, max(right, left + LEAST_SIDE), max(bottom, top + LEAST_SIDE)

    def lay(
        self, edit_layer: torch.Tensor, t: int, box: tuple[int, int, int, int], side: int
    ) -> torch.Tensor:
        """The edit layer [1, 4, ...] of a box of the atlas, in frame t; nothing outside the box."""
        low = self.uv.new_tensor(box[:2]) / side * 2 - 1
        high = self.uv.new_tensor(box[2:]) / side * 2 - 1
        uv = self.uv[t].permute(2, 0, 1)[None]
        uv = F.interpolate(uv, scale_factor=SAMPLES, mode="bilinear", align_corners=False)
        grid = (uv.permute(0, 2, 3, 1) - low) / (high - low) * 2 - 1
        laid = F.avg_pool2d(F.grid_sample(edit_layer, grid, align_corners=False), SAMPLES)
        return torch.cat([laid[:, :3], laid[:, 3:] * self.share[t]], 1)

    def crop(self, t: int, margin: float = 0.25) -> tuple[slice, slice]:
        """Rows and columns of a square around the layer in frame t; all of them where it is not small."""
        height, width = self.share.shape[1:]
        rows = (self.share[t] > VISIBLE).any(1).nonzero()
        columns = (self.share[t] > VISIBLE).any(0).nonzero()
        if not len(rows):
            return slice(0, height), slice(0, width)
        high, wide = (int(found.max() - found.min()) + 1 for found in (rows, columns))
        side = max(16, round(max(high, wide) * (1 + 2 * margin)))
        return _around(rows, side, height), _around(columns, side, width)


def _around(found: torch.Tensor, side: int, length: int) -> slice:
    first = int(found.min() + found.max() + 1 - side) // 2
    first = max(0, min(first, length - side))
    return slice(first, min(length, first + side))


def on_atlas(edit_layer: Image.Image, box: tuple[int, int, int, int], side: int) -> Image.Image:
    """An RGBA layer of a box, on a clear square."""
    whole = Image.new("RGBA", (side, side))
    whole.paste(edit_layer, box[:2])
    return whole
