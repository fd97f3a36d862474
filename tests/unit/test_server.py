"""How a service starts and stops: what probes see, and what running calls get."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import Result
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from sfumato.common.config import ServerSettings
from sfumato.common.inference_tensors import Model, Tensor
from sfumato.common.server import serve
from sfumato_client.cli import app
from sfumato_client.stack import free_port


class Slow:
    """A service that loads when it is told to, and has one slow call."""

    service_name = "sfumato.v1.Slow"

    def __init__(self) -> None:
        self.may_load, self.called, self.may_answer = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the slow call."""

        async def wait(request: bytes, context: Any) -> bytes:
            self.called.set()
            await self.may_answer.wait()
            return b"done"

        handlers = {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.service_name, handlers),))

    def open_models(self) -> list[Model]:
        """One that gives back what it gets."""

        async def same(wanted: Sequence[str], x: Any) -> dict[str, Any]:
            return {"y": x}

        return [Model("same", [Tensor("x", "FP32", (-1,), 8)], [Tensor("y", "FP32", (-1,))], same)]

    async def load(self) -> None:
        """Waits for the test."""
        await self.may_load.wait()

    async def close(self) -> None:
        """Holds nothing."""


class Running:
    """The slow service under way, with its ports."""

    def __init__(self) -> None:
        self.service = Slow()
        self.settings = ServerSettings(port=free_port(), health_port=free_port(), drain_seconds=5)
        self.task = asyncio.create_task(serve(self.settings, self.service))

    async def health(self, name: str, port: int) -> str:
        """The health service's word, once the port is open."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=name)
            response = await stub.Check(request, timeout=10, wait_for_ready=True)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    async def until_health(self, name: str, wanted: str) -> None:
        """Returns when the probes' port says so."""
        while await self.health(name, self.settings.health_port) != wanted:
            await asyncio.sleep(0.01)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    started = Running()
    yield started
    started.service.may_answer.set()
    if not started.task.done():
        await started.health("", started.settings.health_port)  # its signal handlers are set
        os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(started.task, 20)


async def test_probes_have_a_port_of_their_own_that_says_what_the_main_port_says(running: Running) -> None:
    name = running.service.service_name
    for port in (running.settings.health_port, running.settings.port):
        assert await running.health("liveness", port) == "SERVING"
        assert await running.health(name, port) == "NOT_SERVING"
    running.service.may_load.set()
    await asyncio.wait_for(running.until_health(name, "SERVING"), 10)
    assert await running.health(name, running.settings.port) == "SERVING"


async def test_the_open_inference_protocol_is_ready_when_the_service_is(running: Running) -> None:
    name = running.service.service_name
    tensor = InferInput("x", [2], "FP32").set_data_from_numpy(np.array([1, 2], np.float32))
    async with InferenceServerClient(f"127.0.0.1:{running.settings.port}") as client:
        assert await running.health("liveness", running.settings.port) == "SERVING"
        assert await client.is_server_live()
        assert not await client.is_server_ready()
        assert not await client.is_model_ready("same")
        with pytest.raises(InferenceServerException, match="its model is loading"):
            await client.infer("same", [tensor])
        running.service.may_load.set()
        await asyncio.wait_for(running.until_health(name, "SERVING"), 10)
        assert await client.is_server_ready()
        assert await client.is_model_ready("same")
        assert (await client.infer("same", [tensor])).as_numpy("y").tolist() == [1, 2]


async def test_the_probes_port_serves_nothing_but_health(running: Running) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.settings.health_port}") as channel:
        call = channel.unary_unary("/sfumato.v1.Slow/Wait")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"", timeout=10, wait_for_ready=True)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_while_it_drains_it_is_alive_but_not_ready_and_the_running_call_ends(running: Running) -> None:
    name = running.service.service_name
    running.service.may_load.set()
    await asyncio.wait_for(running.until_health(name, "SERVING"), 10)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.settings.port}") as channel:
        call = channel.unary_unary("/sfumato.v1.Slow/Wait")(b"", timeout=30)
        await asyncio.wait_for(running.service.called.wait(), 10)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running.until_health(name, "NOT_SERVING"), 10)
        assert await running.health("liveness", running.settings.health_port) == "SERVING"
        running.service.may_answer.set()
        assert await call == b"done"
    await asyncio.wait_for(running.task, 20)


def asked(*arguments: str) -> Result:
    """`sfumato health`, run to its end."""
    return CliRunner().invoke(app, ["health", *arguments])


async def test_the_health_command_tells_by_its_exit_code(running: Running) -> None:
    name = running.service.service_name
    probes = f"127.0.0.1:{running.settings.health_port}"
    assert await running.health("liveness", running.settings.health_port) == "SERVING"
    loading = await asyncio.to_thread(asked, probes)
    assert (loading.exit_code, "NOT_SERVING" in loading.stderr) == (1, True)
    assert (await asyncio.to_thread(asked, probes, "--service", "liveness")).exit_code == 0
    running.service.may_load.set()
    await asyncio.wait_for(running.until_health(name, "SERVING"), 10)
    serving = await asyncio.to_thread(asked, probes, "--service", name)
    assert (serving.exit_code, serving.stdout) == (0, "SERVING\n")
    unknown = await asyncio.to_thread(asked, probes, "--service", "sfumato.v1.Other")
    assert (unknown.exit_code, "not found" in unknown.stderr) == (1, True)


def test_the_health_command_fails_where_nobody_listens() -> None:
    refused = asked(f"127.0.0.1:{free_port()}", "--timeout", "2")
    assert (refused.exit_code, "unavailable" in refused.stderr) == (1, True)
