"""A model's forward pass of rows that come from several callers: each row's bits, and the memory for all.

A row's bits depend on nothing but itself: where a number of rows of a shape first goes together, each also
runs alone, and they go together from then on only if the bits were the same (docs/decisions/010). Which
kernels run depends on shapes, not on numbers, so what holds once for these shapes holds.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from prometheus_client import Histogram

from sfumato.common.out_of_memory import OutOfMemory, rows_that_fit, within_memory

log = structlog.get_logger()

Tensors = tuple[torch.Tensor, ...]
Outcome = Tensors | Exception

BATCH_ROWS = Histogram(
    "sfumato_model_batch_rows", "Rows of one forward pass.", ["work"], buckets=(1, 2, 3, 4, 8, 16, 32, 64)
)

MAX_GPU_ROWS = 16  # of different callers in one forward
AGAIN_SECONDS = 60.0  # after which forwards may be twice as large again, where memory was short
MAX_TRIED = 4096  # shapes and numbers of rows whose trial is remembered; clients choose shapes


@dataclass(eq=False)
class Forward:
    """A model's forward pass, by itself or in an engine; only rows of one Forward go together.

    Attributes:
        name: what the work is, a label of the metrics: a word of the code, never of a client.
        run: tensors [rows, ...] to tensors [rows, ...].
        max_rows: of different callers in one forward, where that pays; 1: it does not.
        max_elements: of the first tensor, in one forward of several rows.
        batch_invariant: whether rows go together only where that does not show in their bits.
        same_bits: whether rows have the bits together that they have alone, by their shapes.
        halved: elements that were left when memory was short last, and halved_at: when, by time.monotonic.
    """

    name: str
    run: Callable[..., Tensors]
    max_rows: int
    max_elements: int = sys.maxsize
    batch_invariant: bool = True
    same_bits: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    halved: int = sys.maxsize
    halved_at: float = 0.0

    def rows_at_most(self, first: torch.Tensor) -> int:
        """Rows of one forward that there is memory for; first: [rows, ...], the first tensor. 1 or more."""
        return max(1, self._elements_at_most() // first[0].numel())

    def _elements_at_most(self) -> int:
        """max_elements; for some time after memory was short, less: so one forward fails in AGAIN_SECONDS."""
        doublings = min((time.monotonic() - self.halved_at) // AGAIN_SECONDS, 63)
        return min(self.max_elements, self.halved << int(doublings))

    def max_together(self, parts: Sequence[Tensors]) -> int:
        """How many of these, from the first on, one forward may take; all are of one shape."""
        first = parts[0][0]
        count = min(len(parts), max(1, min(self.max_rows, self.rows_at_most(first)) // len(first)))
        while self.same_bits.get(_shapes(parts[:count])) is False:
            count //= 2
        return count

    def warm(self, device: torch.device, *row: torch.Tensor) -> None:
        """Runs the row; on a GPU two of it, too, and bounds what goes together by the memory they took."""
        fit = rows_that_fit(device, lambda rows: self.run(*concatenated([row] * rows)))
        if fit is not None:
            self.max_elements = fit * row[0].numel()
            log.info("rows that memory has room for", work=self.name, row=list(row[0].shape[1:]), rows=fit)

    def _halve(self, num_rows: int, first: torch.Tensor) -> None:
        self.halved = min(self._elements_at_most(), num_rows * first[0].numel() // 2)
        self.halved_at = time.monotonic()
        rows = self.rows_at_most(first)
        log.warning("smaller forwards for a while", work=self.name, row=list(first.shape[1:]), rows=rows)

    def outcomes(self, parts: Sequence[Tensors]) -> list[Outcome]:
        """Each part's result, or why it has none.

        Args:
            parts: of one shape; the rows of each are one caller's. No part fails by its company.
        """
        if len(parts) == 1:
            return [self._alone(parts[0])]
        key = _shapes(parts)
        # Another thread may try the same meanwhile.
        known = self.same_bits.get(key) if self.batch_invariant else True
        together = None if known is False else self._together(parts)
        if together is None:
            half = len(parts) // 2
            return [*self.outcomes(parts[:half]), *self.outcomes(parts[half:])]
        if known:
            return together
        alone = [self._alone(part) for part in parts]
        same = all(map(_equal, alone, together))
        if len(self.same_bits) >= MAX_TRIED:
            self.same_bits.clear()
        self.same_bits[key] = same
        if not same:
            log.info("not together again: they get other bits", work=self.name, together=len(parts))
        return alone

    def _together(self, parts: Sequence[Tensors]) -> list[Outcome] | None:
        """None: it failed, and may go better in halves."""
        sizes = [len(part[0]) for part in parts]
        try:
            results = self._run(parts)
        except OutOfMemory:
            self._halve(sum(sizes), parts[0][0])
        except Exception as error:
            log.warning("failed together", work=self.name, together=len(parts), error=str(error)[:300])
        else:
            return list(zip(*(result.split(sizes) for result in results), strict=True))
        return None

    def _alone(self, part: Tensors) -> Outcome:
        """A part by itself; where memory is not enough for it, in halves."""
        rows = len(part[0])
        try:
            return self._run([part])
        except OutOfMemory as error:
            if rows == 1:
                return error
        except Exception as error:
            return error
        self._halve(rows, part[0])
        halves = [self._alone(half) for half in split(part, -(-rows // 2))]
        failed = [half for half in halves if isinstance(half, Exception)]
        return failed[0] if failed else concatenated([half for half in halves if isinstance(half, tuple)])

    def _run(self, parts: Sequence[Tensors]) -> Tensors:
        results = within_memory(self.name, lambda: self.run(*concatenated(parts)))
        BATCH_ROWS.labels(self.name).observe(sum(len(part[0]) for part in parts))
        return results


def torch_rows(device: torch.device) -> int:
    """Forward.max_rows of a model that torch runs."""
    # On a CPU torch picks its kernels' blocking by the number of rows, and bits with it.
    return 1 if device.type == "cpu" else MAX_GPU_ROWS


def concatenated(parts: Sequence[Tensors]) -> Tensors:
    """The rows of all, tensor by tensor."""
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def split(tensors: Tensors, num_rows: int) -> list[Tensors]:
    """Parts of so many rows; the last may have less."""
    return list(zip(*(tensor.split(num_rows) for tensor in tensors), strict=True))


def _shapes(parts: Sequence[Tensors]) -> tuple[Any, ...]:
    """Of parts that are alike, which is what selects kernels."""
    return (len(parts), *((tensor.shape, tensor.dtype) for tensor in parts[0]))


def _equal(a: Outcome, b: Outcome) -> bool:
    return isinstance(a, tuple) and isinstance(b, tuple) and all(map(torch.equal, a, b))
