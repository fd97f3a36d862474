"""The client in a program: threads, cancelled tasks, clients closed or forgotten, gateways started again."""

import asyncio
import gc
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from sfumato_protos.v1 import gateway_pb2

from sfumato_client import AsyncClient, Client, SfumatoError
from sfumato_client.stack import Service, Stack, free_port
from tests.editor_process import running
from tests.integration.test_rejoining import Line
from tests.integration.test_requests import log_lines, until

NOBODY = "http://127.0.0.1:9"
LONG: dict[str, Any] = {"num_inference_steps": 300, "scheduler": "ddim", "seed": 4}


@pytest.fixture
async def tiny_client(tiny_stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(tiny_stack.target, timeout=120) as opened:
        yield opened


def test_threads_share_a_client(tiny_stack: Stack) -> None:
    with Client(tiny_stack.target, timeout=120) as client, ThreadPoolExecutor(8) as pool:

        def image(seed: int) -> bytes:
            return client.generate("a cat", num_inference_steps=5, seed=seed).images[0].data

        made = list(pool.map(image, [*range(8), *range(8)]))
    assert made[:8] == made[8:]
    assert len(set(made)) == 8


def test_closing_ends_the_calls_of_other_threads(tiny_stack: Stack) -> None:
    client, reached = Client(tiny_stack.target, timeout=120), threading.Event()
    errors = []

    def run() -> None:
        try:
            for event in client.generate_events("a cat", **LONG, request_id="closed"):
                if event.HasField("step"):
                    reached.set()
        except SfumatoError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(30)
    client.close()
    thread.join(10)
    assert [(error.code, error.reason) for error in errors] == [("CANCELLED", "CLIENT_CLOSED")]


async def test_closing_ends_the_calls_of_other_tasks_with_an_error(tiny_stack: Stack) -> None:
    """And not as if somebody had cancelled them: a TaskGroup would pass over that in silence."""
    client = AsyncClient(tiny_stack.target, timeout=120)
    tasks = [asyncio.create_task(client.generate("a cat", **LONG)) for _ in range(2)]
    await asyncio.sleep(0.3)
    await client.close()
    for task in tasks:
        with pytest.raises(SfumatoError, match="the client was closed"):
            await task


@pytest.mark.parametrize("call", ["generate", "generate_events", "edit_prompt", "compare"])
async def test_a_cancelled_task_ends_its_request_and_leaves_nothing(
    tiny_stack: Stack, tiny_client: AsyncClient, call: str, recwarn: pytest.WarningsRecorder
) -> None:
    name = f"cancelled-{call.replace('_', '-')}"
    options: Any = {"num_inference_steps": 900, "request_id": name}
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    async def run() -> None:
        if call == "generate_events":
            async for _ in tiny_client.generate_events("a cat", scheduler="ddim", **options):
                pass
        elif call == "generate":
            await tiny_client.generate("a cat", scheduler="ddim", **options)
        elif call == "edit_prompt":
            await tiny_client.edit_prompt("a cat", "a dog", **options)
        else:
            await tiny_client.compare("a cat", {"cfg": {}}, scheduler="ddim", **options)

    task = asyncio.create_task(run())
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    call_of_it = {"event": "call", "request_id": name, "code": "CANCELLED"}
    assert await until(lambda: bool(log_lines(tiny_stack.gateway.log, **call_of_it)))
    gc.collect()
    await asyncio.sleep(0)
    asyncio.get_running_loop().set_exception_handler(None)
    assert not unhandled
    assert not [warning for warning in recwarn if "never" in str(warning.message)]
    again = await tiny_client.generate("another cat", num_inference_steps=2, request_id=name)
    assert again.images  # the id is free


def open_files() -> tuple[int, int]:
    """And threads, of this process."""
    process = psutil.Process()
    return process.num_fds(), process.num_threads()


async def test_clients_that_are_dropped_leave_neither_files_nor_threads(tiny_stack: Stack) -> None:
    async def use(count: int) -> None:
        for _ in range(count):
            Client(tiny_stack.target, api_key="sfu_any_key").list_families()
            await AsyncClient(tiny_stack.target).list_families()
        gc.collect()
        await asyncio.sleep(0.5)

    await use(5)
    before = open_files()
    await use(40)
    after = open_files()
    assert all(now - was < 10 for was, now in zip(before, after, strict=True)), (before, after)


@pytest.fixture
def second_gateway(tiny_stack: Stack, tmp_path: Path) -> Iterator[Service]:
    """A gateway of the same model services, that may be killed."""
    port = free_port()
    environment = {**tiny_stack.gateway.environment, "SFUMATO_GATEWAY_PORT": str(port)}
    environment |= {"SFUMATO_GATEWAY_DRAIN_SECONDS": "0.5", "SFUMATO_GATEWAY_METRICS_PORT": "0"}
    gateway = Service("gateway", port, environment, tmp_path / "gateway.log")
    with running(gateway):
        yield gateway


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_request_with_an_id_outlives_its_gateway(
    tiny_client: AsyncClient, second_gateway: Service, number: signal.Signals
) -> None:
    """Begun anew at the next one, with the seed that was drawn."""
    image, accepted = b"", []
    async with AsyncClient(second_gateway.target, timeout=120) as client:
        options = {**LONG, "seed": None, "request_id": "outlives"}
        async for event in client.generate_events("a cat", **options):
            if event.HasField("accepted"):
                accepted.append(event.accepted.parameters)
            if event.step.step == 20 and len(accepted) == 1:
                second_gateway.process.send_signal(number)
                await asyncio.to_thread(second_gateway.process.wait)
                second_gateway.start()
            image = event.image.data or image
    assert [parameters.seed for parameters in accepted] == [accepted[0].seed] * 2
    undisturbed = await tiny_client.generate("a cat", **{**LONG, "seed": accepted[0].seed})
    assert image == undisturbed.images[0].data


async def test_a_gateway_that_still_loads_is_waited_for(tiny_stack: Stack, tmp_path: Path) -> None:
    """As after a restart of everything: it listens at once, and serves when the model services do."""
    port, encoder = free_port(), free_port()
    environment = {**tiny_stack.gateway.environment, "SFUMATO_GATEWAY_PORT": str(port)}
    environment |= {
        "SFUMATO_GATEWAY_ENCODER_TARGET": f"127.0.0.1:{encoder}",
        "SFUMATO_GATEWAY_METRICS_PORT": "0",
    }
    gateway = Service("gateway", port, environment, tmp_path / "gateway.log")
    gateway.log.touch()
    gateway.start()
    try:
        async with AsyncClient(gateway.target, timeout=60) as client:
            assert await until(lambda: '"listening"' in gateway.log.read_text(), 30)
            early = asyncio.create_task(client.generate("a cat", num_inference_steps=2, request_id="early"))
            await asyncio.sleep(1.5)
            assert not early.done(), early
            line = Line(tiny_stack.encoder.target)
            async with await asyncio.start_server(line.connected, "127.0.0.1", encoder):
                assert (await early).images
                line.cut()
    finally:
        gateway.process.kill()
        await asyncio.to_thread(gateway.process.wait)


def test_to_join_alone_never_starts_a_request(tiny_stack: Stack) -> None:
    request = gateway_pb2.GenerateRequest(prompt="a cat", request_id="of-nobody", resume_from=3)
    with Client(tiny_stack.target, timeout=60) as client, pytest.raises(SfumatoError) as error:
        list(client.events_of(request))
    assert (error.value.code, error.value.field) == ("NOT_FOUND", "request_id")


def test_a_client_that_is_made_before_its_event_loop_runs(tiny_stack: Stack) -> None:
    """As a module's global is."""
    client = AsyncClient(tiny_stack.target, timeout=60)

    async def use() -> int:
        async with client:
            return len(await client.list_families())

    with ThreadPoolExecutor(1) as pool:  # this thread's event loop is the other tests'
        assert pool.submit(asyncio.run, use()).result(30) == 1


def test_a_proxy_is_not_asked_for_this_machine(tiny_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", NOBODY)
    with Client(tiny_stack.target, timeout=20) as client:
        assert client.list_families()
