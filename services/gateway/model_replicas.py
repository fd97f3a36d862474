"""Every replica of encoder, denoiser and decoder, one by one: for what each of them has to do.

Calls of requests go to some replica, by round robin; a family is loaded at all.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
from sfumato_protos.v1 import model_pb2, model_pb2_grpc

from sfumato.common import calls
from sfumato.gateway.channels import ModelServices
from sfumato.gateway.failures import calling
from sfumato.gateway.replicas import Held, Replica, addresses_of

LIST_SECONDS = 2.0
LOADED = model_pb2.MODEL_STATE_LOADED
UNLOADED, UNLOADING = model_pb2.MODEL_STATE_UNLOADED, model_pb2.MODEL_STATE_UNLOADING


@dataclass(frozen=True)
class ModelReplica:
    """One of them.

    Attributes:
        service: encoder, denoiser or decoder.
        channel: held as long as somebody calls, for one that nobody holds closes itself.
        denoiser: what trajectories know it by, where it is one.
    """

    service: str
    target: str
    channel: Any
    denoiser: Replica | None = None

    @property
    def stub(self) -> "model_pb2_grpc.ModelServiceAsyncStub":
        return model_pb2_grpc.ModelServiceStub(self.channel)

    async def load(self, family: str, revision: int) -> None:
        """Takes as long as it takes, whatever the deadline of the call that asks.

        Raises:
            Unavailable, ForwardedError: it does not answer, or refuses.
        """
        request = model_pb2.LoadModelRequest(family=family, revision=revision)
        with calling(self.service, self.target):
            await self.stub.LoadModel(request, metadata=calls.outgoing()["metadata"])

    async def unload(self, family: str, revision: int, timeout: float | None = None) -> None:
        """timeout: seconds; None: as long as the replica waits for calls that use it.

        Raises:
            DeadlineExceeded: it does not answer in time.
            Unavailable, ForwardedError: as load.
        """
        request = model_pb2.UnloadModelRequest(family=family, revision=revision)
        with calling(self.service, self.target):
            await self.stub.UnloadModel(request, timeout=timeout, metadata=calls.outgoing()["metadata"])


@dataclass(frozen=True)
class Answer:
    """What a replica said that it holds."""

    replica: ModelReplica
    models: dict[str, model_pb2.Model]
    loadable: frozenset[str]
    limit_bytes: int

    def holds(self, family: str) -> bool:
        """Whether it can be used there."""
        return family in self.models and self.models[family].state == LOADED

    def is_free_of(self, family: str) -> bool:
        """Whether nothing uses it there any more."""
        return family not in self.models or self.models[family].state == UNLOADED

    def revision(self, family: str) -> int:
        """Of the last wish that it knows; 0: none."""
        return self.models[family].revision if family in self.models else 0


class ModelReplicas:
    """Those that there are just now."""

    def __init__(self, services: ModelServices) -> None:
        self._services = services
        self._hosts: dict[str, dict[str, str]] = {}  # addresses by service, as last looked up
        self._channels: dict[tuple[str, str], Any] = {}  # of encoders and decoders, by service and address

    async def answers(self) -> list[Answer]:
        """Of all that answer; denoisers are noted to have what they say."""
        found = await asyncio.gather(*(self._ask(replica) for replica in await self._all()))
        return [answer for answer in found if answer is not None]

    async def _all(self) -> list[ModelReplica]:
        settings = self._services.settings
        for service, target in (("encoder", settings.encoder_target), ("decoder", settings.decoder_target)):
            self._hosts[service] = await addresses_of(target, self._hosts.get(service, {}))
        wanted = {(service, *found) for service, hosts in self._hosts.items() for found in hosts.items()}
        # Nothing waits from here on: others ask meanwhile. What left closes when its last call has ended.
        self._channels = {
            (service, address): self._channels.get((service, address))
            or self._services.open_channel(address, host)
            for service, address, host in sorted(wanted)
        }
        denoisers = self._services.replicas.current
        return [
            *(ModelReplica("denoiser", replica.target, replica.channel, replica) for replica in denoisers),
            *(ModelReplica(*key, channel) for key, channel in self._channels.items()),
        ]

    async def _ask(self, replica: ModelReplica) -> Answer | None:
        try:
            said = await replica.stub.ListModels(model_pb2.ListModelsRequest(), timeout=LIST_SECONDS)
        except grpc.aio.AioRpcError:
            return None
        models = {model.family: model for model in said.models}
        answer = Answer(replica, models, frozenset(said.loadable), said.memory_limit_bytes)
        if replica.denoiser is not None:  # its own family is the first
            held = (name for name in list(models)[1:] if answer.holds(name))
            _note(replica.denoiser, {name: answer.revision(name) for name in held})
        return answer

    async def close(self) -> None:
        """Closes the channels that are its own."""
        for channel in self._channels.values():
            await channel.close()


def _note(denoiser: Replica, revisions: dict[str, int]) -> None:
    """Trajectories of a family go where it is; one that was loaded anew may have other weights."""
    for name in denoiser.families.keys() - {""}:
        if denoiser.families[name].revision != revisions.get(name):
            del denoiser.families[name]
    for name, revision in revisions.items():
        denoiser.families.setdefault(name, Held(revision))
