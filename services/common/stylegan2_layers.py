"""StyleGAN2's layers (Karras et al. 2020, section 2 and appendix B), with rosinality's parameter names."""

import torch
from torch import nn
from torch.nn import functional as F

BLUR = (1.0, 3.0, 3.0, 1.0)
GAIN = 2**0.5  # of the leaky ReLU, which keeps the variance


def blur_kernel(gain: float = 1.0) -> torch.Tensor:
    """[4, 4], sums to `gain`."""
    kernel = torch.outer(torch.tensor(BLUR), torch.tensor(BLUR))
    return kernel / kernel.sum() * gain


class PixelNorm(nn.Module):
    """Scales each row to mean square 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, d] to [n, d]."""
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class EqualLinear(nn.Module):
    """Linear, its weights kept at unit variance and scaled at run time (equalised learning rate)."""

    def __init__(
        self, d_in: int, d_out: int, bias: float = 0.0, lr_multiplier: float = 1.0, act: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((d_out,), bias / lr_multiplier))
        self.scale, self.lr_multiplier, self.act = lr_multiplier * d_in**-0.5, lr_multiplier, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, d_in] to [n, d_out]."""
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr_multiplier)
        return F.leaky_relu(y, 0.2) * GAIN if self.act else y


class Blur(nn.Module):
    """The kernel of an upsampling by two, as a buffer, where rosinality has it."""

    kernel: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_kernel(4.0))

    def forward(self, x: torch.Tensor, stride: int = 1, padding: int = 1) -> torch.Tensor:
        """Filters each channel; stride 2: upsamples by two on the way."""
        kernel = self.kernel.expand(x.shape[1], 1, -1, -1)
        if stride == 1:
            return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])
        return F.conv_transpose2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by the style (equations 1 to 3).

    Scaling the input and dividing the output by the norm of the modulated weights is the same as
    modulating the weights for each image, and needs one convolution for the batch.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, d: int, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, c_out, c_in, kernel, kernel))
        self.modulation = EqualLinear(d, c_in, bias=1.0)
        self.scale, self.demodulate = (c_in * kernel**2) ** -0.5, demodulate
        self.blur = Blur() if up else None

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """[n, c_in, h, w] and [n, c_in] to [n, c_out, h or 2h, w or 2w]."""
        weight = self.weight[0] * self.scale
        x = x * style[:, :, None, None]
        if self.blur is not None:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            norm = (style.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()
            x = x * norm[:, :, None, None]
        return x


class _Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class _Activate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int, d: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(c_in, c_out, 3, d, up)
        self.noise, self.activate = _Noise(), _Activate(c_out)

    def forward(self, x: torch.Tensor, style: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """noise: [n or 1, 1, h, w]."""
        x = self.conv(x, style) + self.noise.weight * noise
        return F.leaky_relu(x + self.activate.bias[:, None, None], 0.2) * GAIN


class ToRGB(nn.Module):
    """1x1 without demodulation, added to the upsampled image of the scale below."""

    def __init__(self, c_in: int, d: int, up: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv(c_in, 3, 1, d, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.upsample = Blur() if up else None

    def forward(self, x: torch.Tensor, style: torch.Tensor, below: torch.Tensor | None) -> torch.Tensor:
        """[n, c_in, h, w] to [n, 3, h, w]."""
        rgb: torch.Tensor = self.conv(x, style) + self.bias
        return rgb if self.upsample is None or below is None else rgb + self.upsample(below, stride=2)
