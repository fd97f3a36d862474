"""Jobs on DBOS and SQLite: submitted once, cancelled, listed, kept for so long and no longer."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato.common.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from sfumato.editor import registry, runs, watching
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.config import EditorSettings
from sfumato.editor.edits import Edit
from sfumato.editor.jobs import Jobs
from sfumato.editor.method import Progress
from sfumato.editor.records import Job, chunks, page, recorded_progress
from sfumato.editor.runs import Runner
from tests.tiny_models import TinyModels
from tests.unit.editor import fake_method

Make = Callable[..., Jobs]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: TinyModels) -> Iterator[Make]:
    """Starts jobs with these settings, again and again on the same state."""
    monkeypatch.setitem(registry.METHODS, "walk", fake_method.METHOD)
    started: list[Jobs] = []

    def make(**settings: Any) -> Jobs:
        stop()
        made = EditorSettings(state_dir=tmp_path, **{"checkpoint_seconds": 0.05, **settings})
        jobs = Jobs(Runner(models, ArtifactStore(made.artifacts), made), made)
        jobs.start()
        started.append(jobs)
        return jobs

    def stop() -> None:
        while started:
            started.pop().stop()

    yield make
    stop()


def edit_of(name: str, fingerprint: str = "", preview_interval: int = 0, **options: Any) -> Edit:
    created = int(time.time() * 1000)
    return Edit(name, "walk", fake_method.options_of(**options), {}, preview_interval, fingerprint, created)


def wait(jobs: Jobs, name: str, wanted: Callable[[Job], bool] = lambda job: job.ended) -> Job:
    end = time.monotonic() + 60
    while not wanted(job := jobs.get(name)):
        assert time.monotonic() < end, job
        time.sleep(0.02)
    return job


def test_the_same_request_is_one_job_and_another_is_refused(start: Make) -> None:
    jobs = start()
    jobs.submit(edit_of("a", "first"))
    jobs.submit(edit_of("a", "first"))
    with pytest.raises(AlreadyExists, match="a was used for another edit"):
        jobs.submit(edit_of("a", "second"))
    done = wait(jobs, "a")
    assert (done.state, done.iteration, done.edit.fingerprint) == ("succeeded", 10, "first")
    assert [name for name, _ in done.result] == ["image.png", "position.safetensors"]
    assert [p.iteration for p in recorded_progress("a", 3)] == list(range(4, 11))
    assert jobs.submit(edit_of("a", "first")).state == "succeeded"
    assert page(10, "", "")[0] == ["a"]


def test_stopping_saves_and_starting_goes_on(start: Make) -> None:
    jobs = start()
    jobs.submit(edit_of("undisturbed", num_iterations=40))
    wait(jobs, "undisturbed")
    jobs.submit(edit_of("a", num_iterations=40, seconds=0.05))
    wait(jobs, "a", lambda job: job.iteration >= 5)
    jobs = start()
    assert wait(jobs, "a").state == "succeeded"
    progress = [p.iteration for p in recorded_progress("a", 0)]
    assert progress == list(range(1, 41))
    image = [jobs.runner.store.read(f"{name}/result/image.png") for name in ("a", "undisturbed")]
    assert image[0] == image[1]


def test_half_a_checkpoint_of_a_killed_process_does_not_end_the_edit(start: Make) -> None:
    jobs = start()
    jobs.submit(edit_of("a", num_iterations=40, seconds=0.05))
    wait(jobs, "a", lambda job: job.iteration >= 5)
    jobs = start()
    folder = Path(jobs.runner.store.root, "a", "checkpoints")
    (folder / "0000001.safetensors.part").write_bytes(b"half")
    assert wait(jobs, "a").state == "succeeded"


def test_a_database_that_takes_no_more_keeps_the_edit_for_the_next_start(start: Make, tmp_path: Path) -> None:
    jobs = start()
    jobs.submit(edit_of("a", num_iterations=40, seconds=0.05))
    wait(jobs, "a", lambda job: job.iteration >= 5)
    with contextlib.closing(sqlite3.connect(tmp_path / "edits.sqlite", isolation_level=None)) as database:
        full = "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        database.execute(f"CREATE TRIGGER steps BEFORE INSERT ON operation_outputs {full}")
        database.execute(f"CREATE TRIGGER ends BEFORE UPDATE ON workflow_status {full}")
        wait(jobs, "a", lambda _: jobs.live("a") is None)
        database.execute("DROP TRIGGER steps")
        database.execute("DROP TRIGGER ends")
    jobs = start()
    assert wait(jobs, "a").state == "succeeded"
    assert [p.iteration for p in recorded_progress("a", 0)] == list(range(1, 41))


def test_an_id_that_was_cancelled_in_the_queue_and_deleted_can_be_used_again(start: Make) -> None:
    jobs = start()
    jobs.submit(edit_of("a", num_iterations=10_000, seconds=0.05))
    jobs.submit(edit_of("b"))
    jobs.cancel("b")
    jobs.delete("b")
    jobs.submit(edit_of("b"))
    jobs.cancel("a")
    assert wait(jobs, "b").state == "succeeded"


def test_cancelling_frees_the_device_for_the_next(start: Make) -> None:
    jobs = start(checkpoint_seconds=60)
    jobs.submit(edit_of("a", num_iterations=10_000, seconds=0.1))
    wait(jobs, "a", lambda job: job.iteration >= 2)
    jobs.submit(edit_of("b"))
    jobs.submit(edit_of("queued"))
    jobs.cancel("queued")
    at = jobs.get("a").iteration
    jobs.cancel("a")
    assert wait(jobs, "b").state == "succeeded"
    cancelled = jobs.get("a")
    assert (cancelled.state, cancelled.failure and cancelled.failure.code) == ("cancelled", "CANCELLED")
    assert cancelled.iteration <= at + 2
    assert jobs.get("queued").state == "cancelled"
    assert jobs.live("a") is None
    jobs.cancel("b")  # it has ended: nothing
    assert jobs.get("b").state == "succeeded"


def test_a_failed_job_says_why_and_the_next_one_runs(start: Make) -> None:
    jobs = start()
    jobs.submit(edit_of("a", fails_at=2))
    jobs.submit(edit_of("b"))
    failed = wait(jobs, "a")
    assert failed.failure is not None
    assert (failed.state, failed.failure.code, failed.failure.field) == (
        "failed",
        "INVALID_ARGUMENT",
        "fails_at",
    )
    assert wait(jobs, "b").state == "succeeded"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_stays_full_ends_the_edit_with_that_reason_and_the_next_one_runs(
    start: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RETRY_SECONDS", (0.01, 0.01))
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        jobs = start(artifacts_url=f"file://{disk}")
        (disk / "filling").write_bytes(b"x" * 64 * 1024)
        jobs.submit(edit_of("a"))
        failed = wait(jobs, "a")
        assert failed.failure is not None
        assert (failed.state, failed.failure.code) == ("failed", "RESOURCE_EXHAUSTED")
        assert "full" in failed.failure.message
        (disk / "filling").unlink()
        jobs.submit(edit_of("b"))
        assert wait(jobs, "b").state == "succeeded"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("days", [10, -10])
def test_a_clock_that_jumps_loses_no_edit_that_has_not_ended(
    start: Make, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    jobs = start()
    jobs.submit(edit_of("undisturbed", num_iterations=40))
    wait(jobs, "undisturbed")
    jobs.submit(edit_of("running", num_iterations=40, seconds=0.05))
    jobs.submit(edit_of("queued", num_iterations=40))
    wait(jobs, "running", lambda job: job.iteration >= 5)
    now = time.time
    names = ("running", "queued", "later")
    with monkeypatch.context() as jumped:
        jumped.setattr(time, "time", lambda: now() + days * 86_400)
        jobs.sweep()
        jobs.submit(edit_of("later", num_iterations=40))
        assert [wait(jobs, name).state for name in names] == ["succeeded"] * 3
        images = {jobs.runner.store.read(f"{name}/result/image.png") for name in names}
    assert len(images) == 1


def test_too_many_queued_edits_are_refused(start: Make) -> None:
    jobs = start(max_queued_edits=1)
    jobs.submit(edit_of("a", num_iterations=10_000, seconds=0.1))
    wait(jobs, "a", lambda job: job.state == "running")
    jobs.check_room()
    jobs.submit(edit_of("b"))
    with pytest.raises(ResourceExhausted, match="at most 1"):
        jobs.check_room()
    jobs.cancel("a")
    jobs.cancel("b")


def test_what_has_ended_is_deleted_and_what_runs_is_not(start: Make) -> None:
    jobs = start()
    jobs.submit(edit_of("a", num_iterations=10_000, seconds=0.05))
    with pytest.raises(FailedPrecondition, match="cancel it first"):
        jobs.delete("a")
    jobs.cancel("a")
    wait(jobs, "a")
    jobs.delete("a")
    with pytest.raises(NotFound, match="operations/a"):
        jobs.get("a")
    assert jobs.runner.store.names("a") == []


def test_what_was_cancelled_is_deleted_when_its_last_iteration_has_ended(start: Make) -> None:
    jobs = start()
    jobs.submit(edit_of("a", preview_interval=1, num_iterations=10_000, seconds=0.5))
    wait(jobs, "a", lambda job: job.iteration >= 1)
    jobs.cancel("a")
    assert wait(jobs, "a").state == "cancelled"
    end = time.monotonic() + 10
    while not jobs.delete("a"):
        assert time.monotonic() < end
        time.sleep(0.05)
    # The id is free at once, and nothing of the old edit comes to the new one.
    jobs.submit(edit_of("a", "again"))
    assert wait(jobs, "a").state == "succeeded"
    assert [p.iteration for p in recorded_progress("a", 0)] == list(range(1, 11))
    assert jobs.runner.store.names("a") == ["result"]


@pytest.mark.parametrize("pause", [0.0, 0.6])
def test_who_watches_sees_every_iteration_once_and_asks_the_database_only_for_what_was_missed(
    start: Make, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    asked: list[int] = []

    def counted(operation: str, after: int) -> list[Progress]:
        asked.append(after)
        return recorded_progress(operation, after)

    monkeypatch.setattr(watching, "recorded_progress", counted)
    jobs = start(checkpoint_seconds=0.1)
    jobs.submit(edit_of("a", num_iterations=60, seconds=0.02))
    wait(jobs, "a", lambda job: job.iteration >= 2)
    seen = []

    async def look() -> None:
        async for event in watching.watch(jobs, "a", 0):
            seen.append(event.progress.iteration)
            if len(seen) == 10:
                await asyncio.sleep(pause)  # several chunks

    asyncio.run(look())
    assert seen == list(range(1, 61))
    assert len(chunks("a")) >= 8
    assert len(asked) <= 4


def test_a_cancelled_edit_leaves_no_checkpoints(start: Make) -> None:
    jobs = start()
    jobs.submit(edit_of("a", num_iterations=10_000, seconds=0.1))
    wait(jobs, "a", lambda job: job.iteration >= 3)
    assert jobs.runner.store.names("a/checkpoints")
    jobs.cancel("a")
    end = time.monotonic() + 10
    while jobs.runner.store.names("a/checkpoints"):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_results_are_swept_when_their_time_is_over(start: Make) -> None:
    jobs = start(result_ttl_seconds=3600)
    jobs.submit(edit_of("a"))
    done = wait(jobs, "a")
    assert done.ended_ms is not None
    assert done.expires_ms == done.ended_ms + 3_600_000
    jobs.runner.store.write("orphan/inputs/x", b"of a submission that did not end")
    assert jobs.sweep() == 0
    assert jobs.get("a").state == "succeeded"
    jobs = start(result_ttl_seconds=1)
    jobs.submit(edit_of("running", num_iterations=10_000, seconds=0.05))
    time.sleep(2.1)  # SQLite's rows have whole seconds
    assert jobs.sweep() == 1
    assert jobs.sweep() == 0
    with pytest.raises(NotFound):
        jobs.get("a")
    assert jobs.runner.store.names() in ([], ["running"])
    assert jobs.get("running").state != "failed"
    jobs.cancel("running")


def test_pages_show_every_job_once_though_many_share_a_second(start: Make) -> None:
    jobs = start()
    names = {f"job-{index}" for index in range(7)}
    for name in names:
        jobs.submit(edit_of(name, num_iterations=1))
    seen: list[str] = []
    token = ""
    while True:
        shown, token = page(3, token, "")
        seen += shown
        if not token:
            break
    assert len(seen) == 7
    assert set(seen) == names


def test_two_editors_do_not_share_a_state_folder(start: Make, models: TinyModels) -> None:
    jobs = start()
    second = Jobs(Runner(models, jobs.runner.store, jobs.settings), jobs.settings)
    with pytest.raises(Unavailable, match="SFUMATO_EDITOR_STATE_DIR"):
        second.start()
