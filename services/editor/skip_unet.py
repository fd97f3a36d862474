"""The skip U-Net of the deep image prior (Ulyanov et al. 2018, figure 21); also Text2LIVE's generator.

Each scale halves the image with two convolutions, keeps a thin skip (1x1), and after the deeper scales
joins them again: bilinear upsampling, concatenation, normalisation, two convolutions. Leaky ReLU,
reflection padding. The normalisation uses the statistics of the image at hand, always.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def num_scales_of(height: int, width: int, wanted: int) -> int:
    """As many scales as wanted, as long as the deepest has 2 pixels a side: reflection padding needs them."""
    return max(1, min(wanted, int(math.log2(min(height, width))) - 1))


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    padding = {"padding": kernel // 2, "padding_mode": "reflect"}
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, **padding),  # type: ignore[arg-type]
        nn.BatchNorm2d(channels_out, track_running_stats=False),
        nn.LeakyReLU(0.2),
    )


class _Scale(nn.Module):
    """One scale, and within it the deeper ones."""

    def __init__(self, channels_in: int, channels: int, skip_channels: int, depth: int) -> None:
        super().__init__()
        self.skip = _convolution(channels_in, skip_channels, 1)
        self.down = nn.Sequential(
            _convolution(channels_in, channels, 3, stride=2), _convolution(channels, channels, 3)
        )
        self.deeper = _Scale(channels, channels, skip_channels, depth - 1) if depth > 1 else None
        joined = channels + skip_channels
        self.norm = nn.BatchNorm2d(joined, track_running_stats=False)
        self.up = nn.Sequential(_convolution(joined, channels, 3), _convolution(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, channels_in, h, w] to [1, channels, h, w]."""
        inner: torch.Tensor = self.down(x)
        inner = self.deeper(inner) if self.deeper is not None else inner
        inner = F.interpolate(inner, size=x.shape[-2:], mode="bilinear", align_corners=False)
        joined: torch.Tensor = self.up(self.norm(torch.cat([self.skip(x), inner], 1)))
        return joined


class SkipUNet(nn.Module):
    """[1, channels_in, h, w] to [1, channels_out, h, w] in (0, 1); sides of at least 4 pixels."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        channels: int = 128,
        skip_channels: int = 4,
        num_scales: int = 5,
    ) -> None:
        super().__init__()
        self.scales = _Scale(channels_in, channels, skip_channels, num_scales)
        self.head = nn.Conv2d(channels, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The image, through a sigmoid."""
        return torch.sigmoid(self.head(self.scales(x)))
