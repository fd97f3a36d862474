"""The VQGAN's autoencoder, 64x64x3 to 16x16 codes of 512 (van den Oord et al. 2017; Esser et al. 2021).

No adversary and no perceptual network: the artwork is flat, and squared error keeps it sharp enough; the card
says so. The codebook follows the encoder by exponential averages (van den Oord et al., appendix A.1) rather
than by gradient, and entries that nothing uses restart at random latents of the batch, so that it does not
collapse.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import VQModel
from torch import nn
from torch.nn import functional as F

from sfumato.trainer.batches import stream, to_pixels
from sfumato.trainer.checkpoint import average_of
from sfumato.trainer.loop import Schedule, train
from sfumato.trainer.reconstruction import psnr, reconstruction_loss

NUM_CODES, CODE_CHANNELS = 512, 16
COMMITMENT = 0.25
CODEBOOK_DECAY = 0.99
LEAST_USE = 0.05  # of an average entry's use; below it an entry restarts


def make_vqgan() -> Any:
    """Untrained, in diffusers' layout, f = 4."""
    return VQModel(
        block_out_channels=(32, 64, 96), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=CODE_CHANNELS,
        num_vq_embeddings=NUM_CODES, norm_num_groups=8, sample_size=64,
    )  # fmt: skip


class Trained(nn.Module):
    """The model beside the running statistics of its codebook."""

    use: torch.Tensor
    sums: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.model = make_vqgan()
        self.model.quantize.embedding.weight.requires_grad_(False).normal_()
        self.register_buffer("use", torch.ones(NUM_CODES))
        self.register_buffer("sums", self.model.quantize.embedding.weight.detach().clone())

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruction and commitment for uint8 images [n, 3, 64, 64]; moves the codebook."""
        pixels = to_pixels(images)
        z = self.model.encode(pixels).latents.float()
        codebook = self.model.quantize.embedding.weight
        rows = z.permute(0, 2, 3, 1).reshape(-1, CODE_CHANNELS)
        codes = torch.cdist(rows.detach(), codebook).argmin(1)
        nearest = codebook[codes].view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        decoded = self.model.decode(z + (nearest - z).detach(), force_not_quantize=True).sample.float()
        commitment = F.mse_loss(z, nearest.detach())
        self.follow(rows.detach(), codes)
        return reconstruction_loss(decoded, pixels) + COMMITMENT * commitment

    @torch.no_grad()
    def follow(self, rows: torch.Tensor, codes: torch.Tensor) -> None:
        """Moves each entry to the average of the latents that chose it; restarts those that none chose."""
        chosen = F.one_hot(codes, NUM_CODES).float()
        statistics = torch.cat([chosen.sum(0)[:, None], chosen.T @ rows], 1)
        fresh = rows[torch.randint(len(rows), (NUM_CODES,))]
        if dist.is_initialized():
            dist.all_reduce(statistics)
            dist.broadcast(fresh, 0)
        self.use.lerp_(statistics[:, 0], 1 - CODEBOOK_DECAY)
        self.sums.lerp_(statistics[:, 1:], 1 - CODEBOOK_DECAY)
        average = statistics[:, 0].sum() / NUM_CODES
        dead = self.use < LEAST_USE * average
        self.use[dead] = average
        self.sums[dead] = fresh[dead] * average
        self.model.quantize.embedding.weight.copy_(self.sums / self.use[:, None])


@torch.inference_mode()
def figures(model: Any, images: torch.Tensor) -> tuple[float, int]:
    """Mean PSNR in dB of the reconstructions of uint8 images, and how many codes they use."""
    z = model.encode(to_pixels(images)).latents
    quantised, _, (_, _, codes) = model.quantize(z)
    decoded = model.decode(quantised, force_not_quantize=True).sample
    return psnr(decoded, images), len(codes.unique())


def train_vqgan(data: Path, path: Path, schedule: Schedule, seed: int, batch: int) -> None:
    """Trains, or goes on training, and prints held-out PSNR and codes used at each checkpoint."""
    torch.manual_seed(seed)
    trained = Trained()
    held_out, _ = next(iter(stream(data, seed + 1, 128, 0, 1, workers=0, held_out=True)))

    def report(step: int) -> str:
        decibels, used = figures(trained.model, held_out)
        return f"vqgan step {step}: held-out PSNR {decibels:.2f} dB, {used} of {NUM_CODES} codes used"

    train(
        "vqgan", trained, path, schedule,
        lambda first, rank: stream(data, (seed, rank), batch, first, schedule.num_steps),
        lambda item, step: trained.loss(item[0]), report,
    )  # fmt: skip


def export_vqgan(path: Path, family: Path) -> None:
    """The averaged weights, float16; the codebook is the latest, which fits the encoder's average best."""
    trained = Trained()
    trained.load_state_dict(average_of(path))
    trained.model.half().save_pretrained(family / "vqgan", safe_serialization=True)
