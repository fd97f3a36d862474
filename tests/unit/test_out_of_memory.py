"""Rows that memory has no room for go in halves; one too large by itself is refused. With a real limit."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.common import forwards
from sfumato.common.forwards import AGAIN_SECONDS, Forward
from sfumato.common.out_of_memory import is_out_of_memory, rows_within

# In a process of its own: it may take 96 MiB more than it has, of addresses, which the kernel holds it to.
LIMITED = """
import asyncio, json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from prometheus_client import REGISTRY
from sfumato.common.batching import RowQueue
from sfumato.common.errors import SfumatoError
from sfumato.common.forwards import Forward
from sfumato.common.work import run

torch.set_num_threads(1)
conv = torch.nn.Conv2d(4, 64, 3, padding=1).requires_grad_(False)  # 1 MiB of output for each row of 64x64
sizes = []

def forward_of(engine):
    session = None
    if engine == "onnxruntime":
        from sfumato.common.onnx_graph import Session
        torch.onnx.export(Sum(), torch.zeros(2, 4, 8, 8), sys.argv[2], dynamo=False, input_names=["x"],
                          dynamic_axes={"x": {0: "rows", 2: "h", 3: "w"}})
        session = Session(Path(sys.argv[2]), ["x"], torch.device("cpu"), 1)
    def forward(x):
        sizes.append(len(x))
        return (session.run(x) if session else Sum()(x),)
    return Forward("trial", forward, max_rows=64)

class Sum(torch.nn.Module):
    def forward(self, x):
        return conv(x).sin().sum(1, keepdim=True)

async def main(engine):
    forward, found = forward_of(engine), {}
    executor = ThreadPoolExecutor(1)
    queue = RowQueue(executor, 1)
    rows, large = torch.randn(64, 4, 64, 64), torch.zeros(1, 4, 1024, 1024)
    expected = [forward.run(row)[0] for row in rows.split(1)]
    await asyncio.gather(queue.rows(forward, rows[:1]), queue.bundle(forward, rows[1:3]))
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 96 * 2**20, -1))

    async def wave(start):
        sizes.clear()
        got = await asyncio.gather(*(queue.rows(forward, row) for row in rows[start:start + 48].split(1)))
        same = all(torch.equal(a, b) for (a,), b in zip(got, expected[start:start + 48]))
        return {"same": same, "largest": max(sizes), "failed": counted()}

    found["first"] = await wave(0)
    found["at_most"] = forward.rows_at_most(rows)
    found["second"] = await wave(16)
    for name, tried in {
        "one": queue.rows(forward, large),
        "other_work": run(executor, "trial", Sum(), large),
    }.items():
        try:
            await tried
        except SfumatoError as error:
            found[name] = [error.code, error.message]
    (whole,) = await queue.bundle(forward, rows)
    found["bundle"] = (whole - torch.cat(expected)).abs().max().item()
    found["after"] = (await wave(0))["same"]
    print(json.dumps(found))

def counted():
    return REGISTRY.get_sample_value("sfumato_model_out_of_memory_total", {"work": "trial"}) or 0

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_rows_go_in_halves_and_what_is_too_large_is_refused(engine: str, tmp_path: Any) -> None:
    # Addresses that malloc would reserve for each thread, or keep when they are free, would count.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = {**os.environ, **malloc, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, engine, str(tmp_path / "sum.onnx")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["first"]["same"]
    assert found["second"]["same"]
    assert found["first"]["largest"] > found["at_most"] >= found["second"]["largest"]
    assert found["second"]["failed"] == found["first"]["failed"] > 0  # the bound is remembered
    assert found["bundle"] < 1e-5
    for name in ("one", "other_work"):
        code, message = found[name]
        assert code == "RESOURCE_EXHAUSTED"
        assert message == (
            "size of trial may be what this service has memory for at present, but is more. "
            "Ask for a smaller size, or again when less is under way."
        )
    assert found["after"]  # the service goes on


def test_forwards_grow_again_when_memory_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And while it is not, one forward fails each time, whatever the load."""
    now, room, failed = 1000.0, 4, 0
    monkeypatch.setattr(forwards, "time", SimpleNamespace(monotonic=lambda: now))

    def run(x: torch.Tensor) -> tuple[torch.Tensor]:
        nonlocal failed
        if len(x) > room:
            failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return (2 * x,)

    forward = Forward("recovering", run, max_rows=64, max_elements=16, batch_invariant=False)
    rows = torch.arange(32.0).reshape(32, 1)

    def all_rows() -> None:
        parts = [(row,) for row in rows.split(1)]
        while parts:
            count = forward.max_together(parts)
            for part, outcome in zip(parts, forward.outcomes(parts[:count]), strict=False):
                assert isinstance(outcome, tuple)
                assert torch.equal(outcome[0], 2 * part[0])
            parts = parts[count:]

    all_rows()
    assert (forward.rows_at_most(rows), failed) == (4, 3)  # 16 at once, and both halves
    for _ in range(5):
        now += AGAIN_SECONDS
        for _ in range(10):
            all_rows()
    assert (forward.rows_at_most(rows), failed) == (4, 3 + 5)
    room = 64
    now += AGAIN_SECONDS
    all_rows()
    assert forward.rows_at_most(rows) == 8
    now += 1000 * AGAIN_SECONDS
    all_rows()
    assert (forward.rows_at_most(rows), failed) == (16, 8)  # no more than there was room for at the start


def test_what_is_no_lack_of_memory_is_told_apart() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(MemoryError) as numpys:
        np.zeros(2**60, dtype=np.uint8)
    assert is_out_of_memory(numpys.value)
    with pytest.raises(RuntimeError) as torchs:
        torch.zeros(2**58, dtype=torch.uint8)
    assert is_out_of_memory(torchs.value)
    assert not is_out_of_memory(ValueError("negative"))


def test_rows_are_as_many_as_free_memory_is_enough_for() -> None:
    """By the bytes of one row and of two: those in common, 500, count once."""
    assert rows_within(one=600, two=700, free=10_000) == 75
    assert rows_within(one=600, two=700, free=0) == 1
    assert rows_within(one=600, two=600, free=10_000) > 1000
