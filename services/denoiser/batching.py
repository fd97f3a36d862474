"""Which work shares a forward pass.

On a CPU every forward runs on one thread, as many at a time as there are cores: small forwards lose more at
OpenMP's barriers than they gain from a second thread. A thread that is free takes its share of the rows that
wait, of whichever trajectories and at whichever timesteps, as one forward: rows that find the threads idle go
one by one, at the least latency; rows that had to wait go together (docs/decisions/010). On a GPU a step's
rows are one forward. Triton gets every row for itself, and puts together what waits there.

Steps run in the order of arrival; a trajectory has at most one waiting, so that order is fair. A row's bits
depend on nothing but itself: where a number of rows of a shape first goes together, each also runs alone, and
rows go together from then on only if the bits were the same.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
import torch
from prometheus_client import Counter, Gauge, Histogram

from sfumato.common import tracing
from sfumato.common.metrics import SECONDS_BUCKETS
from sfumato.common.work import QUEUED as WORK_QUEUED
from sfumato.common.work import RUN_SECONDS, WAIT_SECONDS, run
from sfumato.denoiser.conditioning import Conditioning, concatenated
from sfumato.denoiser.engine_torch import Unet

T = TypeVar("T")
log = structlog.get_logger()

MAX_AREA = 64 * 64  # latent pixels of a forward; larger rows gain nothing from company, and take memory

ROWS = Counter("sfumato_denoiser_rows", "Rows that went through the UNet.")
BATCH_ROWS = Histogram(
    "sfumato_denoiser_batch_rows", "Rows of one forward pass.", buckets=(1, 2, 3, 4, 8, 16, 32, 64)
)
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


@dataclass
class Row:
    """One row that waits for its prediction."""

    unet: Unet
    latents: torch.Tensor  # [1, C, h, w]
    timestep: float
    conditioning: Conditioning  # one row
    future: "asyncio.Future[torch.Tensor]"
    queued: float = field(default_factory=time.perf_counter)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What rows of one forward have in common: the UNet, and every shape."""
        shapes = ((name, tensor.shape) for name, tensor in self.conditioning.tensors.items())
        return (id(self.unet), self.latents.shape, *shapes)


class StepQueue:
    """Runs steps in order of arrival on the model's threads, whichever adapter's UNet they are of."""

    def __init__(self, num_workers: int) -> None:
        """num_workers: forwards at a time; 1 where the device is parallel itself."""
        self._rows_apart = num_workers > 1
        # One thread each, whatever other executors of the process set for theirs.
        self._executor = ThreadPoolExecutor(num_workers, "unet", torch.set_num_threads, (1,))
        self._num_free = num_workers
        self._waiting: deque[Row] = deque()
        self._forwards: set[asyncio.Task[None]] = set()
        self._invariant: dict[tuple[Any, ...], bool] = {}  # by kind and number of rows

    async def noise_pred(
        self, unet: Unet, latents: torch.Tensor, timestep: float, conditioning: Conditioning
    ) -> torch.Tensor:
        """As Unet.noise_pred. Cancelled before its turn, it never runs."""
        rows = len(conditioning)
        with tracing.span("unet.step", rows=rows), QUEUED.track_inprogress(), STEP_SECONDS.time():
            if not self._rows_apart:
                result = await run(self._executor, "unet", unet.noise_pred, latents, timestep, conditioning)
                _count(rows)
                return result
            parts = [
                self._prediction(unet, latents, timestep, conditioning[row : row + 1]) for row in range(rows)
            ]
            results = await asyncio.gather(*parts)
        return torch.cat(results) if len(results) > 1 else results[0]

    async def _prediction(
        self, unet: Unet, latents: torch.Tensor, timestep: float, conditioning: Conditioning
    ) -> torch.Tensor:
        future: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        with WORK_QUEUED.labels("unet").track_inprogress():
            self._waiting.append(Row(unet, latents, timestep, conditioning, future))
            # When all rows of all steps that came with this one are there: a step's own two go apart.
            asyncio.get_running_loop().call_soon(self._start)
            return await future

    def _start(self) -> None:
        """Gives each free thread its share of the rows that the first one can go with."""
        while self._num_free and self._waiting:
            first = self._waiting[0]
            alike = [row for row in self._waiting if row.kind == first.kind and not row.future.done()]
            most = max(1, min(first.unet.max_rows_together, MAX_AREA // first.latents[0, 0].numel()))
            batch = alike[: min(most, -(-len(alike) // self._num_free))]
            taken = {id(row) for row in batch}
            self._waiting = deque(
                row for row in self._waiting if id(row) not in taken and not row.future.done()
            )
            if batch:
                self._num_free -= 1
                task = asyncio.create_task(self._forward(batch))
                self._forwards.add(task)
                task.add_done_callback(self._forwards.discard)

    async def _forward(self, batch: list[Row]) -> None:
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, batch)
        except asyncio.CancelledError:  # the queue was closed
            for row in batch:
                row.future.cancel()
            raise
        except Exception as error:
            for row in batch:
                if not row.future.done():
                    row.future.set_exception(error)
        else:
            for row, result in zip(batch, results, strict=True):
                if not row.future.done():
                    row.future.set_result(result)
        finally:
            self._num_free += 1
            self._start()

    def _run(self, batch: list[Row]) -> list[torch.Tensor]:
        """On a thread: the rows in one forward, where that gives each the bits that it has alone."""
        started = time.perf_counter()
        for row in batch:
            WAIT_SECONDS.labels("unet").observe(started - row.queued)
        try:
            return self._together(batch)
        finally:
            RUN_SECONDS.labels("unet").observe(time.perf_counter() - started)

    def _together(self, batch: list[Row]) -> list[torch.Tensor]:
        key = (*batch[0].kind, len(batch))
        if len(batch) > 1 and self._invariant.get(key, True):
            together = _one_forward(batch)
            if key in self._invariant:
                return together
            # Which kernels run depends on shapes, not on numbers: what holds once for these shapes holds.
            alone = [_one_forward([row])[0] for row in batch]
            same = all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
            self._invariant[key] = same
            if not same:
                log.info("rows of this shape run apart: together they give other bits", rows=len(batch))
            return alone
        return [_one_forward([row])[0] for row in batch]

    async def run(self, num_rows: int, work: Callable[..., T], *arguments: Any) -> T:
        """Other work on the model, in its turn. Cancelled before its turn, it never runs."""
        with tracing.span("unet.step", rows=num_rows), QUEUED.track_inprogress(), STEP_SECONDS.time():
            result = await run(self._executor, "unet_attention", work, *arguments)
        _count(num_rows)
        return result

    def close(self) -> None:
        """Drops what waits and ends the threads."""
        for row in self._waiting:
            row.future.cancel()
        self._waiting.clear()
        self._executor.shutdown(cancel_futures=True)


def _one_forward(rows: list[Row]) -> list[torch.Tensor]:
    """Each row's prediction [1, C, h, w]."""
    latents = torch.cat([row.latents for row in rows])
    timesteps = torch.tensor([row.timestep for row in rows])
    conditioning = concatenated([row.conditioning for row in rows])
    result = rows[0].unet.noise_preds(latents, timesteps, conditioning)
    _count(len(rows))
    return list(result.split(1))


def _count(num_rows: int) -> None:
    """Counts one forward."""
    ROWS.inc(num_rows)
    BATCH_ROWS.observe(num_rows)
