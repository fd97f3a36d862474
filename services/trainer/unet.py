"""Stage 3: the denoiser, on latents encoded once (Ho et al. 2020, equation 14; Rombach et al. 2022).

10 % of the captions become the empty text, for classifier-free guidance (Ho and Salimans 2022). The loss
is that of v (Salimans and Ho 2022, section 4) with min-SNR weighting (Hang et al. 2023, section 3.4): the
error of x0 weighs min(SNR, 5) + 1. With the noise's own error, which weighs x0's by SNR, which thing goes
left was not learnt from 340,000 samples: only the last tenth of the timesteps leaves it open. The text
encoder starts as CLIP's text tower and learns with the UNet, as in latent diffusion (Rombach et al. 2022,
section 3.3): CLIP's loss alone hardly asks for the order of words.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from sfumato.trainer.autoencoder import LATENT_CHANNELS, make_autoencoder
from sfumato.trainer.batches import stream, to_pixels
from sfumato.trainer.checkpoint import average_of
from sfumato.trainer.clip import TEXT_WIDTH
from sfumato.trainer.layout import LayoutHeads
from sfumato.trainer.loop import Schedule, gather, start_processes, train
from sfumato.trainer.tokens import tokenizer_of

CAPTION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0
CAPTIONS_PER_SCENE = 3
LAYOUT_WEIGHT = 0.02
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
    """Writes mean and deviation of each scene's latents, scaled to unit variance, and its captions' tokens.

    Shapes: mean, std float16 [scenes, C, h, w]; tokens int16 [scenes, captions, tokens]; scaling_factor [1].
    """
    model = make_autoencoder()
    model.load_state_dict(average_of(autoencoder))
    model.eval()
    encode = tokenizer_of(tokenizer)
    rank, num_processes = start_processes()
    share = -(-num_scenes // 64 // num_processes)
    scenes = stream(data, seed, 64, rank * share, (rank + 1) * share, num_captions=CAPTIONS_PER_SCENE)
    means, deviations, tokens = [], [], []
    for images, captions in tqdm(scenes, "latents", share, mininterval=5, disable=rank > 0):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(to_pixels(images)).latent_dist
        means.append(posterior.mean.float())
        deviations.append(posterior.std.float())
        tokens.append(encode(captions).int().unflatten(0, (-1, CAPTIONS_PER_SCENE)))
    mean, std, ids = (gather(torch.cat(parts).contiguous()) for parts in (means, deviations, tokens))
    scale = 1 / mean.std()
    if rank == 0:
        tensors = {"mean": (mean * scale).half(), "std": (std * scale).half(), "tokens": ids.short()}
        save_file({**tensors, "scaling_factor": scale.reshape(1)}, path)


def training_batches(
    latents: dict[str, torch.Tensor], seed: tuple[int, int], batch: int, first: int, last: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(mean, std, tokens of one caption) of random scenes; batch k depends on the seed and k alone."""
    for index in range(first, last):
        generator = torch.Generator().manual_seed((seed[0] * 1_000_003 + index) * 64 + seed[1])
        rows = torch.randint(len(latents["mean"]), (batch,), generator=generator)
        pick = torch.randint(CAPTIONS_PER_SCENE, (batch,), generator=generator)
        tokens = latents["tokens"][rows, pick].long()
        yield latents["mean"][rows].float(), latents["std"][rows].float(), tokens


def train_unet(
    latents_path: Path, text_encoder: Any, tokenize: Callable[[list[str]], torch.Tensor], path: Path,
    schedule: Schedule, seed: int, batch: int,
) -> None:  # fmt: skip
    """Trains, or goes on training, both models. text_encoder: transformers' CLIPTextModel."""
    torch.manual_seed(seed)
    unet = make_unet()
    # 64 rows, both ways: 0.93 s of CPU so, 1.41 with torch's fused attention, 1.08 with its plain one.
    unet.set_attn_processor(AttnProcessor())
    layout = LayoutHeads(TEXT_WIDTH, text_encoder.config.vocab_size, tokenize)
    model = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder.train(), "layout": layout})
    noise_scheduler: Any = DDIMScheduler(**NOISE_SCHEDULE)
    alphas_cumprod = noise_scheduler.alphas_cumprod
    latents, empty_tokens = load_file(latents_path), tokenize([""])

    def loss_of(item: tuple[torch.Tensor, torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        mean, std, tokens = item
        x0 = mean + std * torch.randn_like(mean)
        noise = torch.randn_like(x0)
        timesteps = torch.randint(1000, (len(x0),))
        dropped = torch.rand(len(x0)) < CAPTION_DROPOUT
        tokens = torch.where(dropped[:, None], empty_tokens, tokens)
        hidden_states = model["text_encoder"](tokens)[0]
        noisy = noise_scheduler.add_noise(x0, noise, timesteps)
        noise_pred = model["unet"](noisy, timesteps, hidden_states).sample
        snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
        weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
        errors = F.mse_loss(noise_pred.float(), noise, reduction="none").flatten(1).mean(1)
        return (weight * errors).mean() + LAYOUT_WEIGHT * layout.loss(hidden_states, tokens)

    def batches(first: int, rank: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        return training_batches(latents, (seed, rank), batch, first, schedule.num_steps)

    train("unet", model, path, schedule, batches, loss_of)
