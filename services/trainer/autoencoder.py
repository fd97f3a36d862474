"""Stage 1: the autoencoder, 64x64x3 to 8x8x16 (latent diffusion, Rombach et al. 2022, section 3.1).

Squared error and a little absolute error, KL weight 1e-6. No adversary: the artwork is flat, so the
blur that an adversary would hide is small.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from sfumato.trainer.batches import stream, to_pixels
from sfumato.trainer.loop import Schedule, train
from sfumato.trainer.reconstruction import psnr, reconstruction_loss

KL_WEIGHT = 1e-6
LATENT_CHANNELS = 16


def make_autoencoder() -> Any:
    """Untrained, in diffusers' layout."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 128), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=LATENT_CHANNELS,
        norm_num_groups=8, sample_size=64,
    )  # fmt: skip


def loss_of(model: Any, images: torch.Tensor) -> torch.Tensor:
    """For uint8 images [n, 3, 64, 64]."""
    pixels = to_pixels(images).to(memory_format=torch.channels_last)
    posterior = model.encode(pixels).latent_dist
    decoded = model.decode(posterior.sample()).sample.float()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return reconstruction_loss(decoded, pixels) + KL_WEIGHT * kl


@torch.inference_mode()
def psnr_of(model: Any, images: torch.Tensor) -> float:
    """Mean over images of the PSNR in dB of encode (mean) and decode, after rounding to 8 bits."""
    decoded = model.decode(model.encode(to_pixels(images)).latent_dist.mode()).sample
    return psnr(decoded, images)


def train_autoencoder(data: Path, path: Path, schedule: Schedule, seed: int, batch: int) -> None:
    """Trains, or goes on training, and prints held-out PSNR at each checkpoint."""
    torch.manual_seed(seed)
    model = make_autoencoder().to(memory_format=torch.channels_last)
    held_out, _ = next(iter(stream(data, seed + 1, 128, 0, 1, workers=0, held_out=True)))
    train(
        "autoencoder", model, path, schedule,
        lambda first, rank: stream(data, (seed, rank), batch, first, schedule.num_steps),
        lambda item, step: loss_of(model, item[0]),
        lambda step: f"autoencoder step {step}: held-out PSNR {psnr_of(model, held_out):.2f} dB",
    )  # fmt: skip
