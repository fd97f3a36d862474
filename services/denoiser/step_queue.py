"""Steps of the UNet as rows of the row queue.

On a CPU every forward runs on one thread, as many at a time as there are cores: small forwards lose more at
OpenMP's barriers than they gain from a second thread. A step's rows are rows like any others there. On a GPU
they are one forward. Triton gets every row for itself, and puts together what waits there.

Steps run in the order of arrival; a trajectory has at most one waiting, so that order is fair.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from prometheus_client import Counter, Gauge, Histogram

from sfumato.common import tracing
from sfumato.common.batching import RowQueue
from sfumato.common.metrics import SECONDS_BUCKETS
from sfumato.common.work import run
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import Unet, inputs

T = TypeVar("T")

ROWS = Counter("sfumato_denoiser_rows", "Rows that went through the UNet.")
QUEUED = Gauge("sfumato_denoiser_queued_steps", "Steps that wait for a forward or are in one.")
STEP_SECONDS = Histogram(
    "sfumato_denoiser_step_seconds",
    "Seconds of one step in the denoiser, waiting included; its count is the steps done.",
    buckets=SECONDS_BUCKETS,
)

TRITON_CALLS = 16  # at a time; the forwards are the server's


def forwards_at_a_time(engine: str, device: torch.device, num_cores: int) -> int:
    """Rows that are on their way at one time; 1: a step's rows go together."""
    if engine == "triton":
        return TRITON_CALLS
    return num_cores if device.type == "cpu" else 1


class StepQueue:
    """Runs steps in order of arrival on the model's threads, whichever adapter's UNet they are of."""

    def __init__(self, num_workers: int) -> None:
        """num_workers: forwards at a time; 1 where the device is parallel itself."""
        # One thread each, whatever other executors of the process set for theirs.
        self._executor = ThreadPoolExecutor(num_workers, "unet", torch.set_num_threads, (1,))
        self._rows = RowQueue(self._executor, num_workers)
        self._put = self._rows.rows if num_workers > 1 else self._rows.bundle

    async def warm(self, unet: Unet, device: torch.device, latents: torch.Tensor, row: Conditioning) -> None:
        """As Forward.warm, on the model's thread."""
        await run(self._executor, "unet", unet.forward.warm, device, *inputs(latents, 1.0, row))

    async def noise_pred(
        self, unet: Unet, latents: torch.Tensor, timestep: float, conditioning: Conditioning
    ) -> torch.Tensor:
        """As Unet.noise_pred. Cancelled before its turn, it never runs."""
        rows = len(conditioning)
        with tracing.span("unet.step", rows=rows), QUEUED.track_inprogress(), STEP_SECONDS.time():
            (result,) = await self._put(unet.forward, *inputs(latents, timestep, conditioning))
        ROWS.inc(rows)
        return result

    async def run(self, num_rows: int, work: Callable[..., T], *arguments: Any) -> T:
        """Other work on the model, in its turn. Cancelled before its turn, it never runs."""
        with tracing.span("unet.step", rows=num_rows), QUEUED.track_inprogress(), STEP_SECONDS.time():
            result = await run(self._executor, "unet_attention", work, *arguments)
        ROWS.inc(num_rows)
        return result

    def close(self) -> None:
        """Drops what waits and ends the threads."""
        self._rows.close()
        self._executor.shutdown(cancel_futures=True)
