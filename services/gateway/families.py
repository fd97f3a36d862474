"""How this gateway, other gateways and all replicas come to agree on the families that are served.

A family is loaded at every replica of encoder, denoiser and decoder, or at none (everywhere.py). The wish for
it is kept at the replicas (wishes.py). Each gateway looks at all of them every few seconds: it serves what
all hold, withdraws what is no longer wanted, and brings the newest wish to a replica that lacks it, as one
that started again (bringing.py).
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import structlog

from sfumato.common.errors import FailedPrecondition, SfumatoError
from sfumato.common.shielded import to_its_end
from sfumato.gateway.bringing import Bringing
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.everywhere import Scattered, all_answers, let_go, loaded
from sfumato.gateway.model_replicas import Answer, ModelReplicas
from sfumato.gateway.parameters import FamilyInfo
from sfumato.gateway.served_families import Served, ServedFamilies
from sfumato.gateway.wishes import held_everywhere, lacking, newest_wishes

log = structlog.get_logger()


class Families:
    """Of one gateway replica.

    Attributes:
        served: what requests can ask for.
    """

    def __init__(self, services: ModelServices, info: FamilyInfo, look_seconds: float) -> None:
        """
        Args:
            services: the model services.
            info: of their own family, the default.
            look_seconds: how often all replicas are looked at.
        """
        self.served = ServedFamilies(Served(info, services))
        self._services, self._replicas = services, ModelReplicas(services)
        self._lock = asyncio.Lock()  # of loads: of two that fit one by one, none would be loaded otherwise
        self._looked = asyncio.Event()
        self._changing: set[str] = set()  # those that this gateway loads or lets go
        self._num_changes = 0  # that have ended
        self._bringing = Bringing()
        self._running: set[asyncio.Task[Any]] = set()
        self._follower = asyncio.create_task(self._follow(look_seconds))

    async def load(self, name: str) -> None:
        """Loads it everywhere and serves it; nothing where it is served. Cancelled, it goes on.

        One that is being let go, and waits for requests of this gateway, is kept.

        Raises:
            FailedPrecondition: the replicas are just letting it go.
            NotFound: there is no such family.
            Unavailable: a service does not answer.
            ForwardedError: one refuses, say because it would not fit; then none keeps it.
            SfumatoError: its parts do not go together.
        """
        await to_its_end(self._load(name), self._running)

    async def unload(self, name: str) -> None:
        """Refuses new requests, waits for the running ones, and lets it go everywhere. Cancelled, it goes on.

        Where that fails, it is served as before; but Scattered: when every replica has it again.

        Raises:
            FailedPrecondition: it is the default, or is being loaded or let go already, or loaded meanwhile;
                or requests still use it near the deadline (ForwardedError: those of other gateways).
            NotFound: it is not served.
            Unavailable, DeadlineExceeded: a service does not answer.
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
        self._bringing.close()
        for task in (self._follower, *self._running):
            task.cancel()
        await self._replicas.close()

    async def _load(self, name: str) -> None:
        if self._is_kept(name):  # at once, whatever else is being loaded
            return
        async with self._lock:
            if self._is_kept(name):
                return
            with self._change(name):
                async with loaded(self._replicas, name) as revision:
                    self.served.serve(name, await self._opened(name, revision))

    def _is_kept(self, name: str) -> bool:
        """Whether nothing is to be loaded."""
        return name in self.served or self.served.keep(name)

    async def _unload(self, name: str) -> None:
        if name == self.served.default:
            raise FailedPrecondition(
                f"{name} is the default family and stays; start the services with another",
                field="name", limit="another family than the default", value=name,
            )  # fmt: skip
        with self._change(name):
            wish = newest_wishes(await all_answers(self._replicas)).get(name)
            served = self.served.withdraw(name)
            # One that some replica could not load is not served, and wanted all the same.
            if served is None and (wish is None or not wish.wanted):
                raise self.served.missing(name, "name")
            try:
                if served is not None:
                    await self.served.unused(name, served)
                await let_go(self._replicas, name)
            except Scattered:
                self.served.wanted.add(name)
                raise
            except Exception:
                if served is not None:
                    self.served.serve(name, served)
                raise

    @contextlib.contextmanager
    def _change(self, name: str) -> Iterator[None]:
        """While this gateway loads it or lets it go, nobody else here does."""
        if name in self._changing:
            raise FailedPrecondition(f"{name} is being loaded or let go; try again when that has ended",
                                     field="name", limit="a family at rest", value=name)  # fmt: skip
        self._changing.add(name)
        try:
            yield
        finally:
            self._changing.discard(name)
            self._num_changes += 1

    async def _opened(self, name: str, revision: int) -> Served:
        services = self._services.of(name)
        return Served(await services.family(), services, revision)

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
        wishes = newest_wishes(answers)
        if self._num_changes == before:
            self.served.wanted = {name for name, wish in wishes.items() if wish.wanted} - self._changing
        for name, wish in wishes.items():
            if self._num_changes > before:
                return  # some answers may be of before the change; the next look sees it
            if name in self._changing:
                continue
            if not wish.wanted and self.served.withdraw(name):
                log.info("family withdrawn: another gateway let it go", family=name)
            for answer in lacking(answers, name, wish):
                self._bringing.bring(answer.replica, name, wish)
            # By a newer wish it may have been loaded anew, from other weights.
            is_new = wish.wanted and self.served.revision(name) != wish.revision
            if is_new and held_everywhere(answers, name):
                with contextlib.suppress(SfumatoError):
                    served = await self._opened(name, wish.revision)
                    if self._num_changes == before and name not in self._changing:
                        self.served.serve(name, served)
