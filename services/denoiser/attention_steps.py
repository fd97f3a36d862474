"""Steps that look at attention, as work of the step queue: one row a forward, on every device."""

import asyncio
from collections.abc import Sequence

import torch

from sfumato.denoiser.attention import AttentionUNet, LayerMaps
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import Unet
from sfumato.denoiser.probes import Control
from sfumato.denoiser.step_queue import StepQueue


async def step_with_attention(
    queue: StepQueue,
    plain: Unet,
    unet: AttentionUNet,
    latents: torch.Tensor,
    timestep: float,
    conditioning: Conditioning,
    attention_rows: Sequence[int],
) -> tuple[torch.Tensor, list[list[LayerMaps]]]:
    """A step's predictions [rows, C, h, w], and the maps of the rows asked for.

    Args:
        queue: runs the forwards.
        plain: runs the rows that nobody looks at.
        unet: runs the rows asked for.
        latents: float32 [1, C, h, w].
        timestep: of the noise schedule.
        conditioning: one row for each prediction.
        attention_rows: indices into the conditioning.
    """

    async def row(index: int) -> tuple[torch.Tensor, list[LayerMaps]]:
        part = conditioning[index : index + 1]
        if index in attention_rows:
            return await queue.run(1, unet.noise_pred_and_maps, latents, timestep, part)
        return await queue.noise_pred(plain, latents, timestep, part), []

    results = await asyncio.gather(*(row(index) for index in range(len(conditioning))))
    return torch.cat([noise_pred for noise_pred, _ in results]), [results[i][1] for i in attention_rows]


async def edit_step(
    queue: StepQueue,
    plain: Unet,
    unet: AttentionUNet,
    latents: torch.Tensor,
    timestep: float,
    conditioning: Conditioning,
    control: Control,
    replace_cross: bool,
    replace_self: bool,
) -> tuple[torch.Tensor, list[list[LayerMaps]]]:
    """A step of an edit: [4, C, h, w] (null text for source and target, source, target), and both's maps.

    Attention is steered in the conditional rows alone, as in the paper's code.

    Args:
        queue, plain, unet: as above.
        latents: float32 [2, C, h, w]: source, target.
        timestep: of the noise schedule.
        conditioning: three rows: null text, source, target.
        control, replace_cross, replace_self: as AttentionUNet.edit has them.
    """
    null = conditioning[:1]
    null_source, null_target, (pair, maps) = await asyncio.gather(
        queue.noise_pred(plain, latents[:1], timestep, null),
        queue.noise_pred(plain, latents[1:], timestep, null),
        queue.run(2, unet.edit, latents, timestep, conditioning[1:], control, replace_cross, replace_self),
    )
    return torch.cat([null_source, null_target, pair]), maps
