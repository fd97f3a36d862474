"""Which rows share a forward pass, of every model.

A thread that is free takes its share of the rows that wait, of whichever callers, as one forward: rows
that find the threads idle go at once, at the least latency; rows that had to wait go together. They run in
the order of arrival. A row's bits depend on nothing but itself: where a number of rows of a shape first
goes together, each also runs alone, and they go together from then on only if the bits were the same
(docs/decisions/010).

Rows of one caller that always go together, as a GPU's of one step, are a bundle, and treated like a row.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from prometheus_client import Histogram

from sfumato.common.work import QUEUED, RUN_SECONDS, WAIT_SECONDS

log = structlog.get_logger()

Tensors = tuple[torch.Tensor, ...]

BATCH_ROWS = Histogram(
    "sfumato_model_batch_rows", "Rows of one forward pass.", ["work"], buckets=(1, 2, 3, 4, 8, 16, 32, 64)
)

MAX_TRIED = 4096  # shapes and numbers of rows whose trial is remembered; clients choose shapes


@dataclass(eq=False)
class Forward:
    """A model's forward pass, by itself or in an engine; only rows of one Forward go together.

    Attributes:
        name: what the work is, a label of the metrics: a word of the code, never of a client.
        run: tensors [rows, ...] to tensors [rows, ...]. Which kernels run depends on shapes, not on numbers.
        max_rows: of different callers in one forward, where that pays; 1: it does not.
        max_elements: of the first tensor, in one forward of several rows.
        same_bits: whether rows have the bits in company that they have alone, by shapes and number of rows.
    """

    name: str
    run: Callable[..., Tensors]
    max_rows: int
    max_elements: int
    same_bits: dict[tuple[Any, ...], bool] = field(default_factory=dict)


@dataclass(eq=False)
class Bundle:
    """A caller's row, or rows that go together, with the future of the result."""

    forward: Forward
    tensors: Tensors  # [rows, ...] each
    future: "asyncio.Future[Tensors]"
    queued: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.shapes = tuple((tensor.shape, tensor.dtype) for tensor in self.tensors)

    def goes_with(self, other: "Bundle") -> bool:
        """Whether one forward can take both."""
        return self.forward is other.forward and self.shapes == other.shapes


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

        Cancelled before its turn, a row never runs.
        """
        rows = zip(*(tensor.split(1) for tensor in tensors), strict=True)
        results = await asyncio.gather(*(self.bundle(forward, *row) for row in rows))
        return _concatenated(results)

    async def bundle(self, forward: Forward, *tensors: torch.Tensor) -> Tensors:
        """As `rows`, of rows that go together whoever else comes along."""
        future: asyncio.Future[Tensors] = asyncio.get_running_loop().create_future()
        with QUEUED.labels(forward.name).track_inprogress():
            self._waiting.append(Bundle(forward, tensors, future))
            # When all rows that came with this one are there: a step's own two go apart.
            asyncio.get_running_loop().call_soon(self._start)
            return await future

    def _start(self) -> None:
        """Gives each free thread its share of what the first one can go with."""
        while self._num_free and self._waiting:
            first = self._waiting[0]
            alike = [one for one in self._waiting if one.goes_with(first) and not one.future.done()]
            rows, elements = len(first.tensors[0]), first.tensors[0].numel()
            most = max(1, min(first.forward.max_rows // rows, first.forward.max_elements // elements))
            batch = alike[: min(most, -(-len(alike) // self._num_free))]
            self._waiting = deque(one for one in self._waiting if one not in batch and not one.future.done())
            if batch:
                self._num_free -= 1
                task = asyncio.create_task(self._forward(batch))
                self._forwards.add(task)
                task.add_done_callback(self._forwards.discard)

    async def _forward(self, batch: list[Bundle]) -> None:
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, _measured, batch)
        except asyncio.CancelledError:  # the queue was closed
            for one in batch:
                one.future.cancel()
            raise
        except Exception as error:
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)
        else:
            for one, result in zip(batch, results, strict=True):
                if not one.future.done():
                    one.future.set_result(result)
        finally:
            self._num_free += 1
            self._start()

    def close(self) -> None:
        """Drops what waits."""
        for one in self._waiting:
            one.future.cancel()
        self._waiting.clear()


def _measured(batch: list[Bundle]) -> list[Tensors]:
    """On a thread: the results, and their times in the metrics."""
    name, started = batch[0].forward.name, time.perf_counter()
    for one in batch:
        WAIT_SECONDS.labels(name).observe(started - one.queued)
    try:
        return _results(batch)
    finally:
        RUN_SECONDS.labels(name).observe(time.perf_counter() - started)


def _results(batch: list[Bundle]) -> list[Tensors]:
    """In one forward, where that gives each the bits that it has alone."""
    forward, key = batch[0].forward, (*batch[0].shapes, len(batch))
    if len(batch) > 1 and forward.same_bits.get(key, True):
        together = _one_forward(batch)
        if key in forward.same_bits:
            return together
        alone = [_one_forward([one])[0] for one in batch]
        same = all(map(_equal, alone, together))
        if len(forward.same_bits) >= MAX_TRIED:
            forward.same_bits.clear()
        forward.same_bits[key] = same
        if not same:
            log.info("apart from now on: together they give other bits", work=forward.name, of=len(batch))
        return alone
    return [_one_forward([one])[0] for one in batch]


def _one_forward(batch: list[Bundle]) -> list[Tensors]:
    forward, sizes = batch[0].forward, [len(one.tensors[0]) for one in batch]
    results = forward.run(*_concatenated([one.tensors for one in batch]))
    BATCH_ROWS.labels(forward.name).observe(sum(sizes))
    return list(zip(*(result.split(sizes) for result in results), strict=True))


def _concatenated(parts: list[Tensors]) -> Tensors:
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def _equal(a: Tensors, b: Tensors) -> bool:
    return all(map(torch.equal, a, b))
