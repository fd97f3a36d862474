"""A run survives an interruption, ends at once when it is cancelled, and fails with a reason."""

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sfumato.common.errors import Unavailable
from sfumato.editor import registry, runs, saving
from sfumato.editor.artifacts import ArtifactStore, checkpoint_path, frame_path, result_path
from sfumato.editor.config import EditorSettings
from sfumato.editor.edits import Edit
from sfumato.editor.runs import Runner
from tests.tiny_models import TinyModels
from tests.unit.editor import fake_method


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: TinyModels) -> Iterator[Runner]:
    """A runner that takes a checkpoint after every iteration."""
    monkeypatch.setitem(registry.METHODS, "walk", fake_method.METHOD)
    settings = EditorSettings(state_dir=tmp_path, checkpoint_seconds=1e-9)
    made = Runner(models, ArtifactStore(settings.artifacts), settings)
    yield made
    made.stop()


def edit_of(name: str = "a", preview_interval: int = 0, **options: Any) -> Edit:
    return Edit(name, "walk", fake_method.options_of(**options), {}, preview_interval, "", 0)


def never() -> bool:
    return False


def run_to_end(runner: Runner, edit: Edit, chunk: dict[str, Any]) -> list[dict[str, Any]]:
    chunks = []
    while "result" not in chunk and "failure" not in chunk:
        chunk = runner.chunk(edit, chunk["iteration"], never)
        chunks.append(chunk)
    return chunks


def test_a_run_goes_on_in_another_process_to_the_same_bits(runner: Runner) -> None:
    run_to_end(runner, edit_of("whole"), {"iteration": 0})
    chunk = runner.chunk(edit_of("killed"), 0, never)
    chunk = runner.chunk(edit_of("killed"), chunk["iteration"], never)
    runner.live.clear()  # what the death of the process does
    chunks = run_to_end(runner, edit_of("killed"), chunk)
    iterations = [iteration for chunk in chunks for iteration, _ in chunk["progress"]]
    assert iterations == list(range(3, 11))
    for file in ("image.png", "position.safetensors"):
        expected, got = (runner.store.read(result_path(name, file)) for name in ("whole", "killed"))
        assert expected == got


def test_a_chunk_that_was_not_recorded_can_be_run_again(runner: Runner) -> None:
    run_to_end(runner, edit_of("whole"), {"iteration": 0})
    first = runner.chunk(edit_of(), 0, never)
    runner.chunk(edit_of(), first["iteration"], never)  # its checkpoint is written, its step is lost
    runner.live.clear()
    run_to_end(runner, edit_of(), first)
    assert runner.store.read("a/result/image.png") == runner.store.read("whole/result/image.png")


def test_only_the_checkpoints_that_are_needed_are_kept(runner: Runner) -> None:
    chunk: dict[str, Any] = {"iteration": 0}
    for _ in range(5):
        chunk = runner.chunk(edit_of(), chunk["iteration"], never)
    assert runner.store.names("a/checkpoints") == ["0000004.safetensors", "0000005.safetensors"]
    runner.forget(edit_of(), ended=True)
    assert runner.store.names("a/checkpoints") == []


def test_a_missing_checkpoint_is_named(runner: Runner) -> None:
    chunk = runner.chunk(edit_of(), 0, never)
    runner.live.clear()
    runner.store.delete(checkpoint_path("a", chunk["iteration"]))
    failure = runner.chunk(edit_of(), chunk["iteration"], never)["failure"]
    assert failure["code"] == "NOT_FOUND"
    assert "a/checkpoints/0000001.safetensors is gone" in failure["message"]


@pytest.mark.parametrize("preview_interval", [0, 1])
def test_a_store_that_is_away_for_a_while_costs_no_edit(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, preview_interval: int
) -> None:
    monkeypatch.setattr(runs, "RETRY_SECONDS", (0.01, 0.01))
    write, away = runner.store.write, iter([True, True])

    def flaky(path: str, data: bytes) -> None:
        if next(away, False):
            raise Unavailable("away")
        write(path, data)

    monkeypatch.setattr(runner.store, "write", flaky)
    assert run_to_end(runner, edit_of(preview_interval=preview_interval), {"iteration": 0})[-1]["result"]
    away = iter([True] * 3)
    failure = run_to_end(runner, edit_of("b"), {"iteration": 0})[-1]["failure"]
    assert (failure["code"], failure["message"]) == ("UNAVAILABLE", "away")


def test_an_error_of_the_method_keeps_field_limit_and_value(runner: Runner) -> None:
    chunks = run_to_end(runner, edit_of(fails_at=3), {"iteration": 0})
    failure = chunks[-1]["failure"]
    assert (failure["code"], failure["field"], failure["value"]) == ("INVALID_ARGUMENT", "fails_at", "3")
    assert run_to_end(runner, edit_of("b"), {"iteration": 0})[-1]["result"]


def test_cancelling_ends_within_one_iteration(runner: Runner) -> None:
    object.__setattr__(runner.settings, "checkpoint_seconds", 60.0)
    edit = edit_of(num_iterations=100, seconds=0.1)
    ended = threading.Event()
    done: list[dict[str, Any]] = []

    def work() -> None:
        done.append(runner.chunk(edit, 0, never))
        ended.set()

    threading.Thread(target=work).start()
    while not (live := runner.live.get("a")) or live.state.iteration < 3:
        time.sleep(0.01)
    runner.cancelled.add("a")
    at = live.state.iteration
    assert ended.wait(5)
    assert done[0]["iteration"] <= at + 1


def test_a_cancellation_in_the_database_is_noticed(runner: Runner) -> None:
    object.__setattr__(runner.settings, "checkpoint_seconds", 60.0)
    start = time.monotonic()
    chunk = runner.chunk(edit_of(num_iterations=1000, seconds=0.05), 0, lambda: True)
    assert chunk["failure"]["code"] == "CANCELLED"
    assert time.monotonic() - start < 10


def test_previews_come_as_often_as_asked(runner: Runner) -> None:
    run_to_end(runner, edit_of(preview_interval=4), {"iteration": 0})
    assert runner.store.names("a/frames") == ["0000004.png", "0000008.png"]
    assert Image.open(io.BytesIO(runner.store.read(frame_path("a", 4)))).size == (32, 32)


def test_of_many_previews_the_newest_are_kept(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "KEPT_PREVIEWS", 2)
    run_to_end(runner, edit_of(preview_interval=3, num_iterations=14), {"iteration": 0})
    assert runner.store.names("a/frames") == ["0000009.png", "0000012.png"]


def test_what_is_recorded_of_a_long_run_is_not_kept_in_memory(runner: Runner) -> None:
    chunk: dict[str, Any] = {"iteration": 0}
    for _ in range(5):
        chunk = runner.chunk(edit_of(), chunk["iteration"], never)
    assert [p.iteration for p in runner.live["a"].feed] == [5]
