"""Requests that clients gave an id: joined again by it, in mid-run or when they are done.

All together are bounded in bytes.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from prometheus_client import Counter, Gauge

from sfumato.common.errors import AlreadyExists, NotFound, ResourceExhausted
from sfumato.gateway.job import JOB_BYTES, RING_EVENTS, Event, Job, Policy

M = TypeVar("M")

HELD = Gauge("sfumato_gateway_job_bytes", "Bytes that requests with an id hold for those who join again.")
LIMIT = Gauge("sfumato_gateway_job_bytes_limit", "Most bytes that they may hold.")
JOINED = Counter("sfumato_gateway_jobs_joined", "Streams that joined a request that was there already.")


class Jobs(Generic[M]):
    """Of one gateway replica, by owner and id. Not for several threads."""

    def __init__(self, max_bytes: int, counted: Callable[[str], AbstractContextManager[None]]) -> None:
        """counted: counts a job for its owner while it runs and nobody reads."""
        self.counted = counted
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._jobs: dict[tuple[str, str], Job[M]] = {}
        LIMIT.set(max_bytes)

    def join(
        self,
        key: tuple[str, str],
        fingerprint: bytes,
        policy: Policy,
        start: int,
        run: Callable[[], AsyncGenerator[Event[M]]],
    ) -> Job[M]:
        """The job of that owner and id, begun by `run` if there is none.

        Args:
            key: owner and id. fingerprint: of the request. policy: takes the place of the job's own.
            start: number of the first event wanted.

        Raises:
            AlreadyExists: the id is another request's. NotFound: there is none to go on with.
            ResourceExhausted: too much is held.
        """
        job = self._jobs.get(key)
        if job is None and start > 0:
            raise NotFound(
                f"no request {key[1]} is here: it ended, or its gateway did. Send it with resume_from 0",
                field="request_id", limit="a request that runs or is kept", value=key[1],
            )  # fmt: skip
        if job is not None and fingerprint not in job.fingerprints:
            raise AlreadyExists(
                f"request_id {key[1]} is that of another request; choose another id",
                field="request_id", limit="one id for each request", value=key[1],
            )  # fmt: skip
        if job is not None:
            JOINED.inc()
            job.policy = policy
            return job
        job = Job(self, key, fingerprint, policy)
        self._make_room(job, JOB_BYTES)
        self._count(JOB_BYTES)
        self._jobs[key] = job
        job.task = asyncio.create_task(job.run(run()))
        return job

    def also(self, key: tuple[str, str], fingerprint: bytes) -> None:
        """Takes another request for the same: the one with its defaults filled in."""
        if key in self._jobs:
            self._jobs[key].fingerprints.add(fingerprint)

    def charge(self, job: Job[M], num_bytes: int) -> None:
        """Counts bytes of a job, fewer too.

        Raises:
            ResourceExhausted: all jobs hold too much, and none is done that could be forgotten.
        """
        if num_bytes > 0:
            self._make_room(job, num_bytes)
        if self._jobs.get(job.key) is job:
            self._count(num_bytes)
            job.num_bytes += num_bytes

    def forget(self, job: Job[M]) -> None:
        """The id is free again."""
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
            self._count(-job.num_bytes)

    async def close(self) -> None:
        """Ends all."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        HELD.set(self._num_bytes)

    def _make_room(self, job: Job[M], num_bytes: int) -> None:
        for drop in self._droppable(job):
            if self._num_bytes + num_bytes <= self._max_bytes:
                return
            drop()
        if self._num_bytes + num_bytes > self._max_bytes:
            asked = f"{num_bytes} more, with {self._num_bytes} held"
            error = ResourceExhausted(
                "request_id", f"given while all held results have at most {self._max_bytes} bytes", asked,
                "Try again later, or without an id.",
            )  # fmt: skip
            error.retry_seconds = 5.0
            raise error

    def _droppable(self, job: Job[M]) -> Iterator[Callable[[], None]]:
        """Ways to free bytes: results that nobody reads, the oldest first, then passing events."""
        for other in list(self._jobs.values()):
            if other.done and not other.is_read:
                yield lambda other=other: self.forget(other)  # type: ignore[misc]
        for other in list(self._jobs.values()):
            if not other.is_read and other is not job:
                yield lambda other=other: other.drop_passing(RING_EVENTS)  # type: ignore[misc]
