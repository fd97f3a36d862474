"""Follows an edit: what is recorded, then what happens, over chunks and restarts."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sfumato.common.errors import NotFound
from sfumato.editor.artifacts import frame_path
from sfumato.editor.edits import Edit
from sfumato.editor.jobs import Jobs
from sfumato.editor.method import Progress
from sfumato.editor.records import Job, recorded_progress
from sfumato.editor.runs import Live

LIVE_SECONDS = 0.05  # between looks at an edit in this process
WAIT_SECONDS = 0.2  # between looks for the end, or whether it can be deleted
RECORD_SECONDS = 0.5  # between looks at the database


@dataclass(frozen=True)
class Watched:
    """An iteration, with its preview where it has one."""

    progress: Progress
    preview: bytes


async def watch(jobs: Jobs, operation: str, after: int) -> AsyncIterator[Watched]:
    """Every iteration behind `after`, in order and once, until the edit ends.

    Raises:
        NotFound: there is no such edit.
    """
    last = after
    while True:
        job = await asyncio.to_thread(jobs.get, operation)
        if job.state != "queued" or last == after:
            for progress in await asyncio.to_thread(recorded_progress, operation, last):
                yield await _watched(jobs, job.edit, progress)
                last = progress.iteration
        if job.ended:
            return
        live = jobs.live(operation)
        if live is None:
            await asyncio.sleep(RECORD_SECONDS)
            continue
        async for progress in _done(jobs, operation, live, last):
            yield await _watched(jobs, job.edit, progress)
            last = progress.iteration


async def _done(jobs: Jobs, operation: str, live: Live, last: int) -> AsyncIterator[Progress]:
    """What is done behind `last`, as it is; ends with the run, or where its feed has gone on without us."""
    feed, seen = live.feed, 0
    while jobs.live(operation) is live:
        newest = live.feed  # asked first: what follows another feed is complete
        for progress in feed[seen:]:
            if progress.iteration > last + 1:
                return  # what is between is recorded
            seen += 1
            if progress.iteration > last:
                yield progress
                last = progress.iteration
        if newest is feed:
            await asyncio.sleep(LIVE_SECONDS)
        else:
            feed, seen = newest, 0


async def until_ended(jobs: Jobs, operation: str, seconds: float | None) -> Job:
    """The job when it has ended, or when so many seconds have passed.

    Raises:
        NotFound: there is no such edit.
    """
    end = None if seconds is None else asyncio.get_running_loop().time() + seconds
    while True:
        job = await asyncio.to_thread(jobs.get, operation)
        if job.ended or (end is not None and asyncio.get_running_loop().time() >= end):
            return job
        await asyncio.sleep(WAIT_SECONDS)


async def _watched(jobs: Jobs, edit: Edit, progress: Progress) -> Watched:
    if not edit.shows(progress.iteration):
        return Watched(progress, b"")
    try:
        path = frame_path(edit.id, progress.iteration)
        return Watched(progress, await asyncio.to_thread(jobs.runner.store.read, path))
    except NotFound:  # swept or deleted meanwhile
        return Watched(progress, b"")
