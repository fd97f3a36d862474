"""Who uses what is to be let go, and how long a call that lets it go waits for them."""

import asyncio
import contextlib
from collections.abc import Iterator

from sfumato.common import calls
from sfumato.common.errors import FailedPrecondition

WAIT_SECONDS = 300.0  # of a call without a deadline
WAIT_SHARE = 0.9  # of the time of one that has a deadline; the rest is for the answer


class Uses:
    """Of one family."""

    def __init__(self) -> None:
        self.num = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """One more, as long as the block lasts."""
        self.num += 1
        self._none.clear()
        try:
            yield
        finally:
            self.num -= 1
            if not self.num:
                self._none.set()

    async def ended(self) -> None:
        """Waits until there are none."""
        await self._none.wait()

    async def left(self, name: str, leaving: "asyncio.Task[None]", field: str) -> None:
        """Waits for what lets it go when these have ended, as long as the current call's deadline allows.

        Args:
            name: of the family.
            leaving: is not ended with the wait; cancelled, the family stays.
            field: of the request, that names it.

        Raises:
            FailedPrecondition: some go on, and it says how many after how long; or somebody loaded it again.
        """
        remaining = calls.remaining_seconds()
        seconds = WAIT_SECONDS if remaining is None else WAIT_SHARE * remaining
        done, _ = await asyncio.wait([leaving], timeout=seconds)
        if not done and self.num:
            some = f"{self.num} request{'' if self.num == 1 else 's'}"
            raise FailedPrecondition(
                f"{some} still used {name} after {seconds:.1f} s; let them end, or give more time",
                field=field, limit="a family that no request uses", value=some,
            )  # fmt: skip
        await asyncio.wait([leaving])
        if leaving.cancelled():
            raise FailedPrecondition(f"{name} was loaded again before its last request ended",
                                     field=field, limit="a family that nobody loads", value=name)  # fmt: skip
        leaving.result()
