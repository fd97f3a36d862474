"""The denoiser replicas: which there are, and which gets the next trajectory.

gRPC's own round robin knows nothing of how long streams are, and learns of a new address only when it loses
an old one. A trajectory is one long stream, so the gateway itself asks the DNS (in Kubernetes a headless
Service: one address per ready pod) and gives each new trajectory to the replica that has the fewest.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from prometheus_client import Gauge
from sfumato_protos.v1 import denoiser_pb2_grpc

from sfumato.common.errors import SfumatoError

log = structlog.get_logger()

REPLICAS = Gauge("sfumato_gateway_denoiser_replicas", "Denoiser replicas that new trajectories may go to.")
DNS = "dns:///"
# Makes a channel to an address; the second argument is the host name that its certificate is for, or "".
OpenChannel = Callable[[str, str], Any]


@dataclass
class Held:
    """A family at a denoiser, by a wish of that revision, and what its canary step showed."""

    revision: int = 0
    looked_at: float = float("-inf")  # by time.monotonic, when its canary step last gave an answer
    sound: bool = True  # whether that answer was right
    weights_digest: str = ""
    engine: str = ""
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by who waits for its canary step


@dataclass
class Replica:
    """One denoiser: its trajectories, when it was last lost, and the families that it has; "": its own."""

    target: str
    stub: "denoiser_pb2_grpc.DenoiserServiceAsyncStub"
    channel: Any
    num_trajectories: int = 0
    lost_at: float = float("-inf")
    families: dict[str, Held] = field(default_factory=lambda: {"": Held()})

    @property
    def own(self) -> Held:
        """Of its own family."""
        return self.families[""]


def usable(replicas: list[Replica], family: str = "") -> list[Replica]:
    """Those that have the family and whose canary step with it did not go wrong.

    Where none has it, all: they say whether it is still to come or was unloaded.
    """
    having = [replica for replica in replicas if family in replica.families]
    return [replica for replica in having if replica.families[family].sound] if having else replicas


def pick(replicas: list[Replica]) -> Replica:
    """The replica with the fewest trajectories among those not lost in the last second, or at all."""
    now = time.monotonic()
    alive = [replica for replica in replicas if now - replica.lost_at > 1.0]
    if alive:
        return min(alive, key=lambda replica: replica.num_trajectories)
    return min(replicas, key=lambda replica: replica.lost_at)


class Replicas:
    """The replicas of all targets; those of a dns:/// target follow its addresses."""

    def __init__(self, targets: str, open_channel: OpenChannel, resolve_seconds: float) -> None:
        """Opens the channels of all that is known; call it where an event loop runs.

        Args:
            targets: host:port or dns:///host:port, by commas.
            open_channel: makes a replica's channel.
            resolve_seconds: how often addresses are looked up.

        Raises:
            SfumatoError: there is no target.
        """
        self.targets = [target.strip() for target in targets.split(",") if target.strip()]
        if not self.targets:
            raise SfumatoError("SFUMATO_GATEWAY_DENOISER_TARGETS names no denoiser")
        self._open_channel, self._seconds = open_channel, resolve_seconds
        self.current: list[Replica] = []
        self._addresses: dict[str, dict[str, str]] = {}
        for target in self.targets:
            if not target.startswith(DNS):
                self._addresses[target] = {target: ""}
        self._update()
        self._follower = (
            asyncio.create_task(self._follow()) if len(self._addresses) < len(self.targets) else None
        )

    async def _follow(self) -> None:
        while True:
            await self.resolve()
            await asyncio.sleep(self._seconds)

    async def resolve(self) -> None:
        """Looks the names up; a name that has no address keeps those that it had."""
        for target in self.targets:
            self._addresses[target] = await addresses_of(target, self._addresses.get(target, {}))
        self._update()

    def _update(self) -> None:
        wanted = {address: host for found in self._addresses.values() for address, host in found.items()}
        known = {replica.target for replica in self.current}
        gone = [replica for replica in self.current if replica.target not in wanted]
        new = [self._open(address, host) for address, host in wanted.items() if address not in known]
        # A channel that nobody holds closes itself: one that left, with its last trajectory.
        self.current = [replica for replica in self.current if replica.target in wanted] + new
        REPLICAS.set(len(self.current))
        if gone or new:
            log.info("denoisers", now=[replica.target for replica in self.current])

    def _open(self, address: str, host: str) -> Replica:
        channel = self._open_channel(address, host)
        stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        return Replica(address, stub, channel)

    async def close(self) -> None:
        """Closes all channels."""
        if self._follower is not None:
            self._follower.cancel()
        for replica in self.current:
            await replica.channel.close()


async def addresses_of(target: str, known: dict[str, str]) -> dict[str, str]:
    """Where a target, host:port or dns:///host:port, is to be reached, with the host names of certificates.

    A name that has no address keeps those that are known.
    """
    if not target.startswith(DNS):
        return {target: ""}
    with contextlib.suppress(OSError):
        return await addresses(target.removeprefix(DNS))
    return known


async def addresses(name: str) -> dict[str, str]:
    """host:port to "address:port" of each address, all of one family, with the host.

    Raises:
        OSError: the name has none, or the DNS does not answer.
    """
    host, _, port = name.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    family = found[0][0]
    ips = sorted({str(entry[4][0]) for entry in found if entry[0] is family})
    return {f"[{ip}]:{port}" if family is socket.AF_INET6 else f"{ip}:{port}": host for ip in ips}
