"""The noise-aware CLIP f(z_t, t): CLIP's objective on noised latents (GLIDE: Nichol et al. 2021, 4.2).

The text tower is the family's own, frozen, so that its embeddings are those of clip/; timesteps are uniform.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from sfumato.common.noised_clip import NoisedImageEncoder
from sfumato.trainer.checkpoint import average_of
from sfumato.trainer.clip import make_clip
from sfumato.trainer.loop import Schedule, train
from sfumato.trainer.unet import NOISE_SCHEDULE, training_batches

MODEL: dict[str, int] = {"sample_size": 8, "width": 192, "layers": 6, "heads": 6}
REPORTED_TIMESTEPS = (0, 100, 250, 500, 750, 900)


class NoisedClip(torch.nn.Module):
    """The image tower and the temperature, which learn together."""

    def __init__(self, latent_channels: int, embed_dim: int, logit_scale: torch.Tensor) -> None:
        super().__init__()
        self.image = NoisedImageEncoder(in_channels=latent_channels, embed_dim=embed_dim, **MODEL)
        self.logit_scale = torch.nn.Parameter(logit_scale.detach().clone())


def add_noise(x0: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """sqrt(abar) x0 + sqrt(1 - abar) e (Ho et al. 2020, equation 4), e from torch's global generator."""
    scheduler: Any = DDIMScheduler(**NOISE_SCHEDULE)
    noisy: torch.Tensor = scheduler.add_noise(x0, torch.randn_like(x0), timesteps)
    return noisy


def train_noised_clip(
    latents_path: Path,
    clip_path: Path,
    num_tokens: int,
    path: Path,
    schedule: Schedule,
    seed: int,
    batch: int,
) -> None:
    """Trains, or goes on training, on the latents of the UNet's stage."""
    torch.manual_seed(seed)
    clip = make_clip(num_tokens)
    clip.load_state_dict(average_of(clip_path))
    clip.eval()
    latents = load_file(latents_path)
    channels, embed_dim = latents["mean"].shape[1], clip.text_projection.shape[1]
    model = NoisedClip(channels, embed_dim, clip.logit_scale)

    def loss_of(item: tuple[torch.Tensor, torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        mean, std, tokens = item
        timesteps = torch.randint(1000, (len(mean),))
        noisy = add_noise(mean + std * torch.randn_like(mean), timesteps)
        image_features = model.image(noisy, timesteps.float()).float()
        with torch.no_grad():
            text_features = clip.encode_text(tokens, normalize=True).float()
        logits = model.logit_scale.clamp(max=4.6052).exp() * image_features @ text_features.T
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def batches(first: int, rank: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        return training_batches(latents, (seed, rank), batch, first, schedule.num_steps)

    train("noised-clip", model, path, schedule, batches, loss_of)


@torch.inference_mode()
def recall_by_timestep(
    model: nn.Module, latents: torch.Tensor, text_features: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Noised latent to text retrieval among all given pairs, at each reported timestep."""
    recalls = {}
    for timestep in REPORTED_TIMESTEPS:
        torch.manual_seed(timestep)
        timesteps = torch.full((len(latents),), timestep)
        features = model(add_noise(latents, timesteps), timesteps.float())
        ranked = (features @ text_features.T).argsort(1, descending=True)
        hits = ranked == torch.arange(len(latents))[:, None]
        recalls[str(timestep)] = {f"recall@{k}": float(hits[:, :k].any(1).float().mean()) for k in (1, 5)}
    return recalls
