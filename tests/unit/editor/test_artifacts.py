"""The artifact store on a disk, on a disk that is full, and on the S3 API."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sfumato.common.errors import NotFound, ResourceExhausted, Unavailable
from sfumato.editor.artifacts import ArtifactStore
from sfumato_client.stack import free_port
from tests.s3 import running_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with running_s3() as url:
        yield url


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "file":
        return ArtifactStore(f"file://{tmp_path}/store")
    return ArtifactStore(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


def test_what_is_written_is_read_listed_replaced_and_deleted(store: ArtifactStore) -> None:
    tensors = {"z": torch.randn(2, 3).T, "state": torch.Generator().get_state()}
    store.write_tensors("a/checkpoints/1.safetensors", tensors)
    store.write("a/result/image.png", b"1")
    store.write("a/result/image.png", b"2")
    read = store.read_tensors("a/checkpoints/1.safetensors")
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert store.read("a/result/image.png") == b"2"
    assert (store.names(), store.names("a")) == (["a"], ["checkpoints", "result"])
    store.delete("a")
    assert store.names() == []
    store.delete("a")


def test_a_missing_file_is_named(store: ArtifactStore) -> None:
    with pytest.raises(NotFound, match=r"a/nothing is gone from the artifact store"):
        store.read("a/nothing")
    assert store.names("nowhere") == []


def test_two_writers_of_one_file_leave_a_whole_one(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}")

    def write(value: int) -> set[int]:
        sizes = set()
        for _ in range(40):
            store.write("_cache/table", bytes([value]) * 2_000_000)
            sizes.add(len(store.read("_cache/table")))
        return sizes

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(write, (1, 2))) == [{2_000_000}] * 2
    assert store.names("_cache") == ["table"]


def test_what_a_killed_process_was_writing_is_no_file(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}")
    writes = "import os; from sfumato.editor.artifacts import ArtifactStore; "
    writes += f"store = ArtifactStore('file://{tmp_path}'); store.fs.mv = lambda *_: os._exit(9); "
    killed = subprocess.run(
        [sys.executable, "-c", f"{writes}store.write('a/1.safetensors', b'x')"], check=False
    )
    assert killed.returncode == 9
    assert list(tmp_path.glob("a/*"))
    assert store.names("a") == []


def test_tensors_are_computed_once(store: ArtifactStore) -> None:
    computed: list[int] = []

    def compute() -> dict[str, torch.Tensor]:
        computed.append(1)
        return {"x": torch.arange(3)}

    for _ in range(2):
        assert torch.equal(store.cached("cache/x.safetensors", compute)["x"], torch.arange(3))
    assert len(computed) == 1


def test_an_unreachable_store_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with pytest.raises(Unavailable, match="s3://nowhere"):
        ArtifactStore("s3://nowhere").read("x")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_so_and_leaves_no_half_file(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], check=True)
    try:
        store = ArtifactStore(f"file://{tmp_path}/store")
        store.write("a/small", b"x" * 1000)
        with pytest.raises(ResourceExhausted, match="full"):
            store.write("a/large", b"x" * 2**20)
        assert store.names("a") == ["small"]
        store.write("a/small", b"y" * 1000)
        assert store.read("a/small") == b"y" * 1000
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
