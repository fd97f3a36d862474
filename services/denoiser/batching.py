"""Which work shares a forward pass.

A step of a trajectory is one forward of its own rows, in the order of arrival. Every trajectory has at
most one step waiting, so arrival order is fair, and a step's bits depend on nothing but itself: not on
how many other trajectories are open.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from prometheus_client import Counter, Gauge, Histogram

from sfumato.denoiser.engine_torch import TorchUNet

ROWS = Counter("sfumato_denoiser_rows", "Rows that went through the UNet.")
QUEUED = Gauge("sfumato_denoiser_queued_steps", "Steps that wait for a forward or are in one.")
STEP_SECONDS = Histogram(
    "sfumato_denoiser_step_seconds",
    "Seconds of one step in the denoiser, waiting included.",
    buckets=(0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1, 3, 10),
)


class StepQueue:
    """Runs steps one after another on the model's thread."""

    def __init__(self, unet: TorchUNet) -> None:
        self._unet = unet
        self._executor = ThreadPoolExecutor(1, "unet")

    async def noise_pred(
        self, latents: torch.Tensor, timestep: float, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """As TorchUNet.noise_pred. Cancelled before its turn, it never runs."""
        loop = asyncio.get_running_loop()
        with QUEUED.track_inprogress(), STEP_SECONDS.time():
            result = await loop.run_in_executor(
                self._executor, self._unet.noise_pred, latents, timestep, prompt_embeds
            )
        ROWS.inc(len(prompt_embeds))
        return result

    def close(self) -> None:
        """Drops what waits and ends the thread."""
        self._executor.shutdown(cancel_futures=True)
