"""The families that this gateway serves, and how it, other gateways and all replicas come to agree on them.

A family is loaded at every replica of encoder, denoiser and decoder, or at none. The wish for it is kept at
the replicas (wishes.py). Each gateway looks at all of them every few seconds: it serves what all hold,
withdraws what is no longer wanted, and brings the newest wish to a replica that lacks it, as one that started
again.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from sfumato.common.errors import FailedPrecondition, NotFound, SfumatoError, Unavailable
from sfumato.common.shielded import to_its_end
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.model_replicas import Answer, ModelReplica, ModelReplicas
from sfumato.gateway.parameters import FamilyInfo
from sfumato.gateway.wishes import SERVICES, Wish, held_everywhere, lacking, newest_wishes, next_revision

log = structlog.get_logger()

AGAIN_SECONDS = 30.0  # until a wish is brought again to a replica that refused it


@dataclass
class Served:
    """A family as requests need it."""

    info: FamilyInfo
    services: ModelServices
    num_requests: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class ServedFamilies:
    """By name, the default one first."""

    def __init__(self, services: ModelServices, info: FamilyInfo, look_seconds: float) -> None:
        """
        Args:
            services: the model services.
            info: of their own family, the default.
            look_seconds: how often all replicas are looked at.
        """
        self.default = info.name
        self._services, self._replicas = services, ModelReplicas(services)
        self._served = {info.name: Served(info, services)}
        self._lock = asyncio.Lock()
        self._wanted: set[str] = set()  # as far as replicas knew when they were last looked at
        self._looked = asyncio.Event()
        self._changing = ""  # the family that this gateway loads or lets go
        self._num_changes = 0  # that have ended
        self._bringing: dict[tuple[str, str], asyncio.Task[None]] = {}  # by replica's target and family
        self._running: set[asyncio.Task[Any]] = set()
        self._follower = asyncio.create_task(self._follow(look_seconds))

    @property
    def names(self) -> list[str]:
        """Of those that requests can ask for."""
        return list(self._served)

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
        served = self._served.get(name or self.default)
        if served is None and name in self._wanted:
            raise Unavailable(f"{name} is being loaded; try again later", field="family", value=name)
        if served is None:
            raise self._not_served(name, "family")
        served.num_requests += 1
        served.idle.clear()
        try:
            yield served
        finally:
            served.num_requests -= 1
            if not served.num_requests:
                served.idle.set()

    async def load(self, name: str) -> None:
        """Loads it everywhere and serves it; nothing where it is served. Cancelled, it goes on.

        Raises:
            NotFound: there is no such family.
            Unavailable: a service does not answer.
            ForwardedError: one refuses, say because it would not fit; then none keeps it.
            SfumatoError: its parts do not go together.
        """
        await to_its_end(self._load(name), self._running)

    async def unload(self, name: str) -> None:
        """Refuses new requests, waits for the running ones, and lets it go everywhere. Cancelled, it goes on.

        Raises:
            FailedPrecondition: it is the default. NotFound: it is not served.
        """
        await to_its_end(self._unload(name), self._running)

    async def looked(self) -> None:
        """Waits for the first look at the replicas."""
        await self._looked.wait()

    async def answers(self) -> list[Answer]:
        """What each replica holds."""
        return await self._replicas.answers()

    async def close(self) -> None:
        """Ends what runs in the background."""
        for task in (self._follower, *self._bringing.values(), *self._running):
            task.cancel()
        await self._replicas.close()

    async def _load(self, name: str) -> None:
        async with self._lock:
            if name in self._served:
                return
            answers = await self._all_answers()
            loadable = frozenset.intersection(*(answer.loadable for answer in answers))
            # Where no folder is set at all, the service says how to set one.
            if name not in loadable and all(answer.loadable for answer in answers):
                known = ", ".join(sorted(loadable)) or "none"
                raise NotFound(f"no family {name!r:.80} to load; there are {known}", field="name",
                               limit=known, value=name)  # fmt: skip
            self._changing = name
            replicas = [answer.replica for answer in answers]
            revision = next_revision(answers, name)
            try:
                await _all(replica.load(name, revision) for replica in replicas)
                await self._replicas.answers()  # which notes it at the denoisers
                await self._serve(name)
            except Exception:
                undo = (replica.unload(name, revision + 1) for replica in replicas)
                await asyncio.gather(*undo, return_exceptions=True)
                raise
            finally:
                self._changed()

    async def _unload(self, name: str) -> None:
        async with self._lock:
            if name == self.default:
                raise FailedPrecondition(
                    f"{name} is the default family and stays; start the services with another",
                    field="name", limit="another family than the default", value=name,
                )  # fmt: skip
            if name not in self._served:
                raise self._not_served(name, "name")
            await self._all_answers()  # else nobody would hear of it
            self._changing = name
            self._wanted.discard(name)
            served = self._served.pop(name)
            try:
                await served.idle.wait()
                answers = await self._all_answers()
                revision = next_revision(answers, name)
                # Denoisers first: they wait for the streams of requests of other gateways, too.
                for first in (True, False):
                    await _all(
                        answer.replica.unload(name, revision)
                        for answer in answers
                        if (answer.replica.denoiser is not None) is first
                    )
            finally:
                self._changed()

    def _changed(self) -> None:
        self._changing = ""
        self._num_changes += 1

    def _not_served(self, name: str, field: str) -> NotFound:
        known = ", ".join(self._served)
        return NotFound(f"{name!r:.80} is not served here; there are {known}", field=field,
                        limit=known, value=name)  # fmt: skip

    async def _serve(self, name: str) -> None:
        services = self._services.of(name)
        served = Served(await services.family(), services)
        served.idle.set()
        self._served.setdefault(name, served)  # a look and a load may both come to it
        log.info("family served", family=name)

    async def _all_answers(self) -> list[Answer]:
        """Of at least one replica of each service."""
        answers = await self._replicas.answers()
        silent = set(SERVICES) - {answer.replica.service for answer in answers}
        if silent:
            raise Unavailable(f"no {sorted(silent)[0]} answers; try again later")
        return answers

    async def _follow(self, seconds: float) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("cannot look at the families")
            self._looked.set()
            await asyncio.sleep(seconds)

    async def look(self) -> None:
        """Once: serves, withdraws and brings what has to be."""
        before = self._num_changes
        answers = await self._replicas.answers()
        if self._num_changes > before:
            return  # some may be of before the change; the next look sees it
        wishes = newest_wishes(answers)
        self._wanted = {name for name, wish in wishes.items() if wish.wanted and name != self._changing}
        for name, wish in wishes.items():
            if name == self._changing:
                continue
            if not wish.wanted and name in self._served:
                del self._served[name]
                log.info("family withdrawn: another gateway let it go", family=name)
            for answer in lacking(answers, name, wish):
                self._bring(answer.replica, name, wish)
            if wish.wanted and name not in self._served and held_everywhere(answers, name):
                with contextlib.suppress(SfumatoError):
                    await self._serve(name)

    def _bring(self, replica: ModelReplica, name: str, wish: Wish) -> None:
        key = replica.target, name
        if key not in self._bringing:
            self._bringing[key] = asyncio.create_task(self._brought(replica, name, wish))

    async def _brought(self, replica: ModelReplica, name: str, wish: Wish) -> None:
        try:
            await (replica.load if wish.wanted else replica.unload)(name, wish.revision)
            log.info("family brought", family=name, target=replica.target, wanted=wish.wanted)
        except SfumatoError as error:
            log.warning("family cannot be brought", family=name, target=replica.target, error=error.message)
            await asyncio.sleep(AGAIN_SECONDS)
        finally:
            del self._bringing[replica.target, name]


async def _all(work: Any) -> None:
    """All to their ends; then the first failure is raised."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
