"""ArcFace's IR-SE50 (Deng et al. 2019; squeeze and excitation: Hu et al. 2018), StyleCLIP's identity network.

Weights are named as in TreB1eN/InsightFace_Pytorch's model_ir_se50.pth. Faces are cropped as in StyleCLIP.
"""

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

# Widths and numbers of blocks; the first of each halves the image.
STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))
REDUCTION = 16


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scales each channel by what all of them are on average."""
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if c_in != c_out:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
            _SqueezeExcitation(c_out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, c_in, h, w] to [n, c_out, h/stride, w/stride]."""
        y: torch.Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return y


class ArcFace(nn.Module):
    """Unit features [n, 512] of aligned faces."""

    config: ClassVar[dict[str, object]] = {"_class_name": "ArcFace"}

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        blocks, before = [], 64
        for width, count in STAGES:
            blocks += [_Block(before, width, 2), *(_Block(width, width, 1) for _ in range(count - 1))]
            before = width
        self.body = nn.Sequential(*blocks)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, h, w] in [-1, 1] to unit features.

        Averaged to 256 pixels a side, cropped to the face as StyleCLIP does, averaged to 112.
        """
        if images.shape[-1] != 256:
            images = F.adaptive_avg_pool2d(images, 256)
        face = F.adaptive_avg_pool2d(images[:, :, 35:223, 32:220], 112)
        return F.normalize(self.output_layer(self.body(self.input_layer(face))), dim=-1)
