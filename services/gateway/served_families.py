"""The families that requests can ask for at this gateway, and the requests that use them."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from sfumato.common.errors import NotFound, Unavailable
from sfumato.common.uses import Uses
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.parameters import FamilyInfo

log = structlog.get_logger()


@dataclass(frozen=True)
class Served:
    """A family as requests need it, by a wish of that revision."""

    info: FamilyInfo
    services: ModelServices
    revision: int = 0


class ServedFamilies:
    """By name, the default one first.

    Attributes:
        default: the services' own family.
        wanted: those that the replicas hold or are to load, as far as is known.
    """

    def __init__(self, default: Served) -> None:
        self.default = default.info.name
        self.wanted: set[str] = set()
        self._served = {self.default: default}
        self._uses: dict[str, Uses] = {}  # of each that was ever served: requests outlive its being withdrawn
        self._leaving: dict[str, tuple[Served, asyncio.Task[None]]] = {}  # until their last request has ended

    def __contains__(self, name: str) -> bool:
        return name in self._served

    @property
    def names(self) -> list[str]:
        """Of those that requests can ask for."""
        return list(self._served)

    def revision(self, name: str) -> int | None:
        """Of the wish that it is served by; None: it is not served."""
        return self._served[name].revision if name in self._served else None

    def info(self, name: str) -> FamilyInfo:
        """Of one that is served."""
        return self._served[name].info

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Served]:
        """A family for the time of a request; "": the default.

        Raises:
            Unavailable: it is wanted, and some replica has still to load it.
            NotFound: it is not served.
        """
        name = name or self.default
        served = self._served.get(name)
        if served is None and name in self.wanted:
            raise Unavailable(f"{name} is being loaded; try again later", field="family", value=name)
        if served is None:
            raise self.missing(name, "family")
        with self._uses_of(name).one():
            yield served

    def serve(self, name: str, served: Served) -> None:
        """From now on requests can ask for it."""
        self._served[name] = served
        log.info("family served", family=name)

    def withdraw(self, name: str) -> Served | None:
        """New requests are refused; what it was, None where it is not served."""
        self.wanted.discard(name)
        return self._served.pop(name, None)

    async def unused(self, name: str, served: Served) -> None:
        """Waits for the requests of one that was withdrawn.

        Raises:
            FailedPrecondition: they do not end before the deadline, or it is kept meanwhile.
        """
        uses = self._uses_of(name)
        leaving = asyncio.create_task(uses.ended())
        self._leaving[name] = served, leaving
        try:
            await uses.left(name, leaving, "name")
        finally:
            leaving.cancel()
            del self._leaving[name]

    def keep(self, name: str) -> bool:
        """Serves one again that waits for its requests; False where none waits."""
        served, leaving = self._leaving.get(name, (None, None))
        if served is None or leaving is None or not leaving.cancel():  # its last request has just ended
            return False
        self.serve(name, served)
        return True

    def missing(self, name: str, field: str) -> NotFound:
        """That it is not served; field: of the request, that names it."""
        known = ", ".join(self._served)
        return NotFound(f"{name!r:.80} is not served here; there are {known}", field=field,
                        limit=known, value=name)  # fmt: skip

    def _uses_of(self, name: str) -> Uses:
        return self._uses.setdefault(name, Uses())
