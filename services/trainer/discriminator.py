"""StyleGAN2's residual discriminator (Karras et al. 2020, section 4.1), and augmentation before it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from sfumato.common import augmentations as augment
from sfumato.common.stylegan2_layers import GAIN, EqualLinear, blur_kernel

GROUP = 4  # of the minibatch deviation


class EqualConv(nn.Module):
    """Convolution with equalised learning rate; stride 2 blurs first."""

    kernel: torch.Tensor

    def __init__(self, c_in: int, c_out: int, size: int, stride: int = 1, act: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, size, size))
        self.bias = nn.Parameter(torch.zeros(c_out)) if act else None
        self.scale, self.stride, self.act = (c_in * size**2) ** -0.5, stride, act
        self.register_buffer("kernel", blur_kernel(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, c_in, h, w] to [n, c_out, h / stride, w / stride]."""
        size, padding = self.weight.shape[-1], self.weight.shape[-1] // 2
        if self.stride == 2:
            pad = 2 if size == 3 else 1
            kernel = self.kernel.expand(x.shape[1], 1, -1, -1)
            x, padding = F.conv2d(x, kernel, padding=pad, groups=x.shape[1]), 0
        x = F.conv2d(x, self.weight * self.scale, self.bias, self.stride, padding)
        return F.leaky_relu(x, 0.2) * GAIN if self.act else x


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(EqualConv(c_in, c_in, 3), EqualConv(c_in, c_out, 3, stride=2))
        self.skip = EqualConv(c_in, c_out, 1, stride=2, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.convs(x) + self.skip(x)) / 2**0.5


class Discriminator(nn.Module):
    """Images [n, 3, size, size] to logits [n].

    Args:
        channels: of each resolution, 4 pixels first, as the generator's.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        down = list(channels)[::-1]
        self.body = nn.Sequential(EqualConv(3, down[0], 1), *(_Block(a, b) for a, b in pairwise(down)))
        self.last = EqualConv(down[-1] + 1, down[-1], 3)
        self.head = nn.Sequential(EqualLinear(down[-1] * 16, down[-1], act=True), EqualLinear(down[-1], 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Real is above 0."""
        x = self.body(images)
        group = GROUP if len(x) % GROUP == 0 else 1
        deviation = (x.view(group, -1, *x.shape[1:]).var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        spread = deviation.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        logits: torch.Tensor = self.head(self.last(torch.cat([x, spread], 1)).flatten(1))
        return logits[:, 0]


def augmented(images: torch.Tensor, p: float, generator: torch.Generator) -> torch.Tensor:
    """Adaptive discriminator augmentation (Karras et al. 2020b): geometry and colour, with probability p."""
    if p <= 0:
        return images
    n = len(images)
    matrices = augment.flip(generator, n, p / 2)
    matrices = matrices @ augment.affine(generator, n, degrees=15, shift=0.1, p=p, scale=(0.8, 1.25))
    warped = augment.warp(images, matrices)
    jittered = augment.colour_jitter(warped * 0.5 + 0.5, generator, 0.2, 0.2, 0.2, 0.1, p=p)
    return jittered * 2 - 1
