"""How long steps take just now, and what a deadline allows.

Estimates are from below: the quickest step and the highest rate of the last minute, so that what they say
cannot be done cannot. What was measured longer ago says nothing; so a load that has passed keeps nobody out.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol, TypeVar

from sfumato.common.errors import DeadlineExceeded

T = TypeVar("T")
Key = tuple[str, int, int, str]  # family, height and width of the latents, kind of guidance

WINDOW_SECONDS = 30.0  # a value is remembered for one to two of these
RATE_SECONDS = 2.0
MARGIN_SECONDS = 0.1  # for what is not measured: messages, the client
MARGIN_SHARE = 0.1  # of the time left, where nothing was measured yet
MAX_KEYS = 1000


class Replaying(Protocol):
    """A trajectory's stream: how many of its steps were run again."""

    @property
    def num_replayed_steps(self) -> int:
        """So far."""


class Lowest:
    """The lowest value of the last window and the one before."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._window = clock() // WINDOW_SECONDS
        self._now = self._before = math.inf

    def add(self, value: float) -> None:
        """Takes in a value."""
        self._turn()
        self._now = min(self._now, value)

    def value(self) -> float:
        """Infinity where there was none."""
        self._turn()
        return min(self._now, self._before)

    def _turn(self) -> None:
        window = self._clock() // WINDOW_SECONDS
        if window > self._window:
            self._before = self._now if window == self._window + 1 else math.inf
            self._now, self._window = math.inf, window


class Pace:
    """Of one gateway replica. Not for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds; one that never jumps."""
        self._clock = clock
        self._steps: dict[Key, Lowest] = {}
        self._decode, self._slowest_decode = Lowest(clock), Lowest(clock)
        self._seconds_per_row_step = Lowest(clock)
        self._counted, self._since = 0.0, clock()

    def add_steps(self, key: Key, num_steps: int, seconds: float, row_steps: float) -> None:
        """Steps of one image took so long together and were so many row-steps each."""
        if key not in self._steps:
            if len(self._steps) >= MAX_KEYS:
                self._steps.clear()
            self._steps[key] = Lowest(self._clock)
        self._steps[key].add(seconds / num_steps)
        self._counted += num_steps * row_steps
        passed = self._clock() - self._since
        if passed >= RATE_SECONDS:
            if passed < 2 * RATE_SECONDS:  # else there were pauses
                self._seconds_per_row_step.add(passed / self._counted)
            self._counted, self._since = 0.0, self._clock()

    def last_moment(self, deadline: float, num_images: int) -> float:
        """When sampling has to stop, for so many images to be decoded and sent by `deadline`; both by the
        clock, infinity: never."""
        if math.isinf(deadline):
            return math.inf
        return deadline - self.reserve_seconds(num_images, deadline - self._clock())

    async def paced(
        self,
        steps: AsyncGenerator[T],
        stream: "Replaying",
        key: Key,
        row_steps: float,
        end: float = math.inf,
        num_steps_of: Callable[[T], int] = lambda _: 1,
    ) -> AsyncGenerator[T]:
        """What comes before `end`, a step each, or num_steps_of them, each counted as so many row-steps.

        Not a single first step, which opens the stream, and those that were repeated, which waited for a
        denoiser.
        """
        first, replayed = True, 0
        async with contextlib.aclosing(until(steps, end)) as timed:
            async for step, seconds in timed:
                num_steps = num_steps_of(step)
                if (num_steps > 1 or not first) and stream.num_replayed_steps == replayed:
                    self.add_steps(key, num_steps, seconds, row_steps)
                first, replayed = False, stream.num_replayed_steps
                yield step

    def add_decode(self, seconds: float) -> None:
        """Decoding an image took so long."""
        self._decode.add(seconds)
        self._slowest_decode.add(-seconds)

    def step_seconds(self, key: Key) -> float | None:
        """Of one step; None where none was measured lately."""
        return _known(self._steps[key].value()) if key in self._steps else None

    def row_steps_per_second(self) -> float | None:
        """Of all requests together; None where it was not measured lately."""
        seconds = _known(self._seconds_per_row_step.value())
        return 1 / seconds if seconds else None

    def reserve_seconds(self, num_images: int, left: float) -> float:
        """What has to be left of a deadline when sampling stops, for the images to be decoded and sent."""
        slowest = -self._slowest_decode.value()
        known = slowest > -math.inf
        return MARGIN_SECONDS + (1.5 * num_images * slowest if known else MARGIN_SHARE * left)

    def check(self, runs: Sequence[tuple[Key, int]], row_steps_before: float, left: float) -> None:
        """
        Args:
            runs: key and number of steps of what is run one after another; images side by side are one.
            row_steps_before: that are done before it starts.
            left: seconds until the deadline.

        Raises:
            DeadlineExceeded: so much cannot be done in the time left.
        """
        known = [(count, step) for key, count in runs if (step := self.step_seconds(key)) is not None]
        if not known:
            return
        rate = self.row_steps_per_second()
        wait = row_steps_before / rate if rate else 0.0
        decode = _known(self._decode.value()) or 0.0
        estimate = wait + sum(count * step for count, step in known) + decode
        steps = ", ".join(f"{count} steps of {step:.2g} s" for count, step in known)
        if estimate > left:
            raise DeadlineExceeded(
                f"the deadline leaves {left:.2g} s, but this takes an estimated {estimate:.2g} s: "
                f"{wait:.2g} s of waiting, {steps}, {decode:.2g} s of decoding. "
                f"Give more time, take fewer steps, or set allow_partial",
                field="deadline", limit=f"at least {estimate:.2g} s", value=f"{left:.2g} s",
            )  # fmt: skip


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


async def until(items: AsyncGenerator[T], end: float) -> AsyncGenerator[tuple[T, float]]:
    """The items with the seconds that each took, as far as they come before `end`, by time.monotonic."""
    async with contextlib.aclosing(items):
        while True:
            start = time.monotonic()
            try:
                async with asyncio.timeout(end - start if math.isfinite(end) else None) as limit:
                    item = await anext(items)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if limit.expired():
                    return
                raise
            yield item, time.monotonic() - start
