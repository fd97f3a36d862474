"""What the denoiser serves by the Open Inference Protocol: the UNet, rows of any latents and timesteps."""

import asyncio
import math
from collections.abc import Sequence

import torch

from sfumato.common.inference_tensors import Model, Tensor
from sfumato.denoiser.conditioning import Conditioning, needed
from sfumato.denoiser.config import MAX_TOKENS, DenoiserSettings
from sfumato.denoiser.engine_torch import Unet
from sfumato.denoiser.step_queue import StepQueue


def open_models(unet: Unet, queue: StepQueue, settings: DenoiserSettings) -> list[Model]:
    """The table; unet: what runs it."""
    config = unet.config

    async def noise_pred(
        wanted: Sequence[str], latents: torch.Tensor, timestep: torch.Tensor, **given: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        # A step for each row: its bits do not depend on those beside it.
        rows = zip(latents.split(1), timestep[:, 0].tolist(), Conditioning(**given).split(), strict=True)
        return {
            "noise_pred": torch.cat(await asyncio.gather(*(queue.noise_pred(unet, *row) for row in rows)))
        }

    rows, channels, width = settings.max_rows, config.in_channels, config.cross_attention_dim
    return [
        Model(
            name="unet",
            inputs=[
                Tensor("latents", "FP32", (-1, channels, -1, -1), rows * channels * settings.max_latent_area),
                Tensor("timestep", "FP32", (-1, 1), rows),
                Tensor("prompt_embeds", "FP32", (-1, -1, width), rows * MAX_TOKENS * width),
                *(
                    Tensor(name, "FP32", (-1, *shape), rows * math.prod(shape))
                    for name, shape in needed(config).items()
                ),
            ],
            outputs=[Tensor("noise_pred", "FP32", (-1, config.out_channels, -1, -1))],
            infer=noise_pred,
            max_batch_size=rows,
        )
    ]
