"""The families that a model service holds: its own, and others that are loaded and let go while it serves.

A family's name is its folder's name in the one folder that the operator set; no path comes from a request.
What is wanted is gossip of gateways: each wish has a revision, the highest holds (docs/decisions/011).
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sfumato.common.config import FamiliesSettings
from sfumato.common.errors import FailedPrecondition, NotFound, SfumatoError, Unavailable
from sfumato.common.family import family_name
from sfumato.common.family_folder import check_name
from sfumato.common.family_loader import Loader, Source
from sfumato.common.held_families import HeldFamilies
from sfumato.common.shielded import to_its_end

M = TypeVar("M")


@dataclass(frozen=True)
class Listed:
    """A family as ListModels shows it."""

    name: str
    state: str  # LOADED, LOADING, UNLOADED or UNLOADING
    num_bytes: int = 0
    revision: int = 0


class Families(Generic[M]):
    """By name. One is loaded at a time; letting go waits for no load of another, nor holds one up."""

    def __init__(self, settings: FamiliesSettings, source: Source[M]) -> None:
        self.default = family_name(settings.family)
        self._own_folder = settings.family
        self._loader = Loader(settings, source)
        self._held: HeldFamilies[M] = HeldFamilies()
        self._loading = ""
        self._lock = asyncio.Lock()  # of what loads
        self._revisions: dict[str, int] = {}  # of the last wish
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def own(self) -> M:
        """The default family's."""
        return self._held.models(self.default)

    async def load_default(self) -> None:
        """Before the service serves; whatever its size.

        Raises:
            SfumatoError: of the load.
        """
        num_bytes = await self._loader.num_bytes(self._own_folder)
        self._held.take_in(self.default, await self._loader.load(self._own_folder), num_bytes)

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[M]:
        """The models of a family, which stay as long as the block lasts; "": the default's.

        Raises:
            Unavailable: it is not loaded here, and could be.
            NotFound, InvalidArgument: it was unloaded, there is no such family, or the name is none.
        """
        name = name or self.default
        if name not in self._held or self._held.leaves(name):
            raise self._missing(name)
        with self._held.use(name) as models:
            yield models

    async def load(self, name: str, revision: int) -> Listed:
        """Loads it, unless it is held; one that leaves, and is still used, is kept. Cancelled, it goes on.

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
            FailedPrecondition: it is the default, a later wish is known or comes, or calls still use it near
                the deadline; then it goes when they have ended.
            InvalidArgument: the name is none.
        """
        await to_its_end(self._unload(name, revision), self._running)

    def listed(self) -> list[Listed]:
        """All that are held or were wished, the default first."""
        others = sorted({*self._held.names(), *self._revisions} - {self.default})
        return [self._listed(name) for name in (self.default, *others)]

    def loadable(self) -> list[str]:
        """Names in the folder of families."""
        return self._loader.names()

    def limit_bytes(self) -> int:
        """What all may take together."""
        return self._loader.limit_bytes(self._held.num_bytes_of_all())

    def close(self) -> None:
        """Ends the thread that loads."""
        self._loader.close()

    async def _load(self, name: str, revision: int) -> None:
        if self._is_kept(name, revision):  # at once, whatever else is being loaded
            return
        async with self._lock:
            if self._is_kept(name, revision):
                return
            self._check_newer(name, revision)
            folder = self._loader.path(name)
            await self._held.freed()
            num_bytes = await self._loader.num_bytes(folder)
            self._loader.check_fits(name, num_bytes, self._held.num_bytes_of_all())
            before = self._revisions.get(name)
            self._revisions[name], self._loading = revision, name
            try:
                self._held.take_in(name, await self._loader.load(folder), num_bytes)
            except BaseException:
                del self._revisions[name]
                if before is not None:
                    self._revisions[name] = before
                raise
            finally:
                self._loading = ""

    def _is_kept(self, name: str, revision: int) -> bool:
        """Whether nothing is to be loaded; what leaves, and is still used, is kept."""
        if name not in self._held:
            return False
        if self._held.leaves(name):
            self._check_newer(name, revision)
            self._held.keep(name)
        self._note(name, revision)
        return True

    async def _unload(self, name: str, revision: int) -> None:
        check_name(name)
        if name == self.default:
            raise FailedPrecondition(
                f"{name} is the service's own family and stays; start the service with another",
                field="family", limit="another family than the service's own", value=name,
            )  # fmt: skip
        while name == self._loading:
            async with self._lock:
                pass
        if name in self._held and not self._held.leaves(name):
            self._check_newer(name, revision)
        if name in self._held or name in self.loadable():  # else nobody could load it anyway
            self._note(name, revision)
        await self._held.let_go(name)

    def _check_newer(self, name: str, revision: int) -> None:
        """Of a wish that would change something."""
        check_name(name)
        last = self._revisions.get(name, 0)
        if revision < max(last, 1):
            raise FailedPrecondition(
                f"revision {revision} of {name} is older than {last}, which is known here",
                field="revision", limit=f"at least {max(last, 1)}", value=revision,
            )  # fmt: skip

    def _note(self, name: str, revision: int) -> None:
        """An older wish too, for what is so already: two gateways may wish the same at one time."""
        self._revisions[name] = max(revision, self._revisions.get(name, 0))

    def _missing(self, name: str) -> SfumatoError:
        check_name(name)
        known = ", ".join(self._held.names())
        given: dict[str, Any] = {"field": "family", "limit": known, "value": name}
        if name in self._revisions and name != self._loading:
            return NotFound(f"{name} was unloaded; {known} is served here", **given)
        if name in self.loadable():
            return Unavailable(f"{name} is not loaded here; {known} is", **given)
        return NotFound(f"there is no {name} here; {known} is served", **given)

    def _listed(self, name: str) -> Listed:
        revision = self._revisions.get(name, 0)
        if self._held.leaves(name):
            return Listed(name, "UNLOADING", 0, revision)
        if name in self._held:
            return Listed(name, "LOADED", self._held.num_bytes(name), revision)
        return Listed(name, "LOADING" if name == self._loading else "UNLOADED", 0, revision)
