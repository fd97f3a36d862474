"""StyleGAN2's generator (Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN").

    z [n, 512] -> w [n, d] -> w_plus [n, layers, d] -> styles, one [n, channels] per convolution -> image

Spaces: W, W+ (one w per layer) and S (the styles: what each convolution's input channels are scaled by).
Weights are named as in rosinality/stylegan2-pytorch, whose `g_ema` loads. Images are [n, 3, size, size],
about [-1, 1]. A family keeps one in a folder: config.json (the arguments of StyleGAN2) and model.safetensors.
"""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.common.errors import NotFound
from sfumato.common.stylegan2_layers import EqualLinear, PixelNorm, StyledConv, ToRGB

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def num_layers(size: int) -> int:
    """Layers of W+ of a generator of images of that size."""
    return 2 * int(math.log2(size)) - 2


class _Input(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class StyleGAN2(nn.Module):
    """The generator.

    Args:
        size: of the image, a power of two from 8.
        channels: of each resolution, 4 pixels first; log2(size) - 1 of them.
        d: length of z and w.
        num_mapping_layers: of the mapping network.
    """

    def __init__(self, size: int, channels: Sequence[int], d: int = 512, num_mapping_layers: int = 8) -> None:
        super().__init__()
        self.config = {
            "size": size, "channels": list(channels), "d": d, "num_mapping_layers": num_mapping_layers,
        }  # fmt: skip
        self.size, self.d = size, d
        self.num_layers = num_layers(size)
        mapping = [EqualLinear(d, d, lr_multiplier=0.01, act=True) for _ in range(num_mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = _Input(channels[0])
        self.conv1 = StyledConv(channels[0], channels[0], d)
        self.to_rgb1 = ToRGB(channels[0], d, up=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for c_in, c_out in pairwise(channels):
            self.convs.extend([StyledConv(c_in, c_out, d, up=True), StyledConv(c_out, c_out, d)])
            self.to_rgbs.append(ToRGB(c_out, d))
        for index in range(len(self.convs)):
            side = 2 ** (index // 2 + 3)
            self.noises.register_buffer(f"noise_{index + 1}", torch.randn(1, 1, side, side))

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        """z [n, d] to w [n, d]."""
        w: torch.Tensor = self.style(z)
        return w

    def spread(self, w: torch.Tensor) -> torch.Tensor:
        """w [n, d] to w_plus [n, layers, d], the same in all layers."""
        return w[:, None].expand(-1, self.num_layers, -1)

    @torch.no_grad()
    def mean_w(self, generator: torch.Generator, num_samples: int = 4096) -> torch.Tensor:
        """The mean latent [1, d]."""
        z = torch.randn(num_samples, self.d, generator=generator, device=generator.device)
        return self.mapping(z).mean(0, keepdim=True)

    def _modulations(self) -> list[tuple[EqualLinear, int, bool]]:
        """In order of use: how a convolution makes its style, its layer in W+, whether it is toRGB."""
        ordered = [(self.conv1.conv.modulation, 0, False), (self.to_rgb1.conv.modulation, 1, True)]
        for k, rgb in enumerate(self.to_rgbs):
            first, second = self.convs[2 * k], self.convs[2 * k + 1]
            ordered.append((first.conv.modulation, 2 * k + 1, False))  # type: ignore[union-attr, arg-type]
            ordered.append((second.conv.modulation, 2 * k + 2, False))  # type: ignore[union-attr, arg-type]
            ordered.append((rgb.conv.modulation, 2 * k + 3, True))  # type: ignore[union-attr, arg-type]
        return ordered

    def is_rgb(self) -> list[bool]:
        """Which of the styles belong to toRGB layers."""
        return [rgb for _, _, rgb in self._modulations()]

    def styles(self, w_plus: torch.Tensor) -> list[torch.Tensor]:
        """w_plus [n, layers, d] to S: a style [n, channels] per convolution."""
        return [modulation(w_plus[:, layer]) for modulation, layer, _ in self._modulations()]

    def synthesis(
        self, styles: Sequence[torch.Tensor], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """S to images; the noise is the model's own, or drawn anew from the generator."""
        n, left = len(styles[0]), iter(styles)
        x = self.conv1(self.input.input.expand(n, -1, -1, -1), next(left), self._noise(0, n, generator))
        image = self.to_rgb1(x, next(left), None)
        for k, rgb in enumerate(self.to_rgbs):
            for index in (2 * k, 2 * k + 1):
                x = self.convs[index](x, next(left), self._noise(index + 1, n, generator))
            image = rgb(x, next(left), image)
        return image

    def _noise(self, index: int, n: int, generator: torch.Generator | None) -> torch.Tensor:
        own: torch.Tensor = getattr(self.noises, f"noise_{index}")
        if generator is None:
            return own
        return torch.randn(n, 1, *own.shape[2:], generator=generator, device=own.device, dtype=own.dtype)

    def forward(self, w_plus: torch.Tensor) -> torch.Tensor:
        """w_plus [n, layers, d] to images, with the model's own noise."""
        return self.synthesis(self.styles(w_plus))


def save_stylegan2(model: StyleGAN2, folder: Path) -> None:
    """Writes a folder, float16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(model.config, indent=2) + "\n")
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(half, folder / WEIGHTS)


def latent_shape(folder: Path) -> tuple[int, int]:
    """Layers and length of the w_plus of a folder's generator, without its weights."""
    config = json.loads((folder / CONFIG).read_text())
    return num_layers(config["size"]), config["d"]


def load_stylegan2(folder: Path) -> StyleGAN2:
    """Reads a folder, float32.

    Raises:
        NotFound: a file is missing; the message names it.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise NotFound(f"{folder} has no {name}; a generator is config.json and model.safetensors")
    model = StyleGAN2(**json.loads((folder / CONFIG).read_text()))
    model.load_state_dict({name: t.float() for name, t in load_file(folder / WEIGHTS).items()})
    return model.eval().requires_grad_(False)
