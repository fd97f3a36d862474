"""Stage 3: the denoiser, on latents encoded once (Ho et al. 2020, equation 14; Rombach et al. 2022).

10 % of the captions become the empty text, for classifier-free guidance (Ho and Salimans 2022). The loss is
weighted by min(SNR, 5) / SNR (Hang et al. 2023, equation 7).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from sfumato.trainer.autoencoder import LATENT_CHANNELS, make_autoencoder
from sfumato.trainer.batches import stream, to_pixels
from sfumato.trainer.clip import TEXT_WIDTH
from sfumato.trainer.loop import Schedule, average_of, train
from sfumato.trainer.tokens import tokenizer_of

CAPTION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0
NOISE_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon",
}  # fmt: skip


def make_unet() -> Any:
    """Untrained, 11 M parameters, in diffusers' layout."""
    return UNet2DConditionModel(
        sample_size=8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=2,
        block_out_channels=(96, 160), down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


@torch.inference_mode()
def encode_latents(
    data: Path, autoencoder: Path, tokenizer: Path, path: Path, num_scenes: int, seed: int
) -> None:
    """Writes mean and deviation of each scene's latents, scaled to unit variance, and its tokens."""
    model = make_autoencoder()
    model.load_state_dict(average_of(autoencoder))
    model.eval()
    encode = tokenizer_of(tokenizer)
    means, deviations, tokens = [], [], []
    batches = -(-num_scenes // 64)
    for images, captions in tqdm(stream(data, seed, 64, 0, batches), "latents", batches, mininterval=5):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(to_pixels(images)).latent_dist
        means.append(posterior.mean.float())
        deviations.append(posterior.std.float())
        tokens.append(encode(captions).short())
    mean, std = torch.cat(means).contiguous(), torch.cat(deviations).contiguous()
    scale = 1 / mean.std()
    tensors = {"mean": (mean * scale).half(), "std": (std * scale).half(), "tokens": torch.cat(tokens)}
    save_file({**tensors, "scaling_factor": scale.reshape(1)}, path)


def training_batches(
    latents: dict[str, torch.Tensor], seed: int, batch: int, first: int, last: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(mean, std, tokens) of random scenes; batch k depends on the seed and k alone."""
    for index in range(first, last):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        rows = torch.randint(len(latents["mean"]), (batch,), generator=generator)
        yield latents["mean"][rows].float(), latents["std"][rows].float(), latents["tokens"][rows].long()


def train_unet(
    latents_path: Path, text_encoder: Any, empty_tokens: torch.Tensor, path: Path, schedule: Schedule,
    seed: int, batch: int,
) -> None:  # fmt: skip
    """Trains, or goes on training. text_encoder: token ids to hidden states, frozen."""
    torch.manual_seed(seed)
    model = make_unet()
    noise_scheduler: Any = DDIMScheduler(**NOISE_SCHEDULE)
    alphas_cumprod = noise_scheduler.alphas_cumprod
    latents = load_file(latents_path)

    def loss_of(item: tuple[torch.Tensor, torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        mean, std, tokens = item
        x0 = mean + std * torch.randn_like(mean)
        noise = torch.randn_like(x0)
        timesteps = torch.randint(1000, (len(x0),))
        dropped = torch.rand(len(x0)) < CAPTION_DROPOUT
        tokens = torch.where(dropped[:, None], empty_tokens, tokens)
        with torch.no_grad():
            hidden_states = text_encoder(tokens)
        noise_pred = model(noise_scheduler.add_noise(x0, noise, timesteps), timesteps, hidden_states).sample
        snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
        weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
        errors = F.mse_loss(noise_pred.float(), noise, reduction="none").flatten(1).mean(1)
        return (weight * errors).mean()

    train(
        "unet", model, path, schedule,
        lambda first: training_batches(latents, seed, batch, first, schedule.num_steps), loss_of,
    )  # fmt: skip
