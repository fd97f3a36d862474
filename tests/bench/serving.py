"""Running services under measurement: clients that time themselves, sums of metrics, cores."""

import asyncio
import math
import os
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from sfumato_client import AsyncClient
from sfumato_client.stack import Service, Stack
from tests.bench.mixed import Request


@dataclass(frozen=True)
class Served:
    """What a set of requests took.

    Attributes:
        seconds: from the first arrival to the last image.
        latencies: of each request, from its arrival, in seconds.
        ended: when each image came, in seconds from some time.
    """

    seconds: float
    latencies: list[float]
    ended: list[float] = field(default_factory=list)

    @property
    def images_per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def steady_images_per_second(self, num_clients: int) -> float:
        """Without the first and the last image of each client, between which all of them are at work."""
        first, last = self.ended[num_clients - 1], self.ended[-num_clients - 1]
        return (len(self.ended) - 2 * num_clients) / (last - first)

    def percentile_ms(self, q: float) -> float:
        return percentile_ms(self.latencies, q)


def percentile_ms(seconds: Sequence[float], q: float) -> float:
    """The q-th percentile, 0 to 100, in ms."""
    return round(1000 * float(np.percentile(list(seconds), q)), 1)


async def served(
    target: str, requests: Sequence[Request], at_a_time: int, arrivals: Sequence[float]
) -> Served:
    """
    Args:
        requests: one image each.
        at_a_time: that the services work on; the others wait in the order of arrival. 1: first come, first
            served.
        arrivals: when each request comes, in seconds from the start; its latency counts from then on.
    """
    turn = asyncio.Semaphore(at_a_time)  # wakes those who wait in order
    start = time.perf_counter()

    async def latency(client: AsyncClient, request: Request, arrival: float) -> float:
        await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
        async with turn:
            await client.generate(request.prompt, **request.options)
        return time.perf_counter() - start - arrival

    async with AsyncClient(target) as client:
        pairs = zip(requests, arrivals, strict=True)
        latencies = await asyncio.gather(*(latency(client, request, arrival) for request, arrival in pairs))
    return Served(time.perf_counter() - start, list(latencies))


async def closed_loop(target: str, num_clients: int, requests: Sequence[Request]) -> Served:
    """Clients that each ask for their next image when they have the last, until all requests are made."""
    waiting = list(reversed(requests))
    latencies: list[float] = []
    ended: list[float] = []
    start = time.perf_counter()

    async def ask(client: AsyncClient) -> None:
        while waiting:
            request, begun = waiting.pop(), time.perf_counter()
            await client.generate(request.prompt, **request.options)
            ended.append(time.perf_counter())
            latencies.append(ended[-1] - begun)

    async with AsyncClient(target) as client:
        await asyncio.gather(*(ask(client) for _ in range(num_clients)))
    return Served(time.perf_counter() - start, latencies, ended)


def totals(stack: Stack) -> dict[str, float]:
    """All metrics of all services, added up by "name", or "name/" and its work, code or stage."""
    found: dict[str, float] = {}
    for service in stack.services:
        with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics") as response:
            text = response.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.endswith("_bucket") or not math.isfinite(sample.value):
                    continue
                labels = (sample.labels.get(label) for label in ("work", "code", "stage"))
                key = "/".join([sample.name, *filter(None, labels)])
                found[key] = found.get(key, 0.0) + sample.value
    return found


def growth(before: dict[str, float], after: dict[str, float], key: str) -> float:
    """Of one of `totals`."""
    return after.get(key, 0.0) - before.get(key, 0.0)


def mean_of(before: dict[str, float], after: dict[str, float], name: str, label: str = "") -> float:
    """What a histogram of `totals` saw in between, on average; label: "/unet", say."""
    count = growth(before, after, f"{name}_count{label}")
    return growth(before, after, f"{name}_sum{label}") / count


def mean_ms(before: dict[str, float], after: dict[str, float], name: str, label: str = "") -> float:
    """The same, of seconds, in ms."""
    return round(1000 * mean_of(before, after, name, label), 3)


def pin(service: Service, core: int) -> None:
    """Keeps all threads of a service, those to come too, on one core."""
    for thread in os.listdir(f"/proc/{service.process.pid}/task"):
        os.sched_setaffinity(int(thread), {core})
