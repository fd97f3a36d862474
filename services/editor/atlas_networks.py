"""The networks of layered neural atlases (Kasten et al. 2021, section 3 and appendix).

Coordinates of a video point are (x, y, t) in [-1, 1]: x and y by the larger side, t by the number of frames.
Each layer's mapping takes it to uv in [-1, 1]^2; one atlas network holds both layers, the foreground in its
positive quadrant, the background in its negative one.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

LEAST_ALPHA, ALPHA_RANGE = 0.001, 0.99


@dataclass(frozen=True)
class Sizes:
    """Width and depth of the networks, and bands of the encodings."""

    width: int
    foreground_layers: int
    background_layers: int
    alpha_layers: int
    atlas_layers: int
    alpha_bands: int
    atlas_bands: int

    def bytes_of(self, batch_size: int) -> int:
        """The most that an iteration keeps for its gradient: two float32 activations a layer and point.

        A point is a pixel and, for every fourth, where its flow leads; the mappings see two more for every
        fourth (rigidity), the atlas each pixel for both layers.
        """
        mappings = self.foreground_layers + self.background_layers
        layers = 1.25 * (mappings + self.alpha_layers) + 0.5 * mappings + 2 * self.atlas_layers
        return int(8 * self.width * layers * batch_size)


def encode(x: torch.Tensor, num_bands: int) -> torch.Tensor:
    """[..., d] to [..., 2 d num_bands]: sine and cosine of 2^k pi x (Mildenhall et al. 2020, equation 4)."""
    frequencies = math.pi * 2.0 ** torch.arange(num_bands, device=x.device, dtype=x.dtype)
    angles = (x[..., None] * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Perceptron(nn.Module):
    """Linear layers with ReLU between them; `skips` see the input again."""

    def __init__(
        self, num_in: int, num_out: int, width: int, num_layers: int, skips: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.skips = skips
        sizes = [num_in, *[width] * (num_layers - 1), num_out]
        self.layers = nn.ModuleList(
            nn.Linear(into + (num_in if index in skips else 0), out)
            for index, (into, out) in enumerate(pairwise(sizes))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[k, num_in] to [k, num_out]."""
        hidden = x
        for index, layer in enumerate(self.layers):
            hidden = torch.relu(hidden) if index else hidden
            hidden = layer(torch.cat([hidden, x], -1) if index in self.skips else hidden)
        return hidden


class AtlasNetworks(nn.Module):
    """Two mappings, the opacity and the atlas."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.foreground = Perceptron(3, 2, width, sizes.foreground_layers)
        self.background = Perceptron(3, 2, width, sizes.background_layers)
        self.opacity = Perceptron(6 * sizes.alpha_bands, 1, width, sizes.alpha_layers)
        self.atlas = Perceptron(4 * sizes.atlas_bands, 3, width, sizes.atlas_layers, (4, 7))

    def uv(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[k, 3] to the foreground's and the background's uv [k, 2]."""
        return torch.tanh(self.foreground(points)), torch.tanh(self.background(points))

    def logits(self, points: torch.Tensor) -> torch.Tensor:
        """[k, 3] to the opacity before it is squashed [k]."""
        logits: torch.Tensor = 2 * self.opacity(encode(points, self.sizes.alpha_bands))[:, 0]
        return logits

    def alpha(self, points: torch.Tensor) -> torch.Tensor:
        """[k, 3] to the foreground's opacity [k], 0.001 to 0.991."""
        return opacity_of(self.logits(points))

    def colours(self, foreground_uv: torch.Tensor, background_uv: torch.Tensor) -> torch.Tensor:
        """Both layers' colours at uv [k, 2]: [2, k, 3] in (0, 1), the foreground first."""
        pair = torch.cat([self.places(foreground_uv, "foreground"), self.places(background_uv, "background")])
        return self.colours_at(pair).unflatten(0, (2, len(foreground_uv)))

    def places(self, uv: torch.Tensor, layer: str) -> torch.Tensor:
        """A layer's uv [k, 2] as places of the one atlas [k, 2]: in its quadrant."""
        return uv * 0.5 + (0.5 if layer == "foreground" else -0.5)

    def colours_at(self, places: torch.Tensor) -> torch.Tensor:
        """The colours [k, 3] in (0, 1) at places of the atlas [k, 2]."""
        return (torch.tanh(self.atlas(encode(places, self.sizes.atlas_bands))) + 1) / 2


def opacity_of(logits: torch.Tensor) -> torch.Tensor:
    """0.001 + 0.99 (tanh(logit / 2) + 1) / 2."""
    return LEAST_ALPHA + ALPHA_RANGE * torch.sigmoid(logits)


def composite(alpha: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Alpha [k] and colours [2, k, 3] to alpha c_f + (1 - alpha) c_b [k, 3]."""
    return alpha[:, None] * colours[0] + (1 - alpha)[:, None] * colours[1]


def coordinates(pixels: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Pixels [k, 3] (x, y, t; also between pixels) of a clip of (n, h, w) to [-1, 1]."""
    num_frames, height, width = shape
    largest = max(height, width)
    middle = pixels.new_tensor([(width - 1) / 2, (height - 1) / 2, (num_frames - 1) / 2])
    return (pixels - middle) * pixels.new_tensor([2 / largest, 2 / largest, 2 / num_frames])
