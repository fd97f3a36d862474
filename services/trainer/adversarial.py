"""StyleGAN2 by adversarial training (Karras et al. 2020; little data: Karras et al. 2020b).

Non-saturating logistic loss, R1 every 16 steps, style mixing 0.9, an average of the generator,
adaptive augmentation with target 0.6. Left out: path length regularisation, for its cost on a CPU.
Discriminator and generator share one optimiser, whose steps skip parameters without gradient, so that one
checkpoint holds all.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from sfumato.common.stylegan2 import StyleGAN2
from sfumato.trainer.batches import to_pixels
from sfumato.trainer.discriminator import Discriminator, augmented
from sfumato.trainer.loop import Checkpoint, Schedule, average_over_processes, learning_rate, start_processes

SIZE, CHANNELS, LATENT = 64, (128, 96, 64, 32, 16), 128
MAPPING_LAYERS = 2  # as NVlabs' automatic settings have it below 1024 pixels
# The paper's gamma of 10 is for 1024 pixels. NVlabs' rule, 0.0002 size^2 / batch, says 0.05 here; little data
# wants more than that.
R1_GAMMA, R1_EVERY = 0.5, 16
MIXING = 0.9
ADA_TARGET, ADA_EVERY, ADA_IMAGES = 0.6, 4, 100_000  # images from p = 0 to 1

Batches = Callable[[int, int], Iterable[tuple[torch.Tensor, torch.Tensor]]]


class Gan(nn.Module):
    """Both networks, and the augmentation's probability."""

    p: torch.Tensor
    sign: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.generator = StyleGAN2(SIZE, CHANNELS, LATENT, MAPPING_LAYERS)
        self.discriminator = Discriminator(CHANNELS)
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("sign", torch.zeros(()))  # running mean of sign(D(real))


def make_gan_optimizer(gan: Gan, rate: float) -> torch.optim.Optimizer:
    """Adam, betas 0 and 0.99; the discriminator's as lazy R1 wants them (appendix B)."""
    lazy = R1_EVERY / (R1_EVERY + 1)
    mapping = list(gan.generator.style.parameters())
    return torch.optim.Adam(
        [
            {"params": [*mapping, *_others(gan.generator, mapping)], "betas": (0.0, 0.99), "share": 1.0},
            {"params": list(gan.discriminator.parameters()), "betas": (0.0, 0.99**lazy), "share": lazy},
        ],
        lr=rate,
    )


def _others(module: nn.Module, known: list[nn.Parameter]) -> list[nn.Parameter]:
    ids = {id(parameter) for parameter in known}
    return [parameter for parameter in module.parameters() if id(parameter) not in ids]


def fakes(gan: Gan, n: int, generator: torch.Generator) -> torch.Tensor:
    """Images of random z; with probability 0.9 another z from a random layer on."""
    stylegan = gan.generator
    first, second = (stylegan.mapping(torch.randn(n, LATENT, generator=generator)) for _ in range(2))
    layer = int(torch.randint(1, stylegan.num_layers, (), generator=generator))
    mixed = float(torch.rand((), generator=generator)) < MIXING
    later = torch.arange(stylegan.num_layers)[None, :, None] >= layer
    w_plus = torch.where(later & mixed, stylegan.spread(second), stylegan.spread(first))
    return stylegan.synthesis(stylegan.styles(w_plus), generator)


def discriminator_loss(gan: Gan, real: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
    """Logistic loss, every 16 steps with R1; follows the sign of D(real)."""
    p = float(gan.p)
    with torch.no_grad():
        fake = fakes(gan, len(real), generator)
    regularised = step % R1_EVERY == 0
    views = augmented(real, p, generator).requires_grad_(regularised)
    real_logits = gan.discriminator(views)
    fake_logits = gan.discriminator(augmented(fake, p, generator))
    loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
    gan.sign.lerp_(real_logits.detach().sign().mean(), 0.05)
    if regularised:
        gradient = torch.autograd.grad(real_logits.sum(), views, create_graph=True)[0]
        loss = loss + R1_GAMMA / 2 * R1_EVERY * gradient.square().sum((1, 2, 3)).mean()
    return loss


def generator_loss(gan: Gan, n: int, generator: torch.Generator) -> torch.Tensor:
    """Non-saturating logistic loss."""
    return F.softplus(-gan.discriminator(augmented(fakes(gan, n, generator), float(gan.p), generator))).mean()


def gan_step(
    gan: Gan, optimizer: torch.optim.Optimizer, images: torch.Tensor, step: int, rank: int, seconds: float
) -> tuple[dict[str, float], float]:
    """One step of both networks on uint8 images; the losses, and the seconds averaged over processes."""
    generator = torch.Generator().manual_seed(step * 1009 + rank)
    losses = {}
    for name, network in (("d", gan.discriminator), ("g", gan.generator)):
        gan.requires_grad_(False)
        network.requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        loss = (
            discriminator_loss(gan, to_pixels(images), step, generator)
            if name == "d"
            else generator_loss(gan, len(images), generator)
        )
        loss.backward()
        seconds = average_over_processes(list(network.parameters()), seconds)
        optimizer.step()
        losses[name] = loss.item()
    if step % ADA_EVERY == 0:
        change = ADA_EVERY * len(images) / ADA_IMAGES
        gan.p.add_(change if float(gan.sign) > ADA_TARGET else -change).clamp_(0, 0.8)
    return losses, seconds


def train_gan(name: str, path: Path, schedule: Schedule, seed: int, batches: Batches) -> None:
    """Trains, or goes on training, until the schedule ends; batches(n, rank) from step n on."""
    rank, _ = start_processes()
    torch.manual_seed(seed)
    gan = Gan()
    optimizer = make_gan_optimizer(gan, schedule.learning_rate)
    checkpoint = Checkpoint(path, gan, optimizer)
    checkpoint.load()
    before, start = checkpoint.seconds, time.monotonic()
    saved = start
    bar = tqdm(
        batches(checkpoint.step, rank), name, total=schedule.num_steps, mininterval=5,
        initial=checkpoint.step, disable=rank > 0,
    )  # fmt: skip
    for images, _ in bar:
        rate = learning_rate(schedule, checkpoint.step, checkpoint.seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        now = before + time.monotonic() - start
        losses, checkpoint.seconds = gan_step(gan, optimizer, images, checkpoint.step, rank, now)
        checkpoint.step += 1
        checkpoint.update_average(schedule.ema_decay)
        shown = {**losses, "p": float(gan.p)}
        bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
        if rank == 0 and time.monotonic() - saved > schedule.checkpoint_seconds:
            saved = time.monotonic()
            checkpoint.save()
        if checkpoint.seconds >= schedule.max_seconds:
            break
    if rank == 0:
        checkpoint.save()
