"""Work that goes on when the call that asked for it is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_its_end(work: Coroutine[Any, Any, None], running: set[asyncio.Task[Any]]) -> None:
    """Waits for the work; cancelled, it goes on.

    Args:
        work: what is begun at once.
        running: keeps its task as long as it runs; the owner's to cancel.
    """
    task = asyncio.create_task(work)
    running.add(task)
    task.add_done_callback(running.discard)
    await asyncio.shield(task)
