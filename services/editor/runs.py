"""Runs an edit on the device, chunk by chunk: iterations, checkpoint, result."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from sfumato.common import tracing
from sfumato.common.errors import SfumatoError, Unavailable
from sfumato.editor.artifacts import ArtifactStore, StoreFull, checkpoint_path
from sfumato.editor.config import EditorSettings
from sfumato.editor.edits import Edit, encode_png, load
from sfumato.editor.failures import Cancelled, Failure, failure_of
from sfumato.editor.measures import CHECKPOINT_SECONDS, ITERATION_SECONDS, QUEUE_SECONDS, count_end
from sfumato.editor.method import Models, Progress, State
from sfumato.editor.registry import method_of
from sfumato.editor.saving import save_checkpoint, save_preview, save_result

log = structlog.get_logger()

T = TypeVar("T")
ASK_SECONDS = 1.0  # between questions to the database
# Between questions to an artifact store that is away or full.
RETRY_SECONDS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0)


class Stopped(BaseException):
    """The process is ending. Not an Exception: the job must not be recorded as failed."""


@dataclass
class Live:
    """An edit in this process."""

    state: State
    progress: Iterator[Progress]
    # What this process has done since the last chunk that is recorded; watchers read it.
    feed: list[Progress] = field(default_factory=list)

    def progress_behind(self, iteration: int) -> list[list[Any]]:
        """[iteration, losses] of what was done behind one, for the database."""
        return [[p.iteration, p.losses] for p in self.feed if p.iteration > iteration]


class Runner:
    """Holds the device."""

    def __init__(self, models: Models, store: ArtifactStore, settings: EditorSettings) -> None:
        self.models, self.store, self.settings = models, store, settings
        self.live: dict[str, Live] = {}
        self.cancelled: set[str] = set()
        self.held: set[str] = set()  # edits whose workflow is in this process, until it writes no more
        self.stopping = threading.Event()
        # The same threads for every chunk, so that torch's own threads are made once.
        self._device = ThreadPoolExecutor(settings.max_running_edits, "edit")

    def chunk(self, edit: Edit, iteration: int, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Goes on behind an iteration for checkpoint_seconds, or to the end.

        Args:
            edit: which.
            iteration: iterations done, whose checkpoint the artifact store has.
            is_cancelled: asks the database, for a cancellation (and deletion) that came to another process.

        Returns:
            JSON: iteration and num_iterations now, progress as [[iteration, losses], ...], and at the end
            `result` (file names) or `failure`.
        """
        try:
            return self._device.submit(self._chunk, edit, iteration, is_cancelled).result()
        except (CancelledError, RuntimeError) as error:  # of the executor, once it is shut down
            raise Stopped from error

    def _chunk(self, edit: Edit, iteration: int, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        with tracing.continued("edit.chunk", edit.id, edit.traceparent, method=edit.method, behind=iteration):
            return self._traced_chunk(edit, iteration, is_cancelled)

    def _traced_chunk(self, edit: Edit, iteration: int, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        try:
            live = self._patiently(edit, lambda: self._resumed(edit, iteration))
            self._iterate(edit, live, is_cancelled)
            return self._patiently(edit, lambda: self._saved(edit, live, iteration))
        except Exception as error:
            return self._ended(edit, iteration, failure_of(error, edit))

    def _patiently(self, edit: Edit, act: Callable[[], T]) -> T:
        """Acts again when the artifact store was away or full: hours of work shall not end with that."""
        for seconds in RETRY_SECONDS:
            try:
                return act()
            except (Unavailable, StoreFull) as error:
                log.warning(
                    "artifact store away or full", operation=edit.id, error=error.message, again_in=seconds
                )
            if self.stopping.wait(seconds):
                raise Stopped
            if edit.id in self.cancelled:
                raise Cancelled
        return act()

    def _resumed(self, edit: Edit, iteration: int) -> Live:
        """The edit behind that iteration: from memory, or from its checkpoint."""
        if self.stopping.is_set():
            raise Stopped
        live = self.live.get(edit.id)
        if live is not None and live.state.iteration == iteration:
            live.feed = []  # the database has it: hundreds of thousands of iterations are no list to keep
            return live
        self.cancelled.discard(edit.id)  # an earlier edit's of this id; the database knows of this one's
        method = method_of(edit.method, self.models.family, self.settings.clip)
        if not iteration:
            QUEUE_SECONDS.observe(max(0.0, time.time() - edit.created_ms / 1000))
        state = method.start(*load(edit, method, self.store, self.settings), self.models)
        if iteration:
            state.load(self.store.read_tensors(checkpoint_path(edit.id, iteration)))
            state.iteration = iteration
            log.info("resumed", operation=edit.id, iteration=iteration)
        self.live[edit.id] = live = Live(state, method.run(state))
        return live

    def _iterate(self, edit: Edit, live: Live, is_cancelled: Callable[[], bool]) -> None:
        asked = before = time.monotonic()
        end = asked + self.settings.checkpoint_seconds
        for progress in live.progress:
            # The frame first: who sees the iteration in the feed asks for it.
            if edit.shows(progress.iteration):
                preview = encode_png(live.state.preview())
                self._patiently(
                    edit, functools.partial(save_preview, self.store, edit, progress.iteration, preview)
                )
            live.feed.append(progress)
            now = time.monotonic()
            ITERATION_SECONDS.labels(edit.method).observe(now - before)
            before = now
            if edit.id in self.cancelled or (now - asked > ASK_SECONDS and is_cancelled()):
                raise Cancelled
            asked = now if now - asked > ASK_SECONDS else asked
            if now > end or self.stopping.is_set():
                return

    def _saved(self, edit: Edit, live: Live, before: int) -> dict[str, Any]:
        state = live.state
        chunk: dict[str, Any] = {
            "iteration": state.iteration,
            "num_iterations": state.num_iterations,
            "progress": live.progress_behind(before),
        }
        if state.iteration < state.num_iterations:
            with CHECKPOINT_SECONDS.time():
                save_checkpoint(self.store, edit.id, state, before)
            return chunk
        result = save_result(self.store, edit.id, state)
        count_end(edit.method, "succeeded")
        return {**chunk, "result": result}

    def _ended(self, edit: Edit, before: int, failure: Failure) -> dict[str, Any]:
        count_end(edit.method, "cancelled" if failure.code == "CANCELLED" else "failed")
        live = self.live.get(edit.id)
        done = live.state.iteration if live else before
        num_iterations = live.state.num_iterations if live else 0
        progress = live.progress_behind(before) if live else []
        state = {"iteration": done, "num_iterations": num_iterations, "progress": progress}
        return {**state, "failure": vars(failure)}

    def forget(self, edit: Edit, *, ended: bool) -> None:
        """Lets go of an edit; ended: whichever way, so that nobody goes on with it."""
        try:
            if ended and not self.stopping.is_set():
                self.store.delete(f"{edit.id}/checkpoints")
        except SfumatoError as error:  # the sweep will get them
            log.warning("checkpoints left", operation=edit.id, error=error.message)
        finally:
            self.live.pop(edit.id, None)
            self.cancelled.discard(edit.id)
            self.held.discard(edit.id)

    def stop(self) -> None:
        """Ends after the iteration that runs, with a checkpoint."""
        self.stopping.set()
        self._device.shutdown(cancel_futures=True)
