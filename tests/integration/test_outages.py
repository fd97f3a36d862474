"""What the editor needs goes away and comes back: no accepted edit is lost.

S3 is moto's server, a stand-in; the PostgreSQL is real. SFUMATO_TEST_OUTAGE_SECONDS makes the outages longer.
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2

from sfumato_client import Client, SfumatoError
from sfumato_client.edit_requests import artifacts_of
from tests.editor_process import SMALL, kill_and_restart, noisy_image, running_editor
from tests.postgres import postgres_server
from tests.s3 import s3_server

METHOD = "deep-image-prior"
SECONDS = float(os.environ.get("SFUMATO_TEST_OUTAGE_SECONDS", "6"))


def options(seed: int, num_iterations: int = 60) -> dict[str, Any]:
    return {"image": noisy_image(), "seed": seed, "num_iterations": num_iterations, **SMALL}


def start(client: Client, number: int, prefix: str = "edit") -> list[operations_pb2.Operation]:
    """Accepts so many edits, of two kinds."""
    return [
        client.start_edit(METHOD, **options(index % 2), request_id=f"{prefix}-{index}")
        for index in range(number)
    ]


def until_running(client: Client, operation: operations_pb2.Operation) -> None:
    """Returns behind its first iterations."""
    for event in client.watch_edit(operation.name):
        if event.iteration >= 3:
            return


def until_answers(client: Client) -> None:
    """Returns when the editor answers again."""
    end = time.monotonic() + 120
    while True:
        try:
            list(client.list_operations())
            return
        except SfumatoError:
            assert time.monotonic() < end
            time.sleep(0.5)


def all_end_with(client: Client, operations: list[operations_pb2.Operation], expected: list[bytes]) -> None:
    """Every edit succeeded, with the undisturbed bits."""
    for index, operation in enumerate(operations):
        (image,) = artifacts_of(client.wait_operation(operation.name))
        assert image.data == expected[index % 2]


@pytest.mark.timeout(900)
def test_edits_survive_a_database_and_a_store_that_are_away(tiny_family: Path, tmp_path: Path) -> None:
    with postgres_server() as postgres, s3_server() as s3:
        settings = {"database_url": postgres.url, "artifacts_url": s3.url, "executor_id": "editor-0"}
        with running_editor(tiny_family, tmp_path, **settings) as (editor, client):
            expected = [client.edit(METHOD, **options(seed))[0].data for seed in range(2)]
            started = start(client, 3)
            until_running(client, started[0])
            postgres.crash()
            time.sleep(SECONDS)
            postgres.start()
            until_answers(client)
            all_end_with(client, started, expected)
            stored = start(client, 3, "stored")
            until_running(client, stored[0])
            s3.stop()
            with pytest.raises(SfumatoError) as error:  # nothing is accepted that cannot be kept
                client.start_edit(METHOD, **options(0), request_id="refused")
            assert error.value.code == "UNAVAILABLE"
            time.sleep(SECONDS)
            s3.start()
            all_end_with(client, stored, expected)
            assert editor.process.poll() is None
            names = {operation.name for operation in client.list_operations()}
            assert {operation.name for operation in [*started, *stored]} <= names
            assert "operations/refused" not in names


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 3 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    folder = Path(tempfile.mkdtemp(prefix="sfumato-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(path: Path) -> None:
    """Takes all room that is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass


@pytest.mark.timeout(600)
def test_a_full_disk_refuses_new_edits_and_loses_none_of_the_accepted(
    tiny_family: Path, tmp_path: Path, small_disk: Path
) -> None:
    store = {"artifacts_url": f"file://{small_disk}/artifacts"}
    with running_editor(tiny_family, tmp_path, **store) as (editor, client):
        expected = [client.edit(METHOD, **options(seed))[0].data for seed in range(2)]
        started = start(client, 3)
        until_running(client, started[0])
        fill(small_disk / "filler")
        with pytest.raises(SfumatoError) as error:
            client.start_edit(METHOD, **options(0), request_id="refused")
        assert (error.value.code, error.value.field) == ("RESOURCE_EXHAUSTED", "artifact store")
        time.sleep(SECONDS)
        (small_disk / "filler").unlink()
        all_end_with(client, started, expected)
        kill_and_restart(editor)
        all_end_with(client, started, expected)
        assert "operations/refused" not in {operation.name for operation in client.list_operations()}
