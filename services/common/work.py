"""Work of a model's threads: in order of arrival, and measured."""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from prometheus_client import Gauge, Histogram

from sfumato.common.metrics import SECONDS_BUCKETS
from sfumato.common.out_of_memory import within_memory

T = TypeVar("T")

QUEUED = Gauge("sfumato_model_queued", "Work that waits for a model's thread or runs on one.", ["work"])
WAIT_SECONDS = Histogram(
    "sfumato_model_wait_seconds", "Seconds that work waited for a thread.", ["work"], buckets=SECONDS_BUCKETS
)
RUN_SECONDS = Histogram(
    "sfumato_model_run_seconds", "Seconds that work ran on a thread.", ["work"], buckets=SECONDS_BUCKETS
)


async def run(executor: Executor, work: str, function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, from a thread of the executor.

    Args:
        executor: the model's threads.
        work: what it is, a label of the metrics: a word of the code, never of a client.
        function, arguments: what to call. Cancelled before its turn, it never runs.

    Raises:
        OutOfMemory: there was none for it.
    """
    queued = time.perf_counter()

    def measured() -> T:
        started = time.perf_counter()
        WAIT_SECONDS.labels(work).observe(started - queued)
        try:
            return within_memory(work, function, *arguments)
        finally:
            RUN_SECONDS.labels(work).observe(time.perf_counter() - started)

    with QUEUED.labels(work).track_inprogress():
        # In the call's context: what is logged on the thread has its ids.
        in_context = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(executor, in_context, measured)
