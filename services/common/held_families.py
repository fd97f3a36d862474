"""The families that a model service has in memory: used by calls, and let go when no call uses them."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog
from prometheus_client import Gauge

from sfumato.common.model_memory import free_unused
from sfumato.common.uses import Uses

M = TypeVar("M")

log = structlog.get_logger()

HELD_BYTES = Gauge("sfumato_families_bytes", "Memory that the loaded families are counted with, in bytes.")


@dataclass
class Held(Generic[M]):
    """A family's models, and the calls that use them.

    Attributes:
        leaving: lets it go when no call uses it any more; until then it can be kept.
    """

    models: M
    num_bytes: int
    uses: Uses = field(default_factory=Uses)
    leaving: asyncio.Task[None] | None = None


class HeldFamilies(Generic[M]):
    """By name."""

    def __init__(self) -> None:
        self._held: dict[str, Held[M]] = {}
        self._freeing: dict[str, tuple[asyncio.Task[None], int]] = {}  # bytes of those just let go

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def names(self) -> list[str]:
        """Of those that calls may use."""
        return [name for name, held in self._held.items() if held.leaving is None]

    def leaves(self, name: str) -> bool:
        """Whether it is being let go."""
        return name in self._freeing or (name in self._held and self._held[name].leaving is not None)

    def models(self, name: str) -> M:
        """Of one that is here."""
        return self._held[name].models

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[M]:
        """Of one that calls may use; they stay as long as the block lasts."""
        held = self._held[name]
        with held.uses.one():
            yield held.models

    def num_bytes(self, name: str) -> int:
        """What one that calls may use is counted with."""
        return self._held[name].num_bytes

    def num_bytes_of_all(self) -> int:
        """What all take together, those that leave too."""
        freeing = sum(num_bytes for _, num_bytes in self._freeing.values())
        return freeing + sum(held.num_bytes for held in self._held.values())

    def take_in(self, name: str, models: M, num_bytes: int) -> None:
        """From now on calls may use it."""
        self._held[name] = Held(models, num_bytes)
        HELD_BYTES.set(self.num_bytes_of_all())
        log.info("family loaded", family=name, bytes=num_bytes)

    async def let_go(self, name: str) -> None:
        """Returns when calls that use it have ended and its memory is free; new ones may not use it.

        Raises:
            FailedPrecondition: calls still use it near the deadline, and it goes when they have ended; or it
                was kept meanwhile.
        """
        held = self._held.get(name)
        if held is None:
            await self.freed()
            return
        held.leaving = held.leaving or asyncio.create_task(self._leave(name))
        uses, leaving = held.uses, held.leaving
        del held  # its memory is to be free
        await uses.left(name, leaving, "family")

    def keep(self, name: str) -> None:
        """One that is being let go, and that calls still use, stays."""
        held = self._held[name]
        if held.leaving is not None:
            held.leaving.cancel()
            held.leaving = None
            log.info("family kept", family=name)

    async def freed(self) -> None:
        """Waits until the memory of those just let go is free."""
        if self._freeing:
            await asyncio.wait([task for task, _ in self._freeing.values()])

    async def _leave(self, name: str) -> None:
        await self._held[name].uses.ended()
        held = self._held.pop(name)  # from here on it cannot be kept
        assert held.leaving is not None
        self._freeing[name] = held.leaving, held.num_bytes
        del held
        try:
            await asyncio.to_thread(free_unused)
        finally:
            del self._freeing[name]
            HELD_BYTES.set(self.num_bytes_of_all())
        log.info("family unloaded", family=name)
