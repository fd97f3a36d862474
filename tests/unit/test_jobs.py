"""Requests with an id: joined, gone on with, kept, bounded."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sfumato.common.errors import AlreadyExists, NotFound, ResourceExhausted, Unavailable
from sfumato.gateway.job import JOB_BYTES, RING_EVENTS, Event, Job, Policy
from sfumato.gateway.jobs import Jobs

CANCEL, GO_ON = Policy(False, 60.0), Policy(True, 60.0)
KEY = ("acme", "mine")


class Run:
    """Gives events when it is told to."""

    def __init__(self, num_bytes: int = 10) -> None:
        self.num_bytes = num_bytes
        self.steps: asyncio.Queue[str] = asyncio.Queue()
        self.num_runs = 0
        self.ended = False

    async def __call__(self) -> AsyncGenerator[Event[str]]:
        self.num_runs += 1
        try:
            while (word := await self.steps.get()) != "end":
                if word == "fail":
                    raise ValueError("broken")
                yield Event(word, self.num_bytes, passing=word.startswith("step"))
        finally:
            self.ended = True

    def give(self, *words: str) -> None:
        for word in words:
            self.steps.put_nowait(word)


class Counted:
    """Tenants of jobs that run unread."""

    def __init__(self) -> None:
        self.tenants: list[str] = []

    @contextmanager
    def __call__(self, tenant: str) -> Iterator[None]:
        self.tenants.append(tenant)
        yield
        self.tenants.remove(tenant)


def jobs(max_bytes: int = 10**6, counted: Counted | None = None) -> Jobs[str]:
    return Jobs(max_bytes, counted or Counted())


async def read(job: Job[str], start: int = 0, count: int = 1000) -> list[str]:
    """So many of the job's events, then the stream is left."""
    seen: list[str] = []
    stream = job.follow(start)
    async for message in stream:
        seen.append(message)
        if len(seen) == count:
            break
    await stream.aclose()
    return seen


def join(all_jobs: Jobs[str], run: Run, policy: Policy = CANCEL, start: int = 0, **given: Any) -> Job[str]:
    return all_jobs.join(given.get("key", KEY), given.get("fingerprint", b"same"), policy, start, run)


async def test_two_streams_of_one_id_share_one_run() -> None:
    run, held = Run(), jobs()
    readers = [asyncio.create_task(read(join(held, run))) for _ in range(2)]
    await asyncio.sleep(0)
    run.give("accepted", "step1", "image", "end")
    assert await asyncio.gather(*readers) == [["accepted", "step1", "image"]] * 2
    assert run.num_runs == 1


async def test_a_finished_one_is_read_again_and_not_run_again() -> None:
    run, held = Run(), jobs()
    run.give("accepted", "image", "end")
    assert await read(join(held, run)) == ["accepted", "image"]
    assert await read(join(held, run), 1) == ["image"]
    assert run.num_runs == 1


async def test_another_request_with_the_id_is_refused() -> None:
    run, held = Run(), jobs()
    join(held, run)
    with pytest.raises(AlreadyExists, match="request_id mine is that of another request"):
        join(held, run, fingerprint=b"other")
    held.also(KEY, b"resolved")
    join(held, run, fingerprint=b"resolved")
    await held.close()


async def test_another_owner_with_the_same_id_has_a_request_of_its_own() -> None:
    mine, other, held = Run(), Run(), jobs()
    mine.give("secret", "end")
    other.give("theirs", "end")
    assert await read(join(held, mine)) == ["secret"]
    assert await read(join(held, other, key=("globex", "mine"))) == ["theirs"]
    with pytest.raises(NotFound):
        join(held, other, start=1, key=("third", "mine"))


async def test_left_by_all_it_is_cancelled_by_default() -> None:
    run, held = Run(), jobs()
    job = join(held, run)
    run.give("accepted")
    assert await read(job, count=1) == ["accepted"]
    assert job.task is not None
    await job.task
    assert run.ended
    with pytest.raises(NotFound, match="resume_from 0"):
        join(held, run, start=1)


async def test_told_to_go_on_it_is_joined_from_the_next_event_and_counts_for_its_owner() -> None:
    run, counted = Run(), Counted()
    held = jobs(counted=counted)
    run.give("accepted", "step1")
    assert await read(join(held, run, GO_ON), count=2) == ["accepted", "step1"]
    assert counted.tenants == ["acme"]
    run.give("step2", "image", "end")
    assert await read(join(held, run, GO_ON, start=2), start=2) == ["step2", "image"]
    assert counted.tenants == []
    assert run.num_runs == 1


async def test_unread_for_its_time_to_live_it_ends() -> None:
    run, held = Run(), jobs()
    run.give("accepted")
    job = join(held, run, Policy(True, 0.05))
    await read(job, count=1)
    assert job.task is not None
    await asyncio.wait_for(job.task, 5)
    assert run.ended


async def test_a_result_is_forgotten_after_its_time() -> None:
    run, held = Run(), jobs()
    run.give("accepted", "end")
    await read(join(held, run, Policy(False, 0.05)))
    await asyncio.sleep(0.2)
    run.give("accepted", "end")
    await read(join(held, run))
    assert run.num_runs == 2


async def test_a_failure_reaches_the_reader_and_frees_the_id() -> None:
    run, held = Run(), jobs()
    run.give("accepted", "fail")
    with pytest.raises(ValueError, match="broken"):
        await read(join(held, run))
    run.give("accepted", "end")
    assert await read(join(held, run)) == ["accepted"]


async def test_of_passing_events_the_last_are_kept_and_of_others_all() -> None:
    run, held = Run(), jobs()
    job = join(held, run, GO_ON)
    run.give("accepted")
    await read(job, count=1)
    run.give(*(f"step{i}" for i in range(RING_EVENTS + 10)), "image", "end")
    assert job.task is not None
    await job.task
    seen = await read(join(held, run))
    assert seen[:2] == ["accepted", "step10"]
    assert seen[-1] == "image"
    assert len(seen) == RING_EVENTS + 2


async def test_a_slow_reader_slows_its_request_and_loses_nothing() -> None:
    run, held = Run(), jobs()
    job = join(held, run)
    stream = job.follow(0)
    words = ["accepted", *(f"step{i}" for i in range(3 * RING_EVENTS)), "image"]
    run.give(*words, "end")
    assert await anext(stream) == "accepted"
    await asyncio.sleep(0.05)
    assert job.num_passing() == RING_EVENTS
    assert ["accepted", *[message async for message in stream]] == words


async def test_bytes_are_bounded_and_the_oldest_result_goes_first() -> None:
    held = jobs(max_bytes=2 * JOB_BYTES + 250)
    runs = []
    for i in range(3):
        run = Run(num_bytes=100)
        run.give("image", "end")
        runs.append(run)
        await read(join(held, run, key=("acme", str(i))))
    with pytest.raises(NotFound):
        join(held, runs[0], start=1, key=("acme", "0"))
    assert await read(join(held, runs[2], key=("acme", "2"))) == ["image"]


async def test_a_result_that_does_not_fit_says_so() -> None:
    run, held = Run(num_bytes=10_000), jobs(max_bytes=JOB_BYTES + 100)
    run.give("image", "end")
    with pytest.raises(ResourceExhausted, match=str(JOB_BYTES + 100)):
        await read(join(held, run))


async def test_a_gateway_that_stops_tells_the_readers() -> None:
    run, held = Run(), jobs()
    reader = asyncio.create_task(read(join(held, run)))
    await asyncio.sleep(0)
    await held.close()
    with pytest.raises(Unavailable):
        await reader
