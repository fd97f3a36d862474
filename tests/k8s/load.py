"""Clients that never stop, and know what each answer must be: the same seed gives the same bytes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sfumato_client import AsyncClient, SfumatoError
from sfumato_client.security import SecurityOptions
from tests.editor_process import SMALL, noisy_image

# Of several kinds, so that every service is asked: one message per step, unary calls, streams of gradients.
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("a cat", {"seed": 1, "num_inference_steps": 20}),
    ("a dog on white", {"seed": 2, "num_inference_steps": 20}),
    ("two stars", {"seed": 3, "num_inference_steps": 10, "scheduler": "euler_a"}),
    ("a fox", {"seed": 4, "num_inference_steps": 10, "preview_interval_steps": 3}),
    ("a tree", {"seed": 5, "num_inference_steps": 3, "guidance": "clip", "num_cutouts": 2}),
]
TIMEOUT_SECONDS = 600.0
EDIT: dict[str, Any] = {"image": noisy_image(), "num_iterations": 30, "seed": 5, **SMALL}
# A client's pause before it asks again, so that one machine has room to start processes.
PAUSE_SECONDS = 0.2


@dataclass
class Tally:
    """What came of the requests of one phase."""

    num_done: int = 0
    num_edits: int = 0
    num_replayed_steps: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0


class Load:
    """Clients, one channel each."""

    def __init__(self, target: str, num_clients: int, security: SecurityOptions) -> None:
        self.target, self.num_clients, self.security = target, num_clients, security
        self.tally = Tally()
        self._wanted: list[bytes] = []
        self._wanted_edit = b""
        self._tasks: list[asyncio.Task[None]] = []

    async def learn(self) -> None:
        """Every request once, undisturbed: what is right from then on."""
        async with AsyncClient(self.target, TIMEOUT_SECONDS, **self.security) as client:
            for prompt, options in REQUESTS:
                result = await client.generate(prompt, **options)
                self._wanted.append(result.images[0].data)
            self._wanted_edit = await edited(client)
        assert len(set(self._wanted)) == len(REQUESTS)

    def start(self) -> None:
        """Lets the clients loose: all but one generate, that one edits."""
        self._tasks = [
            asyncio.create_task(self._repeat(self._edit if number == 0 else self._generate, number))
            for number in range(self.num_clients)
        ]

    async def _repeat(self, ask: Callable[[AsyncClient, int], Awaitable[None]], number: int) -> None:
        async with AsyncClient(self.target, TIMEOUT_SECONDS, **self.security) as client:
            while True:
                begun, tally = time.monotonic(), self.tally
                try:
                    await ask(client, number)
                except SfumatoError as error:
                    tally.failed.append(f"{error.code}: {error.message}"[:300])
                tally.slowest_seconds = max(tally.slowest_seconds, time.monotonic() - begun)
                number += self.num_clients
                await asyncio.sleep(PAUSE_SECONDS)

    async def _generate(self, client: AsyncClient, number: int) -> None:
        index = number % len(REQUESTS)
        prompt, options = REQUESTS[index]
        result = await client.generate(prompt, **options)
        self.tally.num_done += 1
        self.tally.num_replayed_steps += result.timings.num_replayed_steps
        if result.images[0].data != self._wanted[index]:
            self.tally.wrong.append(f"{prompt} {options}")

    async def _edit(self, client: AsyncClient, number: int) -> None:
        data = await edited(client)
        self.tally.num_edits += 1
        if data != self._wanted_edit:
            self.tally.wrong.append("the edit")

    def next_phase(self) -> Tally:
        """The tally so far; counting begins anew. A request counts where it ends."""
        ended, self.tally = self.tally, Tally()
        return ended

    async def stop(self) -> None:
        """Ends the clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def edited(client: AsyncClient) -> bytes:
    """One small edit, to its end."""
    artifacts = await client.edit("deep-image-prior", **EDIT)
    return artifacts[0].data
