"""Memory of every service over time."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import psutil

from sfumato_client.stack import Stack

SAMPLE_SECONDS = 1.0
Samples = dict[str, list[tuple[float, int]]]  # by service: seconds since the start, resident bytes


@contextmanager
def watched(stack: Stack) -> Iterator[Samples]:
    """Samples while the block runs."""
    samples: Samples = {service.name: [] for service in stack.services}
    processes = {service.name: psutil.Process(service.process.pid) for service in stack.services}
    stop, start = threading.Event(), time.monotonic()

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            for name, process in processes.items():
                if process.is_running():
                    samples[name].append((time.monotonic() - start, process.memory_info().rss))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def quarters(samples: Samples) -> dict[str, dict[str, float]]:
    """By service: medians of the quarters of the time in MiB, and the last over the second."""
    found = {}
    for name, points in samples.items():
        rss = [value / 2**20 for _, value in points]
        if len(rss) < 4:
            continue
        edges = [round(i * len(rss) / 4) for i in range(5)]
        medians = [statistics.median(rss[a:b]) for a, b in pairwise(edges)]
        found[name] = {f"quarter_{i}_mib": round(value, 1) for i, value in enumerate(medians, 1)}
        found[name]["last_over_second"] = round(medians[3] / medians[1], 4)
    return found
