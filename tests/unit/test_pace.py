"""What is known of the time that steps take, and what a deadline allows."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator

import pytest

from sfumato.common.errors import DeadlineExceeded
from sfumato.gateway.pace import RATE_SECONDS, WINDOW_SECONDS, Pace, until

KEY = (8, 8, "cfg")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_refused_before_something_was_measured() -> None:
    Pace(Clock()).check([(KEY, 1000)], 1_000_000, 0.001)


def test_an_estimate_is_of_the_quickest_step_of_its_size_and_kind() -> None:
    pace = Pace(Clock())
    for seconds in (0.3, 0.1, 0.2):
        pace.add_steps(KEY, 1, seconds, 2)
    pace.add_steps((16, 16, "cfg"), 1, 0.01, 2)
    pace.check([(KEY, 10)], 0, 1.01)
    with pytest.raises(DeadlineExceeded) as error:
        pace.check([(KEY, 10)], 0, 0.99)
    assert "leaves 0.99 s" in error.value.message
    assert "estimated 1 s" in error.value.message
    assert "10 steps of 0.1 s" in error.value.message


def test_what_waits_before_counts_by_the_measured_rate() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(10):
        clock.now += RATE_SECONDS / 10
        pace.add_steps(KEY, 2, 0.2, 10)
    assert pace.row_steps_per_second() == pytest.approx(200 / RATE_SECONDS)
    pace.check([(KEY, 1)], 100, 0.1 + 100 / 100 + 0.01)
    with pytest.raises(DeadlineExceeded, match="1 s of waiting"):
        pace.check([(KEY, 1)], 100, 0.1 + 100 / 100 - 0.01)


def test_steps_of_a_load_that_has_passed_keep_nobody_out() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.add_steps(KEY, 1, 5.0, 2)
    clock.now += 0.9 * WINDOW_SECONDS
    with pytest.raises(DeadlineExceeded):
        pace.check([(KEY, 10)], 0, 1.0)
    clock.now += 1.2 * WINDOW_SECONDS
    pace.check([(KEY, 10)], 0, 1.0)


def test_sampling_stops_early_enough_for_the_slowest_decode() -> None:
    pace = Pace(Clock())
    for seconds in (0.1, 0.4, 0.2):
        pace.add_decode(seconds)
    assert pace.reserve_seconds(2, 10.0) > 2 * 0.4


async def ticking(closed: list[bool]) -> AsyncGenerator[int]:
    try:
        for number in range(100):
            await asyncio.sleep(0 if number < 3 else 60)
            yield number
    finally:
        closed.append(True)


async def test_items_come_until_the_end_and_the_next_is_given_up() -> None:
    closed: list[bool] = []
    seen = [number async for number, _ in until(ticking(closed), time.monotonic() + 0.3)]
    assert seen == [0, 1, 2]
    assert closed == [True]


async def test_without_an_end_all_items_come() -> None:
    async def three() -> AsyncGenerator[int]:
        for number in range(3):
            yield number

    assert [number async for number, _ in until(three(), math.inf)] == [0, 1, 2]
