"""What metrics, spans and log ids cost a request: processor time of each piece, spans off and on.

    python -m tests.bench.observability_cost

Spans are exported to the tests' stand-in for a collector.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sfumato.common import tracing, work
from sfumato.common.metrics import REQUEST_SECONDS
from sfumato.gateway.stages import stage
from tests.collector import running_collector

REPEATS = 5_000


def microseconds(function: Callable[[], object]) -> float:
    """Processor time of one call, the least of five runs."""
    times = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(REPEATS):
            function()
        times.append(time.process_time() - start)
    return min(times) / REPEATS * 1e6


async def work_microseconds() -> tuple[float, float]:
    """A round trip to a model's thread: bare, and as measured work."""
    loop, times = asyncio.get_running_loop(), []
    with ThreadPoolExecutor(1) as pool:

        async def bare() -> None:
            await loop.run_in_executor(pool, int)

        async def measured() -> None:
            await work.run(pool, "bench", int)

        for call in (bare, measured):
            runs = []
            for _ in range(5):
                start = time.process_time()
                for _ in range(2000):
                    await call()
                runs.append((time.process_time() - start) / 2000 * 1e6)
            times.append(min(runs))
    return times[0], times[1]


def in_span() -> None:
    with tracing.span("unet.step", rows=2):
        pass


def in_stage() -> None:
    with stage("decode"):
        pass


def report(state: str) -> None:
    print(f"spans {state}: span {microseconds(in_span):.2f} us, stage {microseconds(in_stage):.2f} us, "
          f"headers {microseconds(tracing.headers):.2f} us")  # fmt: skip


def main() -> None:
    """Prints the figures."""
    seconds = REQUEST_SECONDS.labels("/bench", "OK")
    print(f"histogram {microseconds(lambda: seconds.observe(0.1)):.2f} us")
    bare, measured = asyncio.run(work_microseconds())
    print(f"round trip to a thread: bare {bare:.1f} us, measured {measured:.1f} us")
    tracing.begin("/bench/Off", {})
    report("off")
    with running_collector() as collector:
        os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = str(20 * REPEATS)
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{collector.target}"
        send_last = tracing.configure("bench")
        tracing.begin("/bench/On", {})
        report("on")
        send_last()


if __name__ == "__main__":
    main()
