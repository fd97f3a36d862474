"""Work on a model's threads: its metrics, its context, its turn."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import REGISTRY

from sfumato.common import tracing
from sfumato.common.work import run


def sample(name: str, work: str) -> float:
    return REGISTRY.get_sample_value(name, {"work": work}) or 0.0


async def test_waiting_and_running_are_measured_apart() -> None:
    running, free = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = asyncio.create_task(run(pool, "first", lambda: running.set() or free.wait()))
        second = asyncio.create_task(run(pool, "second", int))
        while not running.is_set() or sample("sfumato_model_queued", "second") < 1:
            await asyncio.sleep(0.01)
        both = time.perf_counter()
        await asyncio.sleep(0.3)
        freed = time.perf_counter()
        free.set()
        await asyncio.gather(first, second)
        done = time.perf_counter()
    assert sample("sfumato_model_wait_seconds_sum", "second") >= freed - both
    assert sample("sfumato_model_run_seconds_sum", "first") >= freed - both
    assert sample("sfumato_model_run_seconds_sum", "second") <= done - freed  # without the wait
    assert sample("sfumato_model_queued", "first") == sample("sfumato_model_queued", "second") == 0


async def test_work_that_fails_is_measured_too() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        await run(pool, "failing", lambda: 1 / 0)
    assert sample("sfumato_model_run_seconds_count", "failing") == 1
    assert sample("sfumato_model_queued", "failing") == 0


async def test_what_is_logged_on_the_thread_has_the_requests_id() -> None:
    with ThreadPoolExecutor(1) as pool, tracing.continued("test", "mine", ""):
        assert await run(pool, "ids", tracing.request_id.get) == "mine"


async def test_cancelled_before_its_turn_it_never_runs() -> None:
    free, ran = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        first = asyncio.create_task(run(pool, "first", free.wait))
        second = asyncio.create_task(run(pool, "dropped", lambda: ran.append(1)))
        while sample("sfumato_model_queued", "dropped") < 1:
            await asyncio.sleep(0.001)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        free.set()
        await first
    assert not ran
    assert sample("sfumato_model_run_seconds_count", "dropped") == 0
