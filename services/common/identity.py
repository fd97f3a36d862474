"""The identity network: who is in the picture, as a unit vector; in place of ArcFace (StyleCLIP, eq. 2).

A residual network on images [n, 3, h, w] in [-1, 1], averaged to `size` pixels a side. A family keeps it in
identity/: config.json (the arguments of IdentityNetwork) and model.safetensors.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from sfumato.common.arcface import ArcFace
from sfumato.common.errors import NotFound

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class _Block(nn.Module):
    """Two convolutions beside a strided 1x1, halving the image."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(4, c_in), nn.GroupNorm(4, c_out)
        self.conv_1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv_2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, c_in, h, w] to [n, c_out, h/2, w/2]."""
        y = self.conv_1(F.silu(self.norm_1(x)))
        y = self.conv_2(F.silu(self.norm_2(y)))
        return F.avg_pool2d(y + self.skip(x), 2)


class IdentityNetwork(nn.Module):
    """Unit features [n, num_features].

    Args:
        size: side that images are averaged to, a multiple of 2 to the number of blocks.
        channels: of each block, multiples of 4.
        num_features: length of the vector.
    """

    def __init__(
        self, size: int = 32, channels: tuple[int, ...] = (16, 32, 64), num_features: int = 64
    ) -> None:
        super().__init__()
        self.config = {"size": size, "channels": list(channels), "num_features": num_features}
        self.size = size
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        widths = (channels[0], *channels)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in zip(widths, channels, strict=False)))
        self.norm = nn.GroupNorm(4, channels[-1])
        self.head = nn.Linear(channels[-1] * (size >> len(channels)) ** 2, num_features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] to unit features."""
        x = self.blocks(self.stem(F.adaptive_avg_pool2d(images, self.size)))
        return F.normalize(self.head(F.silu(self.norm(x)).flatten(1)).float(), dim=-1)


def save_identity(model: IdentityNetwork | ArcFace, folder: Path) -> None:
    """Writes a folder, float16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(model.config, indent=2) + "\n")
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(half, folder / WEIGHTS)


def identity_of(config: dict[str, Any]) -> IdentityNetwork | ArcFace:
    """The network of a config.json: ArcFace's IR-SE50 by its name, else IdentityNetwork by its arguments."""
    return ArcFace() if config.get("_class_name") == "ArcFace" else IdentityNetwork(**config)


def load_identity(folder: Path) -> IdentityNetwork | ArcFace:
    """Reads a folder, float32.

    Raises:
        NotFound: a file is missing; the message names it.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise NotFound(
                f"{folder} has no {name}; an identity network is config.json and model.safetensors"
            )
    model = identity_of(json.loads((folder / CONFIG).read_text()))
    model.load_state_dict({name: t.float() for name, t in load_file(folder / WEIGHTS).items()})
    return model.eval().requires_grad_(False)
