"""StyleGAN2's generator as the decoder of a VAE (Karras et al. 2020; Kingma and Welling 2014).

On a CPU an adversary teaches too slowly: after 17 minutes and 23,000 images it had not got to faces. So an
encoder q(z | x) learns beside the generator,

    |G(z) - x|^2 + 0.1 |G(z) - x|_1 + beta KL(q(z | x) | N(0, 1)),  z ~ q(z | x),

which suits a few hundred characters: some dozen nats tell their images apart.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sfumato.common.stylegan2 import StyleGAN2
from sfumato.common.stylegan2_layers import GAIN, EqualLinear, blur_kernel
from sfumato.trainer.batches import to_pixels
from sfumato.trainer.loop import Schedule, train
from sfumato.trainer.portraits import portraits
from sfumato.trainer.reconstruction import psnr, reconstruction_loss

SIZE, CHANNELS, LATENT = 64, (128, 96, 64, 32, 16), 128
MAPPING_LAYERS = 2  # as NVlabs' automatic settings have it below 1024 pixels
KL = 1e-4  # beta, where the squared error is a mean over pixel values


class EqualConv(nn.Module):
    """Convolution with equalised learning rate; stride 2 blurs first (Karras et al. 2020, appendix B)."""

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


class Encoder(nn.Module):
    """q(z | x), of the blocks of StyleGAN2's discriminator.

    Args:
        channels: of each resolution, 4 pixels first, as the generator's.
        d: length of z.
    """

    def __init__(self, channels: Sequence[int], d: int) -> None:
        super().__init__()
        down = list(channels)[::-1]
        self.body = nn.Sequential(EqualConv(3, down[0], 1), *(_Block(a, b) for a, b in pairwise(down)))
        self.head = nn.Sequential(EqualLinear(down[-1] * 16, 2 * d, act=True), EqualLinear(2 * d, 2 * d))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, 3, size, size] in [-1, 1] to mean and log deviation of z, [n, d] each."""
        mean, log_std = self.head(self.body(images).flatten(1)).float().chunk(2, 1)
        return mean, log_std.clamp(-6, 2)


class Trained(nn.Module):
    """Generator and encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = StyleGAN2(SIZE, CHANNELS, LATENT, MAPPING_LAYERS)
        self.encoder = Encoder(CHANNELS, LATENT)

    def reconstruct(self, z: torch.Tensor) -> torch.Tensor:
        """G(z), with new noise in every layer."""
        stylegan = self.generator
        styles = stylegan.styles(stylegan.spread(stylegan.mapping(z)))
        return stylegan.synthesis(styles, torch.default_generator).float()

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Of uint8 images [n, 3, 64, 64]."""
        pixels = to_pixels(images)
        mean, log_std = self.encoder(pixels)
        decoded = self.reconstruct(mean + log_std.exp() * torch.randn_like(mean))
        divergence = (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).sum(1).mean()
        return reconstruction_loss(decoded, pixels) + KL * divergence


@torch.inference_mode()
def psnr_of(trained: Trained, images: torch.Tensor) -> float:
    """Mean PSNR in dB of G(E(x)) for uint8 images."""
    mean, _ = trained.encoder(to_pixels(images))
    return psnr(trained.reconstruct(mean), images)


def train_stylegan2(data: Path, domain: str, path: Path, schedule: Schedule, seed: int, batch: int) -> None:
    """Trains, or goes on training, and prints the PSNR of new portraits at each checkpoint."""
    torch.manual_seed(seed)
    trained = Trained()
    images, _ = next(iter(portraits(data, domain, (seed + 1,), 64, 0, 1, workers=0)))

    def batches(first: int, rank: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return portraits(data, domain, (seed, rank), batch, first, schedule.num_steps)

    def report(step: int) -> str:
        return f"stylegan2-{domain} step {step}: PSNR {psnr_of(trained, images):.2f} dB"

    # Equalised weights are of size 1: Adam, as StyleGAN2 has it, and a rate for so large weights.
    optimizer = torch.optim.Adam(trained.parameters(), schedule.learning_rate, betas=(0.9, 0.99))
    train(
        f"stylegan2-{domain}", trained, path, schedule, batches,
        lambda item, step: trained.loss(item[0]), report, optimizer,
    )  # fmt: skip
