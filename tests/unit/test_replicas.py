"""Denoisers found by name: who gets the next trajectory while addresses come and go."""

import socket
import weakref
from collections.abc import AsyncIterator

import pytest

from sfumato.common.errors import SfumatoError
from sfumato.gateway import replicas
from sfumato.gateway.replicas import Replicas, addresses, pick


class FakeChannel:
    """A channel that only remembers."""

    def __init__(self, address: str, host: str) -> None:
        self.address, self.host, self.closed = address, host, False

    def stream_stream(self, *arguments: object, **options: object) -> None:
        """What a stub makes of it."""

    unary_unary = stream_stream

    async def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True


class FakeNames:
    """A DNS whose answers the test sets."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}

    async def addresses(self, name: str) -> dict[str, str]:
        """As replicas.addresses."""
        host, _, port = name.rpartition(":")
        if not self.known.get(host):
            raise OSError(f"{host} is not known")
        return {f"{ip}:{port}": host for ip in self.known[host]}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> FakeNames:
    fake = FakeNames()
    monkeypatch.setattr(replicas, "addresses", fake.addresses)
    return fake


@pytest.fixture
async def followed(names: FakeNames) -> AsyncIterator[Replicas]:
    """The replicas of one name with two addresses; looked up only when the test says so."""
    names.known["denoiser"] = ["10.0.0.1", "10.0.0.2"]
    opened = Replicas("dns:///denoiser:50054", FakeChannel, 3600)
    await opened.resolve()
    yield opened
    await opened.close()


def targets(opened: Replicas) -> list[str]:
    return [replica.target for replica in opened.current]


async def test_every_address_of_a_name_is_a_replica_whose_certificate_is_for_the_name(
    followed: Replicas,
) -> None:
    assert targets(followed) == ["10.0.0.1:50054", "10.0.0.2:50054"]
    assert {replica.channel.host for replica in followed.current} == {"denoiser"}


async def test_a_new_replica_gets_the_next_trajectory(followed: Replicas, names: FakeNames) -> None:
    for replica in followed.current:
        replica.num_trajectories = 3
    names.known["denoiser"].append("10.0.0.3")
    await followed.resolve()
    assert pick(followed.current).target == "10.0.0.3:50054"


async def test_a_replica_that_leaves_keeps_its_channel_until_its_trajectories_end(
    followed: Replicas, names: FakeNames
) -> None:
    """A channel of grpc.aio closes when it is freed."""
    leaving = followed.current[0]
    channel = weakref.ref(leaving.channel)
    names.known["denoiser"] = ["10.0.0.2"]
    await followed.resolve()
    assert targets(followed) == ["10.0.0.2:50054"]
    assert channel() is not None  # a trajectory's stream holds the replica as this test does
    del leaving
    assert channel() is None


async def test_while_the_name_has_no_address_the_known_ones_stay(
    followed: Replicas, names: FakeNames
) -> None:
    names.known["denoiser"] = []
    await followed.resolve()
    assert targets(followed) == ["10.0.0.1:50054", "10.0.0.2:50054"]


async def test_plain_targets_and_names_go_together(names: FakeNames) -> None:
    names.known["denoiser"] = ["10.0.0.1"]
    opened = Replicas("10.9.9.9:1, dns:///denoiser:50054", FakeChannel, 3600)
    assert targets(opened) == ["10.9.9.9:1"]
    await opened.resolve()
    assert targets(opened) == ["10.9.9.9:1", "10.0.0.1:50054"]
    await opened.close()


async def test_no_target_is_an_error() -> None:
    with pytest.raises(SfumatoError, match="SFUMATO_GATEWAY_DENOISER_TARGETS"):
        Replicas(" , ", FakeChannel, 1)


async def test_names_are_looked_up_in_the_systems_dns() -> None:
    assert await addresses("localhost:50054") in (
        {"127.0.0.1:50054": "localhost"},
        {"[::1]:50054": "localhost"},
    )
    with pytest.raises(socket.gaierror):
        await addresses("no-such-name.invalid:1")
