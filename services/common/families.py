"""The families that a model service holds: its own, and others that are loaded and let go while it serves.

A family's name is its folder's name in the one folder that the operator set; no path comes from a request.
What is wanted is gossip of gateways: each wish has a revision, the highest holds (docs/decisions/011).
"""

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
import torch
from prometheus_client import Gauge

from sfumato.common.config import FamiliesSettings
from sfumato.common.errors import FailedPrecondition, NotFound, SfumatoError, Unavailable
from sfumato.common.family import family_name
from sfumato.common.family_folder import FamilyFolder, check_name
from sfumato.common.model_memory import check_fits, free_unused, limit_bytes
from sfumato.common.out_of_memory import within_memory
from sfumato.common.shielded import to_its_end

M = TypeVar("M")
T = TypeVar("T")

log = structlog.get_logger()

HELD_BYTES = Gauge("sfumato_families_bytes", "Memory that the loaded families are counted with, in bytes.")


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


@dataclass
class Held(Generic[M]):
    """A family's models, and the calls that use them."""

    models: M
    num_bytes: int
    num_calls: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Listed:
    """A family as ListModels shows it."""

    name: str
    state: str  # LOADED, LOADING, UNLOADED or UNLOADING
    num_bytes: int = 0
    revision: int = 0


class Families(Generic[M]):
    """By name. One is loaded or let go at a time."""

    def __init__(self, settings: FamiliesSettings, source: Source[M]) -> None:
        self.default = family_name(settings.family)
        self._settings, self._source = settings, source
        self._folder = FamilyFolder(settings.families, self._variable("FAMILIES"))
        self._held: dict[str, Held[M]] = {}
        self._loading = self._leaving = ""
        self._revisions: dict[str, int] = {}  # of the last wish
        self._num_leaving_bytes = 0
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._thread = ThreadPoolExecutor(1, "load", torch.set_num_threads, (settings.cpu_threads,))

    @property
    def own(self) -> M:
        """The default family's."""
        return self._held[self.default].models

    async def load_default(self) -> None:
        """Before the service serves; whatever its size.

        Raises:
            SfumatoError: of the load.
        """
        folder = self._settings.family
        await self._take_in(self.default, folder, await self._num_bytes(folder))

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[M]:
        """The models of a family, which stay as long as the block lasts; "": the default's.

        Raises:
            Unavailable: it is not loaded here, and could be.
            NotFound, InvalidArgument: there is no such family, or the name is none.
        """
        held = self._held.get(name or self.default)
        if held is None:
            raise self._missing(name)
        held.num_calls += 1
        held.idle.clear()
        try:
            yield held.models
        finally:
            held.num_calls -= 1
            if not held.num_calls:
                held.idle.set()

    async def load(self, name: str, revision: int) -> Listed:
        """Loads it, unless it is held; cancelled, it goes on.

        Raises:
            FailedPrecondition: no folder of families is set, or a later wish is known.
            WeightsError: its weights cannot be used; names file and key.
            NotFound, InvalidArgument: as use.
            ResourceExhausted: it would not fit.
        """
        await to_its_end(self._load(name, revision), self._running)  # a thread that loads cannot be stopped
        return self._listed(name)

    async def unload(self, name: str, revision: int) -> None:
        """Lets it go, once the calls that use it have ended; cancelled, it goes on.

        Raises:
            FailedPrecondition: it is the default, or a later wish is known.
            InvalidArgument: the name is none.
        """
        await to_its_end(self._unload(name, revision), self._running)

    def listed(self) -> list[Listed]:
        """All that are held or were wished, the default first."""
        others = sorted({*self._held, *self._revisions} - {self.default})
        return [self._listed(name) for name in (self.default, *others)]

    def loadable(self) -> list[str]:
        """Names in the folder of families."""
        return self._folder.names()

    def limit_bytes(self) -> int:
        """What all may take together."""
        return limit_bytes(self._settings.model_memory_bytes, self._num_held_bytes(), self._source.device)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self, name: str, revision: int) -> None:
        async with self._lock:
            self._check_wish(name, revision)
            if name in self._held:
                self._revisions[name] = revision
                return
            folder = self._folder.path(name)
            num_bytes = await self._num_bytes(folder)
            held, limit = self._num_held_bytes(), self.limit_bytes()
            check_fits(name, num_bytes, held, limit, self._variable("MODEL_MEMORY_BYTES"))
            before = dict(self._revisions)
            self._revisions[name], self._loading = revision, name
            try:
                await self._take_in(name, folder, num_bytes)
            except BaseException as error:
                self._revisions = before
                traceback.clear_frames(error.__traceback__)  # they hold what was loaded so far
                await self._on_thread(free_unused)
                raise
            finally:
                self._loading = ""

    async def _take_in(self, name: str, folder: Path, num_bytes: int) -> None:
        load = partial(within_memory, "load", self._source.load)  # what fits may be taken by others meanwhile
        models = await self._on_thread(load, folder, self._settings, self._source.device)
        await self._source.warm(models)
        held = Held(models, num_bytes)
        held.idle.set()
        self._held[name] = held
        HELD_BYTES.set(self._num_held_bytes())
        log.info("family loaded", family=name, bytes=num_bytes)

    async def _unload(self, name: str, revision: int) -> None:
        async with self._lock:
            if name == self.default:
                raise FailedPrecondition(
                    f"{name} is the service's own family and stays; start the service with another",
                    field="family", limit="another family than the service's own", value=name,
                )  # fmt: skip
            self._check_wish(name, revision)
            if name in self._held or name in self.loadable():  # else nobody could load it anyway
                self._revisions[name] = revision
            if name not in self._held:
                return
            held = self._held.pop(name)
            self._leaving, self._num_leaving_bytes = name, held.num_bytes
            try:
                await held.idle.wait()
                del held
                await self._on_thread(free_unused)
            finally:
                self._leaving, self._num_leaving_bytes = "", 0
                HELD_BYTES.set(self._num_held_bytes())
            log.info("family unloaded", family=name)

    def _check_wish(self, name: str, revision: int) -> None:
        check_name(name)
        last = self._revisions.get(name, 0)
        if revision < max(last, 1):
            raise FailedPrecondition(
                f"revision {revision} of {name} is older than {last}, which is known here",
                field="revision", limit=f"at least {max(last, 1)}", value=revision,
            )  # fmt: skip

    def _variable(self, name: str) -> str:
        return f"{self._settings.model_config.get('env_prefix', '')}{name}"

    def _missing(self, name: str) -> SfumatoError:
        check_name(name)
        known = ", ".join(self._held)
        given: dict[str, Any] = {"field": "family", "limit": known, "value": name}
        if name in self.loadable():
            return Unavailable(f"{name} is not loaded here; {known} is", **given)
        return NotFound(f"there is no {name} here; {known} is served", **given)

    def _listed(self, name: str) -> Listed:
        held, revision = self._held.get(name), self._revisions.get(name, 0)
        if held is not None:
            return Listed(name, "LOADED", held.num_bytes, revision)
        moving = {self._loading: "LOADING", self._leaving: "UNLOADING"}
        return Listed(name, moving.get(name, "UNLOADED"), 0, revision)

    def _num_held_bytes(self) -> int:
        return self._num_leaving_bytes + sum(held.num_bytes for held in self._held.values())

    async def _num_bytes(self, folder: Path) -> int:
        return await self._on_thread(self._source.num_bytes, folder, self._settings, self._source.device)

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
