"""Edits through the gateway: refused with a reason, followed, and ended whichever process dies."""

import asyncio
import io
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2
from PIL import Image

from sfumato_client import AsyncClient, Client, SfumatoError
from sfumato_client.edit_requests import METHODS, artifacts_of, metadata_of
from sfumato_client.stack import Stack, is_serving
from tests.editor_process import (
    SMALL,
    editing_stack,
    kill_and_restart,
    noisy_image,
    running_editor,
    wait_until_serving,
)
from tests.integration.test_requests import log_lines, until
from tests.postgres import running_postgres
from tests.s3 import running_s3

METHOD = "deep-image-prior"


@pytest.fixture(scope="module")
def edit_stack(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services with the tiny family, and an editor that takes checkpoints all the time."""
    folder = tmp_path_factory.mktemp("edits")
    with editing_stack(tiny_family, folder, checkpoint_seconds=0.2) as running:
        yield running


@pytest.fixture
def edits(edit_stack: Stack) -> Iterator[Client]:
    with Client(edit_stack.target, timeout=60) as client:
        yield client


def options(num_iterations: int = 30, **more: Any) -> dict[str, Any]:
    return {"image": noisy_image(), "seed": 1, "num_iterations": num_iterations, **SMALL, **more}


def test_an_edit_gives_events_for_every_iteration_and_then_its_image(edits: Client) -> None:
    operation = edits.start_edit(METHOD, **options(preview_interval_iterations=10))
    assert operation.name.startswith("operations/")
    events = list(edits.watch_edit(operation.name))
    assert [event.iteration for event in events] == list(range(1, 31))
    assert all(set(event.losses) == {"total", "reconstruction"} for event in events)
    assert events[-1].losses["total"] < events[0].losses["total"]
    assert [event.iteration for event in events if event.preview] == [10, 20, 30]
    ended = edits.wait_operation(operation.name)
    image = artifacts_of(ended)[0]
    assert (image.name, image.media_type) == ("image", "image/png")
    assert Image.open(io.BytesIO(image.data)).size == (32, 32)
    metadata = metadata_of(ended)
    assert (metadata.method, metadata.seed, metadata.num_iterations) == (METHOD, 1, 30)
    assert metadata.expire_time.ToSeconds() - metadata.end_time.ToSeconds() == 7 * 86400
    assert [event.iteration for event in edits.watch_edit(operation.name, 28)] == [29, 30]


def test_clip_joins_in_with_prompts(edits: Client) -> None:
    prompts = ["a cat", "blurry:-0.5"]
    artifacts = edits.edit(METHOD, **options(3, prompts=prompts, num_cutouts=2, request_id="with-clip"))
    assert [artifact.name for artifact in artifacts] == ["image"]
    (event, *_) = edits.watch_edit("operations/with-clip")
    assert set(event.losses) == {"total", "reconstruction", "clip"}


def test_every_method_is_listed_and_runs_on_a_family_that_has_its_weights(edits: Client) -> None:
    assert set(METHODS) <= set(edits.list_families()[0].methods)  # those of videos: test_video_edits.py
    image, few = noisy_image(), {"num_inversion_iterations": 2}
    calls: dict[str, dict[str, Any]] = {
        "vqgan-clip": {"image": image, "prompts": ["a cat"], "num_iterations": 2, "num_cutouts": 2},
        "text2live": {"image": image, "prompt": "a cat", "num_iterations": 2, "num_views": 2, "channels": 8},
        "styleclip-optimization": {"image": image, "prompt": "a cat", "num_iterations": 2, **few},
        "styleclip-mapper-training": {"prompt": "a cat", "num_iterations": 2, "request_id": "a-mapper"},
        "styleclip-mapper": {"image": image, "mapper": "operations/a-mapper", **few},
        "styleclip-direction": {
            "prompt": "a cat", "neutral_prompt": "an owl", "beta": 0, "num_relevance_images": 2,
        },
    }  # fmt: skip
    made = {name: [a.name for a in edits.edit(name, seed=1, **asked)] for name, asked in calls.items()}
    assert all(names[0] == "image" for names in made.values())
    assert made["text2live"] == ["image", "edit_layer"]
    assert made["styleclip-mapper-training"] == ["image", "mapper"]


def test_the_same_request_id_is_the_same_operation(edits: Client) -> None:
    first = edits.start_edit(METHOD, **options(request_id="twice"))
    again = edits.start_edit(METHOD, **options(request_id="twice"))
    assert first.name == again.name == "operations/twice"
    with pytest.raises(SfumatoError) as error:
        edits.start_edit(METHOD, **options(31, request_id="twice"))
    assert (error.value.code, error.value.field) == ("ALREADY_EXISTS", "request_id")
    edits.wait_operation(first.name)
    assert [operation.name for operation in edits.list_operations()].count(first.name) == 1


def test_cancelling_frees_the_device_within_an_iteration(edits: Client) -> None:
    long = edits.start_edit(METHOD, **options(20_000))
    for event in edits.watch_edit(long.name):
        if event.iteration >= 5:
            break
    edits.cancel_operation(long.name)
    ended = edits.get_operation(long.name)
    assert (ended.done, ended.error.code) == (True, code_pb2.CANCELLED)
    start = time.monotonic()
    assert edits.edit(METHOD, **options(2))
    assert time.monotonic() - start < 30
    assert metadata_of(ended).iteration < 20_000
    edits.delete_operation(long.name)
    with pytest.raises(SfumatoError) as error:
        edits.get_operation(long.name)
    assert error.value.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("field", "code", "bad"),
    [
        ("image", "INVALID_ARGUMENT", {"image": b"no image"}),
        ("prompts[0].text", "INVALID_ARGUMENT", {"prompts": [""]}),
        ("num_iterations", "INVALID_ARGUMENT", {"num_iterations": 10**6}),
        ("image", "RESOURCE_EXHAUSTED", {"image": b"\0" * (9 * 2**20)}),
        ("request_id", "INVALID_ARGUMENT", {"request_id": "a b"}),
        ("request_id", "INVALID_ARGUMENT", {"request_id": ".."}),
    ],
)
def test_bad_input_is_refused_and_the_editor_stays_healthy(
    edits: Client, edit_stack: Stack, field: str, code: str, bad: dict[str, Any]
) -> None:
    with pytest.raises(SfumatoError) as error:
        edits.start_edit(METHOD, **{**options(), **bad})
    assert (error.value.code, error.value.field) == (code, field)
    assert error.value.limit
    assert edit_stack.editor is not None
    assert is_serving(edit_stack.editor.target)


def test_operations_of_no_such_name_are_refused(edits: Client) -> None:
    with pytest.raises(SfumatoError) as error:
        edits.get_operation("operations/none")
    assert error.value.code == "NOT_FOUND"
    with pytest.raises(SfumatoError) as error:
        edits.get_operation("none")
    assert (error.value.code, error.value.field) == ("INVALID_ARGUMENT", "name")
    with pytest.raises(SfumatoError) as error:
        edits.delete_operation("operations/..")
    assert (error.value.code, error.value.field) == ("INVALID_ARGUMENT", "name")
    with pytest.raises(SfumatoError) as error:
        list(edits.watch_edit("operations/none"))
    assert error.value.code == "NOT_FOUND"


def test_a_wait_ends_at_its_timeout(edits: Client) -> None:
    operation = edits.start_edit(METHOD, **options(20_000))
    start = time.monotonic()
    assert not edits.wait_operation(operation.name, timeout=0.5).done
    assert 0.4 < time.monotonic() - start < 20
    edits.cancel_operation(operation.name)


async def test_the_awaited_client_does_the_same(edit_stack: Stack) -> None:
    async with AsyncClient(edit_stack.target, timeout=60) as client:
        operation = await client.start_edit(METHOD, **options(4, request_id="awaited"))
        assert [event.iteration async for event in client.watch_edit(operation.name)] == [1, 2, 3, 4]
        (image,) = artifacts_of(await client.wait_operation(operation.name))
        assert [image] == list(await client.edit(METHOD, **options(4, request_id="awaited")))
        names = [entry.name async for entry in client.list_operations(page_size=1)]
        assert "operations/awaited" in names
        await client.cancel_operation(operation.name)
        await client.delete_operation(operation.name)
        with pytest.raises(SfumatoError):
            await client.get_operation(operation.name)


@pytest.mark.parametrize("call", ["watch_edit", "wait_operation"])
def test_closing_the_client_ends_the_calls_of_its_threads(edit_stack: Stack, call: str) -> None:
    client, errors = Client(edit_stack.target, timeout=60), []
    operation = client.start_edit(METHOD, **options(20_000))

    def follow() -> None:
        try:
            if call == "watch_edit":
                list(client.watch_edit(operation.name))
            else:
                client.wait_operation(operation.name)
        except SfumatoError as error:
            errors.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(1.0)
    client.close()
    thread.join(10)
    assert [error.reason for error in errors] == ["CLIENT_CLOSED"]
    with Client(edit_stack.target, timeout=60) as other:
        other.cancel_operation(operation.name)


async def test_a_cancelled_wait_ends_at_the_gateway_too_and_the_edit_goes_on(edit_stack: Stack) -> None:
    async with AsyncClient(edit_stack.target, timeout=60) as client:
        waiting = asyncio.create_task(client.edit(METHOD, **options(20_000, request_id="left-waiting")))
        await asyncio.sleep(1.0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        method = "/google.longrunning.Operations/WaitOperation"
        ended = {"event": "call", "method": method, "code": "CANCELLED"}
        assert await until(lambda: bool(log_lines(edit_stack.gateway.log, **ended)))
        assert not (await client.get_operation("operations/left-waiting")).done
        await client.cancel_operation("operations/left-waiting")


def test_the_edit_goes_on_when_the_gateway_is_killed(edits: Client, edit_stack: Stack) -> None:
    (undisturbed,) = edits.edit(METHOD, **options(120))
    operation = edits.start_edit(METHOD, **options(120))
    seen = []
    for event in edits.watch_edit(operation.name):
        seen.append(event.iteration)
        if event.iteration == 3:
            edit_stack.gateway.process.kill()
            edit_stack.gateway.process.wait()
            edit_stack.gateway.start()
    assert seen == list(range(1, 121))
    (image,) = artifacts_of(edits.wait_operation(operation.name))
    assert image.data == undisturbed.data


def test_the_gateway_waits_for_an_editor_that_is_killed(edits: Client, edit_stack: Stack) -> None:
    (undisturbed,) = edits.edit(METHOD, **options(60))
    operation = edits.start_edit(METHOD, **options(60))
    editor = edit_stack.editor
    assert editor is not None
    seen = []
    for event in edits.watch_edit(operation.name):
        seen.append(event.iteration)
        if event.iteration == 20:
            editor.process.kill()
            editor.process.wait()
            editor.start()
    assert seen == list(range(1, 61))
    (image,) = artifacts_of(edits.wait_operation(operation.name))
    assert image.data == undisturbed.data


def test_a_gateway_without_an_editor_says_so(stack: Stack) -> None:
    with Client(stack.target) as client, pytest.raises(SfumatoError) as error:
        client.start_edit(METHOD, prompts=["a cat"])
    assert error.value.code == "UNIMPLEMENTED"
    assert "SFUMATO_GATEWAY_EDITOR_TARGET" in error.value.message


@pytest.mark.parametrize("kept", ["sqlite and files", "postgresql and s3"])
@pytest.mark.timeout(600)
def test_a_killed_editor_ends_every_edit_once_with_the_undisturbed_bits(
    tiny_family: Path, tmp_path: Path, kept: str
) -> None:
    """S3 is moto's server, a stand-in; the PostgreSQL is real."""
    import contextlib

    with contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {}
        if kept.startswith("postgresql"):
            settings["database_url"] = stack.enter_context(running_postgres())
            settings["artifacts_url"] = stack.enter_context(running_s3())
            settings["executor_id"] = "editor-0"
        editor, client = stack.enter_context(running_editor(tiny_family, tmp_path, **settings))
        expected = [client.edit(METHOD, **options(50, seed=seed))[0].data for seed in range(2)]
        assert expected[0] != expected[1]
        started = [
            client.start_edit(METHOD, **options(50, seed=index % 2, request_id=f"edit-{index}"))
            for index in range(4)
        ]
        moments = random.Random(0)
        for _ in range(2):
            time.sleep(moments.uniform(0.2, 1.5))
            kill_and_restart(editor)
        for index, operation in enumerate(started):
            (image,) = artifacts_of(client.wait_operation(operation.name))
            assert image.data == expected[index % 2]
            iterations = [event.iteration for event in client.watch_edit(operation.name)]
            assert iterations == list(range(1, 51))
        assert len({operation.name for operation in client.list_operations(page_size=2)}) == 6
        if kept.startswith("postgresql"):
            assert not list(tmp_path.glob("state/*.sqlite"))
            assert not (tmp_path / "state" / "artifacts").exists()


def test_what_is_wrong_while_it_runs_is_on_the_operation(tiny_family: Path, tmp_path: Path) -> None:
    import shutil

    with running_editor(tiny_family, tmp_path) as (editor, client):
        operation = client.start_edit(METHOD, **options(20_000))
        for event in client.watch_edit(operation.name):
            if event.iteration >= 30:
                break
        editor.process.kill()
        editor.process.wait()
        for checkpoint in (tmp_path / "state" / "artifacts").glob("*/checkpoints"):
            shutil.rmtree(checkpoint)
        editor.start()
        wait_until_serving(editor)
        ended = client.wait_operation(operation.name)
        assert ended.error.code == code_pb2.NOT_FOUND
        assert "is gone from the artifact store" in ended.error.message
        assert client.edit(METHOD, **options(2))
