"""Requests with an id of the client's: joined, gone on with after a lost connection, the tenant's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sfumato_protos.v1 import gateway_pb2

from sfumato_client import AsyncClient, SfumatoError
from sfumato_client.stack import Stack
from tests.secured import Secured

LONG: dict[str, Any] = {"num_inference_steps": 300, "scheduler": "ddim", "seed": 4}


class Line:
    """A connection to the gateway that can be cut."""

    def __init__(self, target: str) -> None:
        self.host, self.port = target.split(":")
        self.writers: list[asyncio.StreamWriter] = []
        self.num_connections = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries bytes both ways until either side ends."""
        self.num_connections += 1
        back, forth = await asyncio.open_connection(self.host, self.port)
        self.writers += [writer, forth]
        await asyncio.gather(carry(reader, forth), carry(back, writer))

    def cut(self) -> None:
        """Ends all connections; new ones may be made."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def line_to(target: str) -> AsyncIterator[tuple[Line, str]]:
    line = Line(target)
    server = await asyncio.start_server(line.connected, "127.0.0.1", 0)
    yield line, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    line.cut()
    server.close()


@pytest.fixture
async def tiny_client(tiny_stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(tiny_stack.target, timeout=120) as opened:
        yield opened


async def left_after(client: AsyncClient, steps: int, **options: Any) -> gateway_pb2.GenerateResponse:
    """The step's event of a request whose stream is then left."""
    events = client.generate_events("a cat", **options)
    async for event in events:
        if event.step.step == steps:
            await events.aclose()
            return event
    raise AssertionError("it ended")


async def test_the_same_request_with_the_same_id_is_one_run(tiny_client: AsyncClient) -> None:
    """Without a seed: two runs would give two images. What a client hears of it does not matter."""
    options: Any = {"num_inference_steps": 20, "request_id": "same-run"}
    first, second = await asyncio.gather(*(tiny_client.generate("a cat", **options) for _ in range(2)))
    later = await tiny_client.generate("a cat", **options, progress_interval_steps=1)
    seed = first.parameters.seed
    assert (second.parameters.seed, later.parameters.seed) == (seed, seed)
    assert first.images[0].data == second.images[0].data == later.images[0].data


async def test_another_request_with_that_id_is_refused(tiny_client: AsyncClient) -> None:
    await tiny_client.generate("a cat", num_inference_steps=2, request_id="taken")
    with pytest.raises(SfumatoError) as error:
        await tiny_client.generate("a dog", num_inference_steps=2, request_id="taken")
    assert (error.value.code, error.value.field) == ("ALREADY_EXISTS", "request_id")
    assert "taken" in error.value.message


async def test_a_connection_that_is_cut_is_made_again_and_no_event_is_missed(
    tiny_stack: Stack, tiny_client: AsyncClient
) -> None:
    undisturbed = await tiny_client.generate("a cat", **LONG)
    async with line_to(tiny_stack.target) as (line, target), AsyncClient(target, timeout=120) as client:
        indices, image = [], b""
        options = {**LONG, "request_id": "cut", "on_disconnect": "continue"}
        async for event in client.generate_events("a cat", **options):
            indices.append(event.event_index)
            if event.step.step in (5, 40):
                line.cut()
            image = event.image.data or image
    assert line.num_connections >= 3
    assert indices == list(range(303))  # accepted, 300 steps, the image, done
    assert image == undisturbed.images[0].data


EVENTS: dict[str, Any] = {
    "edit": lambda client, **options: client.edit_prompt_events(
        "a cat", "a dog", num_inference_steps=60, seed=4, **options
    ),
    "compare": lambda client, **options: client.compare_events(
        "a cat", {"none": {"guidance": "none"}, "cfg": {}}, **{**LONG, "num_inference_steps": 40}, **options
    ),
}


@pytest.mark.parametrize(("kind", "count"), [("edit", 64), ("compare", 86)])
async def test_edits_and_comparisons_are_joined_again_too(
    tiny_stack: Stack, tiny_client: AsyncClient, kind: str, count: int
) -> None:
    def whole(response: Any) -> Any:
        return response.event if kind == "compare" else response

    undisturbed = [whole(event).image.data async for event in EVENTS[kind](tiny_client)]
    async with line_to(tiny_stack.target) as (line, target), AsyncClient(target, timeout=120) as client:
        indices, images = [], []
        options = {"request_id": f"cut-{kind}", "on_disconnect": "continue"}
        async for event in EVENTS[kind](client, **options):
            indices.append(whole(event).event_index)
            images.append(whole(event).image.data)
            if len(indices) == 12:
                line.cut()
    assert line.num_connections >= 2
    assert indices == list(range(count))  # nothing is missed, and nothing run twice
    assert images == undisturbed
    again = [whole(event).image.data async for event in EVENTS[kind](tiny_client, **options)]
    assert [data for data in again if data] == [data for data in images if data]
    with pytest.raises(SfumatoError) as error:  # the id is another's, of whichever kind
        await tiny_client.generate("a cat", request_id=f"cut-{kind}")
    assert error.value.code == "ALREADY_EXISTS"


async def test_without_an_id_a_cut_connection_is_an_error(tiny_stack: Stack) -> None:
    async with line_to(tiny_stack.target) as (line, target), AsyncClient(target, timeout=120) as client:
        events = client.generate_events("a cat", **LONG)
        assert (await anext(events)).HasField("accepted")
        line.cut()
        with pytest.raises(SfumatoError) as error:
            [event async for event in events]
    assert error.value.code == "UNAVAILABLE"


async def test_left_to_go_on_it_is_done_when_it_is_joined_again(tiny_client: AsyncClient) -> None:
    options: Any = {**LONG, "request_id": "goes-on", "on_disconnect": "continue"}
    await left_after(tiny_client, 3, **options)
    await asyncio.sleep(1.0)
    steps = []
    async for event in tiny_client.generate_events("a cat", **options):
        steps += [event.step.step] if event.HasField("step") else []
    assert steps[-1] == 300
    # Of its 300 steps the last 256 were kept, if so many were done while nobody read.
    assert len(steps) >= 256


async def test_left_without_a_wish_it_ends(tiny_client: AsyncClient, tiny_stack: Stack) -> None:
    from tests.integration.test_requests import ended, until

    await left_after(tiny_client, 3, **LONG, request_id="left")
    assert await until(lambda: ended(tiny_stack, "left"))


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("on_disconnect", {"on_disconnect": "continue"}),
        ("keep_seconds", {"keep_seconds": 5.0}),
        ("keep_seconds", {"keep_seconds": 1e9, "request_id": "long-kept"}),
    ],
)
async def test_wishes_that_cannot_be_held_are_refused(
    tiny_client: AsyncClient, field: str, options: Any
) -> None:
    with pytest.raises(SfumatoError) as error:
        await tiny_client.generate("a cat", **options)
    assert (error.value.code, error.value.field) == ("INVALID_ARGUMENT", field)


def test_an_id_of_one_tenant_says_nothing_to_another(secured: Secured) -> None:
    options: Any = {"num_inference_steps": 2, "request_id": "tenants-own"}
    with secured.client("acme") as acme, secured.client("globex") as globex:
        mine = acme.generate("a secret cat", **options)
        assert globex.generate("a dog", **options).parameters.prompt == "a dog"
        again = acme.generate("a secret cat", **options)
    assert again.parameters.seed == mine.parameters.seed
