"""The replicas of encoder and decoder while addresses come and go, over real channels."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from sfumato_protos.v1 import model_pb2, model_pb2_grpc

from sfumato.gateway import replicas as gateway_replicas
from sfumato.gateway.model_replicas import ModelReplicas


class SlowModels(model_pb2_grpc.ModelServiceServicer):
    """Answers when it may."""

    def __init__(self) -> None:
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:
        self.asked.set()
        await self.may_answer.wait()
        return model_pb2.ListModelsResponse()


class Names:
    """A DNS whose answer the test sets."""

    def __init__(self) -> None:
        self.known: dict[str, str] | None = {}

    async def addresses(self, name: str) -> dict[str, str]:
        """None known: it does not answer."""
        if self.known is None:
            raise OSError("no answer")
        return self.known


@pytest.fixture
async def served() -> AsyncIterator[tuple[SlowModels, str]]:
    models, server = SlowModels(), grpc.aio.server()
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield models, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def replicas(
    served: tuple[SlowModels, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[ModelReplicas, Names]]:
    names = Names()
    monkeypatch.setattr(gateway_replicas, "addresses", names.addresses)
    services: Any = SimpleNamespace(
        settings=SimpleNamespace(encoder_target="dns:///encoder:1", decoder_target=served[1]),
        replicas=SimpleNamespace(current=[]),
        open_channel=lambda address, host: grpc.aio.insecure_channel(address),
    )
    opened = ModelReplicas(services)
    yield opened, names
    await opened.close()


async def test_an_address_that_leaves_does_not_end_a_question_under_way(
    served: tuple[SlowModels, str], replicas: tuple[ModelReplicas, Names]
) -> None:
    (models, address), (opened, names) = served, replicas
    names.known = {address: "encoder"}
    first = asyncio.create_task(opened.answers())
    await models.asked.wait()
    names.known = {}
    second = asyncio.create_task(opened.answers())
    await asyncio.sleep(0)
    models.may_answer.set()
    assert {answer.replica.service for answer in await first} == {"encoder", "decoder"}
    assert {answer.replica.service for answer in await second} == {"decoder"}


async def test_while_the_dns_does_not_answer_the_known_ones_stay(
    served: tuple[SlowModels, str], replicas: tuple[ModelReplicas, Names]
) -> None:
    (models, address), (opened, names) = served, replicas
    models.may_answer.set()
    names.known = {address: "encoder"}
    assert len(await opened.answers()) == 2
    names.known = None
    assert len(await opened.answers()) == 2
