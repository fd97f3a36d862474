"""The UNet's vector-Jacobian product with respect to its latents, queued like forward rows.

A step that will be differentiated keeps each row's forward pass, so that its noise prediction and the
gradient are of one linearisation point and no row is computed twice. A row at a time, in order of arrival,
on a thread of its own that has all cores: unlike a step's two plain rows, there is no second row to give
the other cores to.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch

from sfumato.common import tracing
from sfumato.common.gradients import Linearised
from sfumato.common.work import run
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import TorchUNet


class GradientQueue:
    """Runs differentiable rows and their backward passes in order of arrival."""

    def __init__(self, num_threads: int) -> None:
        """num_threads: CPU threads of a pass. Always as many, so that a row's bits depend on nothing else."""
        self._executor = ThreadPoolExecutor(1, "unet-gradient", torch.set_num_threads, (num_threads,))

    async def linearise(
        self, unet: TorchUNet, latents: torch.Tensor, timestep: float, conditioning: Conditioning
    ) -> list[Linearised]:
        """One kept pass for each row of conditioning; arguments as in Unet.noise_pred."""
        passes = (
            run(self._executor, "unet_kept", unet.linearise, latents, timestep, row)
            for row in conditioning.split()
        )
        with tracing.span("unet.kept_step", rows=len(conditioning)):
            return list(await asyncio.gather(*passes))

    async def vjp(self, rows: list[Linearised], noise_pred_gradient: torch.Tensor) -> torch.Tensor:
        """Sum over the rows of gradient[row] . d noise_pred[row] / d latents: [1, C, h, w]."""
        vectors = noise_pred_gradient.split(1)
        passes = (
            run(self._executor, "unet_gradient", row.vjp, vector)
            for row, vector in zip(rows, vectors, strict=True)
        )
        total = torch.zeros_like(rows[0].input, device="cpu")
        with tracing.span("unet.gradient", rows=len(rows)):
            for gradient in await asyncio.gather(*passes):
                total += gradient
        return total

    def close(self) -> None:
        """Drops what waits and ends the thread."""
        self._executor.shutdown(cancel_futures=True)
