"""Which rows share a forward pass, of every model.

A thread that is free takes its share of the rows that wait, of whichever callers, as one forward: rows
that find the threads idle go at once, at the least latency; rows that had to wait go together
(docs/decisions/010). They run in the order of arrival.
"""

import asyncio
import time
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch

from sfumato.common.forwards import Forward, Outcome, Tensors, concatenated, split
from sfumato.common.work import QUEUED, RUN_SECONDS, WAIT_SECONDS


@dataclass(eq=False)
class Bundle:
    """A caller's row, or rows that go together, with the future of the result."""

    forward: Forward
    tensors: Tensors  # [rows, ...] each
    future: "asyncio.Future[Tensors]"
    call: "list[asyncio.Future[Tensors]]"  # of all that the caller's call is made of
    queued: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.shapes = tuple((tensor.shape, tensor.dtype) for tensor in self.tensors)

    def goes_with(self, other: "Bundle") -> bool:
        """Whether one forward can take both."""
        return self.forward is other.forward and self.shapes == other.shapes

    def fail(self, error: Exception) -> None:
        """The call fails, and what still waits of it never runs."""
        self.future.set_exception(error)
        for other in self.call:
            other.cancel()


class RowQueue:
    """Runs rows in order of arrival on the models' threads."""

    def __init__(self, executor: Executor, num_workers: int) -> None:
        """
        Args:
            executor: the models' threads, which may have other work too; the owner's to close.
            num_workers: forwards at a time.
        """
        self._executor = executor
        self._num_free = num_workers
        self._waiting: deque[Bundle] = deque()
        self._forwards: set[asyncio.Task[None]] = set()

    async def rows(self, forward: Forward, *tensors: torch.Tensor) -> Tensors:
        """The forward's tensors [rows, ...] for tensors [rows, ...]: each row's bits are those it has alone.

        Cancelled before its turn, or where another of these has failed, a row never runs.
        """
        return await self._all(forward, split(tensors, 1))

    async def bundle(self, forward: Forward, *tensors: torch.Tensor) -> Tensors:
        """As `rows`, of rows that go together whoever else comes along, as far as memory lets them."""
        return await self._all(forward, split(tensors, forward.rows_at_most(tensors[0])))

    async def _all(self, forward: Forward, parts: list[Tensors]) -> Tensors:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Tensors]] = [loop.create_future() for _ in parts]
        for part, future in zip(parts, futures, strict=True):
            self._waiting.append(Bundle(forward, part, future, futures))
        # When all rows that came with these are there: a step's own two go apart.
        loop.call_soon(self._start)
        with QUEUED.labels(forward.name).track_inprogress():
            return concatenated(await asyncio.gather(*futures))

    def _start(self) -> None:
        """Gives each free thread its share of what the first one can go with."""
        while self._num_free and self._waiting:
            first = self._waiting[0]
            alike = [one for one in self._waiting if one.goes_with(first) and not one.future.done()]
            share = alike[: -(-len(alike) // self._num_free)]
            batch = share and share[: first.forward.max_together([one.tensors for one in share])]
            self._waiting = deque(one for one in self._waiting if one not in batch and not one.future.done())
            if batch:
                self._num_free -= 1
                task = asyncio.create_task(self._forward(batch))
                self._forwards.add(task)
                task.add_done_callback(self._forwards.discard)

    async def _forward(self, batch: list[Bundle]) -> None:
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._executor, _measured, batch)
        except asyncio.CancelledError:  # the queue was closed
            for one in batch:
                one.future.cancel()
            raise
        except Exception as error:
            for one in batch:
                if not one.future.done():
                    one.fail(error)
        else:
            for one, outcome in zip(batch, outcomes, strict=True):
                if one.future.done():
                    continue
                if isinstance(outcome, Exception):
                    one.fail(outcome)
                else:
                    one.future.set_result(outcome)
        finally:
            self._num_free += 1
            self._start()

    def close(self) -> None:
        """Drops what waits."""
        for one in self._waiting:
            one.future.cancel()
        self._waiting.clear()


def _measured(batch: list[Bundle]) -> list[Outcome]:
    """On a thread: the outcomes, and their times in the metrics."""
    forward, started = batch[0].forward, time.perf_counter()
    for one in batch:
        WAIT_SECONDS.labels(forward.name).observe(started - one.queued)
    try:
        return forward.outcomes([one.tensors for one in batch])
    finally:
        RUN_SECONDS.labels(forward.name).observe(time.perf_counter() - started)
