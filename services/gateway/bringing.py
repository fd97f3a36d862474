"""Brings a wish to replicas that lack it, as to one that started again; each in the background."""

import asyncio

import structlog

from sfumato.common.errors import SfumatoError, Unavailable
from sfumato.gateway.model_replicas import ModelReplica
from sfumato.gateway.wishes import Wish

log = structlog.get_logger()

AGAIN_SECONDS = 30.0  # until a wish is brought again to a replica that refused it


class Bringing:
    """What is under way."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str, int], asyncio.Task[None]] = {}  # by target, family and revision

    def bring(self, replica: ModelReplica, name: str, wish: Wish) -> None:
        """Begins to, unless it is under way; one that does not answer is asked again at the next call."""
        key = replica.target, name, wish.revision
        if key not in self._tasks:
            task = self._tasks[key] = asyncio.create_task(_bring(replica, name, wish))
            task.add_done_callback(lambda _: self._tasks.pop(key))

    def close(self) -> None:
        """Ends it."""
        for task in self._tasks.values():
            task.cancel()


async def _bring(replica: ModelReplica, name: str, wish: Wish) -> None:
    try:
        await (replica.load if wish.wanted else replica.unload)(name, wish.revision)
        log.info("family brought", family=name, target=replica.target, wanted=wish.wanted)
    except SfumatoError as error:
        log.warning("family cannot be brought", family=name, target=replica.target, error=error.message)
        if not isinstance(error, Unavailable):
            await asyncio.sleep(AGAIN_SECONDS)
