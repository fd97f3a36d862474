"""Work that finds no memory: told from other failures, bounded before it happens, survived."""

from collections.abc import Callable
from typing import TypeVar

import structlog
import torch
from prometheus_client import Counter

from sfumato.common.errors import ResourceExhausted
from sfumato.common.lost_gpu import end_if_gpu_is_lost
from sfumato.common.model_memory import free_bytes

T = TypeVar("T")

log = structlog.get_logger()

OUT_OF_MEMORY = Counter("sfumato_model_out_of_memory", "Work that found no memory.", ["work"])

# torch's allocator on a CPU, ONNX Runtime's, CUDA's libraries, C++'s.
SIGNS = ("can't allocate memory", "Failed to allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
USABLE_SHARE = 0.8  # of a GPU's free memory: the rest is for fragments, and kept graphs


class OutOfMemory(ResourceExhausted):
    """There was no memory for it, also alone; for less of it there may be."""

    def __init__(self, work: str) -> None:
        advice = "Ask for a smaller size, or again when less is under way."
        super().__init__(f"size of {work}", "what this service has memory for at present", "more", advice)


def within_memory(work: str, function: Callable[..., T], *arguments: object) -> T:
    """The function's result.

    Args:
        work: what it is, a label of the metric.
        function, arguments: what to call.

    Raises:
        OutOfMemory: instead of what torch, ONNX Runtime or numpy raises for lack of memory; what the function
            held is free again.
    """
    try:
        return function(*arguments)
    except Exception as error:
        if not is_out_of_memory(error):
            end_if_gpu_is_lost()
            raise
        log.warning("out of memory", work=work, error=str(error)[:300])
    OUT_OF_MEMORY.labels(work).inc()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    # Here, where the error's traceback no longer holds the function's tensors.
    raise OutOfMemory(work)


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is one of the many errors that say so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return not isinstance(error, OutOfMemory) and any(sign in str(error) for sign in SIGNS)


def rows_that_fit(device: torch.device, run_rows: Callable[[int], object]) -> int | None:
    """How many rows one forward has memory for, by its peaks with one row and with two; runs it once or more.

    Args:
        device: where it runs.
        run_rows: runs one forward of so many rows.

    Returns:
        None on a CPU, whose memory is the whole machine's: there the service's bounds in pixels hold.
    """
    run_rows(1)
    if device.type != "cuda":
        return None
    run_rows(2)  # libraries take their workspaces at the first time
    one, two = (_peak_bytes(device, run_rows, rows) for rows in (1, 2))
    return rows_within(one, two, free_bytes(device))


def rows_within(one: int, two: int, free: int) -> int:
    """Rows for which USABLE_SHARE of the free bytes is enough, by the bytes of one and of two; 1 or more."""
    each = max(two - one, 1)
    return max(1, 1 + (int(USABLE_SHARE * free) - one) // each)


def _peak_bytes(device: torch.device, run_rows: Callable[[int], object], rows: int) -> int:
    """Most that torch holds during the forward, over what it holds before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_rows(rows)
    return torch.cuda.max_memory_allocated(device) - before
