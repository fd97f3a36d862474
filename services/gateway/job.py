"""A request that its client gave an id: its events, numbered, for whoever reads them.

Those that the result needs are kept; of the others (steps, previews, maps) the last ones, so that a stream
that was dropped goes on where it ended.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sfumato.common.errors import Unavailable

M = TypeVar("M")

RING_EVENTS = 256  # passing ones, of a job
JOB_BYTES = 8 * 2**10  # of a job beside its events


class Keeper(Protocol):
    """Knows all jobs, and what they hold together."""

    def counted(self, tenant: str, /) -> AbstractContextManager[None]:
        """Counts a job for its owner while it runs and nobody reads."""

    def charge(self, job: Any, num_bytes: int) -> None:
        """Counts bytes of a job, fewer too; raises ResourceExhausted where all jobs hold too much."""

    def forget(self, job: Any) -> None:
        """The job's id is free again."""


@dataclass(frozen=True)
class Event(Generic[M]):
    """A message with its size; passing: the result is whole without it."""

    message: M
    num_bytes: int
    passing: bool


@dataclass(frozen=True)
class Policy:
    """What happens when nobody reads: end, or go on so long; so long a finished job is kept in any case."""

    goes_on: bool
    keep_seconds: float


@dataclass(eq=False)
class Reader:
    """A stream, and the number of the event that it wants next."""

    next: int


class Job(Generic[M]):
    """One request that runs or is done."""

    def __init__(self, jobs: Keeper, key: tuple[str, str], fingerprint: bytes, policy: Policy) -> None:
        self.key, self.policy = key, policy
        self.fingerprints = {fingerprint}
        self.num_bytes = JOB_BYTES
        self.done = False
        self._jobs = jobs
        self._events: dict[int, Event[M]] = {}  # by number, in order
        self._num_events = 0
        self._error: Exception | None = None
        self._readers: list[Reader] = []
        self._changed = asyncio.Event()
        self._unread = contextlib.ExitStack()  # while it runs and nobody reads
        self._timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def is_read(self) -> bool:
        """Whether a stream is attached."""
        return bool(self._readers)

    async def follow(self, start: int) -> AsyncGenerator[M]:
        """The events from number `start`, as far as they are still there, then those to come.

        Raises:
            what the run raises.
        """
        reader = Reader(start)
        self._readers.append(reader)
        self._unread.close()
        self._stop_timer()
        try:
            while True:
                event = self._next_for(reader)
                if event is not None:
                    self._wake()
                    yield event.message
                elif self.done:
                    break
                else:
                    await self._changed.wait()
            if self._error is not None:
                raise self._error
        finally:
            self._readers.remove(reader)
            self._wake()
            if not self._readers:
                self._nobody_reads()

    async def run(self, events: AsyncGenerator[Event[M]]) -> None:
        """Takes in the events until they end."""
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    await self._room_in_ring(event)
                    self._jobs.charge(self, event.num_bytes)
                    self._events[self._num_events] = event
                    self._num_events += 1
                    self._wake()
        except asyncio.CancelledError:
            self._error = Unavailable("the request was ended: nobody read it, or the gateway stops")
        except Exception as error:
            self._error = error
        finally:
            self.done = True
            self._unread.close()
            self._wake()
            if self._error is not None:
                self._jobs.forget(self)  # the same id may try again
            elif not self._readers:
                self._nobody_reads()

    def drop_passing(self, count: int) -> None:
        """Drops so many of the oldest passing events."""
        passing = [number for number, event in self._events.items() if event.passing]
        for number in passing[:count]:
            self._jobs.charge(self, -self._events.pop(number).num_bytes)

    def num_passing(self) -> int:
        """Passing events that are held."""
        return sum(event.passing for event in self._events.values())

    async def _room_in_ring(self, event: Event[M]) -> None:
        """Drops the oldest passing event where there are many; waits for a reader that has not had it."""
        while event.passing and self.num_passing() >= RING_EVENTS:
            oldest = next(number for number, held in self._events.items() if held.passing)
            if all(reader.next > oldest for reader in self._readers):
                self.drop_passing(1)
            else:
                await self._changed.wait()

    def _next_for(self, reader: Reader) -> Event[M] | None:
        for number in range(reader.next, self._num_events):
            if number in self._events:
                reader.next = number + 1
                return self._events[number]
        reader.next = max(reader.next, self._num_events)
        return None

    def _nobody_reads(self) -> None:
        if self.done:
            self._start_timer(lambda: self._jobs.forget(self))
        elif self.policy.goes_on:
            self._unread.enter_context(self._jobs.counted(self.key[0]))
            self._start_timer(self._end)
        else:
            self._end()

    def _end(self) -> None:
        self._jobs.forget(self)
        if self.task is not None:
            self.task.cancel()

    def _start_timer(self, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self.policy.keep_seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
