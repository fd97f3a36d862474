"""From a family's name to its models: where they lie, what they would take, and the load itself."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from sfumato.common.config import FamiliesSettings
from sfumato.common.family_folder import FamilyFolder
from sfumato.common.model_memory import check_fits, free_unused, limit_bytes
from sfumato.common.out_of_memory import within_memory

M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[M]):
    """What a service makes of a family's folder, by its settings, on its device.

    Attributes:
        load: the models; runs on a thread of its own while others serve.
        num_bytes: memory that they take, by the headers of their weights; takes none itself.
        device: where they lie.
        warm: runs them once, in their own threads.
    """

    load: Callable[[Path, Any, torch.device], M]
    num_bytes: Callable[[Path, Any, torch.device], int]
    device: torch.device
    warm: Callable[[M], Awaitable[None]]


class Loader(Generic[M]):
    """Of one service. Loads one after another, on a thread of its own: those that serve go on."""

    def __init__(self, settings: FamiliesSettings, source: Source[M]) -> None:
        self._settings, self._source = settings, source
        self._folder = FamilyFolder(settings.families, self._variable("FAMILIES"))
        self._thread = ThreadPoolExecutor(1, "load", torch.set_num_threads, (settings.cpu_threads,))

    def names(self) -> list[str]:
        """Of the families that lie in the folder of families."""
        return self._folder.names()

    def path(self, name: str) -> Path:
        """As FamilyFolder.path."""
        return self._folder.path(name)

    def limit_bytes(self, held: int) -> int:
        """What all may take together; held: bytes of those that are loaded."""
        return limit_bytes(self._settings.model_memory_bytes, held, self._source.device)

    def check_fits(self, name: str, num_bytes: int, held: int) -> None:
        """Raises ResourceExhausted where a family of so many bytes has no room beside those held."""
        check_fits(name, num_bytes, held, self.limit_bytes(held), self._variable("MODEL_MEMORY_BYTES"))

    async def num_bytes(self, folder: Path) -> int:
        """What the models of the folder would take."""
        return await self._on_thread(self._source.num_bytes, folder, self._settings, self._source.device)

    async def load(self, folder: Path) -> M:
        """The models, warm. If that fails, nothing of them is left.

        Raises:
            SfumatoError: of the source. ResourceExhausted: there is no memory for them.
        """
        try:
            return await self._loaded(folder)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold what was loaded so far
            await asyncio.to_thread(free_unused)
            raise

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _loaded(self, folder: Path) -> M:
        load = partial(within_memory, "load", self._source.load)  # what fits may be taken by others meanwhile
        models = await self._on_thread(load, folder, self._settings, self._source.device)
        await self._on_thread(int)  # until its next task the thread holds what the last one gave
        await self._source.warm(models)
        return models

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _variable(self, name: str) -> str:
        return f"{self._settings.model_config.get('env_prefix', '')}{name}"
