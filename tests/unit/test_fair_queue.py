"""Who starts next where requests wait, and what is refused."""

import asyncio
import math
from typing import Any

import pytest

from sfumato.common.errors import ResourceExhausted
from sfumato.gateway.fair_queue import AGING_SECONDS, Demand, FairQueue, Limits

LIMITS = Limits(running_images=1, queued_row_steps=1000, queued_bytes=10 * 2**20)


class Clock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Busy:
    """A queue whose only place is taken; requests that wait, by name, in the order in which they start."""

    def __init__(self, limits: Limits = LIMITS, pace: float | None = None) -> None:
        self.clock = Clock()
        self.queue = FairQueue(limits, lambda: pace, self.clock)
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.over = asyncio.Event()

    async def add(self, name: str, **demand: Any) -> None:
        """One more that waits, or starts where there is room; each ends as soon as it may."""

        async def run() -> None:
            async with self.queue.place(Demand(**{"row_steps": 10, **demand})):
                self.order.append(name)
                await self.over.wait() if name == "first" else await asyncio.sleep(0)

        self.tasks[name] = asyncio.create_task(run())
        await asyncio.sleep(0)

    async def starts(self) -> list[str]:
        """Lets the first end; all names in their order."""
        self.over.set()
        await asyncio.wait_for(asyncio.gather(*self.tasks.values(), return_exceptions=True), 10)
        return self.order[1:]


async def busy(**options: Any) -> Busy:
    queue = Busy(**options)
    await queue.add("first", tenant="other")
    return queue


async def test_arrival_decides_where_nothing_else_does() -> None:
    queue = await busy()
    for name in "abc":
        await queue.add(name)
    assert await queue.starts() == ["a", "b", "c"]


async def test_priority_then_deadline_then_arrival() -> None:
    queue = await busy()
    await queue.add("plain")
    await queue.add("later", deadline=300.0)
    await queue.add("sooner", deadline=200.0)
    await queue.add("urgent", priority=1, deadline=math.inf)
    assert await queue.starts() == ["urgent", "sooner", "later", "plain"]


async def test_a_tenant_with_many_requests_does_not_hold_up_one_with_few() -> None:
    queue = await busy()
    for i in range(6):
        await queue.add(f"many{i}", tenant="many")
    await queue.add("few0", tenant="few")
    await queue.add("few1", tenant="few")
    order = await queue.starts()
    assert order.index("few0") <= 1
    assert order.index("few1") <= 3


async def test_a_share_of_three_starts_three_for_one() -> None:
    queue = await busy()
    for i in range(8):
        await queue.add(f"large{i}", tenant="large", share=3.0)
        await queue.add(f"small{i}", tenant="small")
    first_eight = (await queue.starts())[:8]
    assert sum(name.startswith("large") for name in first_eight) == 6


async def test_row_steps_count_and_not_requests() -> None:
    queue = await busy()
    for i in range(4):
        await queue.add(f"heavy{i}", tenant="heavy", row_steps=90)
        await queue.add(f"light{i}", tenant="light", row_steps=30)
    order = await queue.starts()
    assert order.index("light3") < order.index("heavy2")


async def test_a_request_of_low_priority_does_not_starve() -> None:
    queue = await busy()
    await queue.add("patient")
    queue.clock.now += 2 * AGING_SECONDS
    await queue.add("urgent", priority=1)
    assert await queue.starts() == ["patient", "urgent"]


async def test_a_large_request_is_not_overtaken_for_ever_by_small_ones() -> None:
    queue = await busy(limits=Limits(2, 1000, 2**20))
    await queue.add("large", num_images=2)
    await queue.add("small")
    assert queue.order == ["first"]
    assert await queue.starts() == ["large", "small"]


async def test_a_full_queue_says_limit_request_and_when_to_try_again() -> None:
    queue = await busy(pace=100.0)
    await queue.add("a", row_steps=900)
    with pytest.raises(ResourceExhausted) as error:
        async with queue.queue.place(Demand(300)):
            pass
    assert error.value.field == "row_steps"
    assert "at most 1000 waiting" in error.value.message
    assert "300 more, with 900 waiting" in error.value.message
    assert error.value.retry_seconds == pytest.approx(2.0)  # 200 too many, 100 a second
    await queue.starts()


async def test_one_tenant_leaves_room_in_the_queue_for_others() -> None:
    queue = await busy()
    await queue.add("a", tenant="greedy", row_steps=500)
    with pytest.raises(ResourceExhausted):
        async with queue.queue.place(Demand(100, tenant="greedy")):
            pass
    await queue.add("b", tenant="modest", row_steps=100)
    assert await queue.starts() == ["a", "b"] or queue.order[1:] == ["b", "a"]


async def test_waiting_images_are_bounded_in_bytes() -> None:
    queue = await busy(limits=Limits(1, 1000, 2**20))
    with pytest.raises(ResourceExhausted, match="queued_bytes"):
        async with queue.queue.place(Demand(1, num_bytes=2**20)):
            pass
    await queue.starts()


async def test_a_request_that_could_never_run_is_refused_for_good() -> None:
    queue = Busy()
    with pytest.raises(ResourceExhausted) as error:
        async with queue.queue.place(Demand(1, num_images=2)):
            pass
    assert error.value.retry_seconds is None


async def test_what_is_surely_done_before_a_request_is_its_tenants_that_come_first() -> None:
    queue = await busy()
    await queue.add("urgent", tenant="mine", priority=2, row_steps=40)
    await queue.add("plain", tenant="mine", row_steps=30)
    await queue.add("others", tenant="theirs", row_steps=500)
    before = queue.queue.row_steps_before
    assert before(Demand(10, tenant="mine")) == 70
    assert before(Demand(10, tenant="mine", priority=1)) == 40
    assert before(Demand(10, tenant="mine", priority=3)) == 0
    await queue.starts()
    assert before(Demand(10, tenant="mine")) == 0


async def test_one_that_leaves_gives_its_place_to_the_next() -> None:
    queue = await busy()
    for name in "abc":
        await queue.add(name)
    queue.tasks["a"].cancel()
    await asyncio.sleep(0)
    assert queue.queue.queued_row_steps() == 20
    assert await queue.starts() == ["b", "c"]
    assert (queue.queue.num_images, queue.queue.running_row_steps) == (0, 0)


async def test_one_that_leaves_in_the_moment_it_is_granted_keeps_nothing() -> None:
    queue = await busy()
    await queue.add("a")
    queue.over.set()
    await asyncio.sleep(0)  # the first ends now; "a" has the place and has not run yet
    queue.tasks["a"].cancel()
    await queue.starts()
    assert (queue.queue.num_images, queue.queue.running_row_steps) == (0, 0)
