"""Runs an edit on the device, chunk by chunk: iterations, checkpoint, result."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import structlog
import torch
from PIL import Image

from sfumato.common import tracing
from sfumato.common.errors import ResourceExhausted, SfumatoError, Unavailable
from sfumato.editor.artifacts import ArtifactStore, StoreFull, checkpoint_path, frame_path, result_path
from sfumato.editor.config import EditorSettings
from sfumato.editor.edits import Edit, encode_png, load
from sfumato.editor.measures import CHECKPOINT_SECONDS, ITERATION_SECONDS, QUEUE_SECONDS, count_end
from sfumato.editor.method import Models, Progress, State, Tensors
from sfumato.editor.registry import method_of
from sfumato.editor.video import Video, encode_mp4

log = structlog.get_logger()

T = TypeVar("T")
ASK_SECONDS = 1.0  # between questions to the database
# Between questions to an artifact store that is away or full.
RETRY_SECONDS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0)


class Cancelled(Exception):
    """The edit was cancelled: nothing of it is needed any more."""


class Stopped(BaseException):
    """The process is ending. Not an Exception: the job must not be recorded as failed."""


@dataclass
class Live:
    """An edit in this process."""

    state: State
    progress: Iterator[Progress]
    feed: list[Progress] = field(default_factory=list)  # what this process has done; watchers read it


@dataclass(frozen=True)
class Failure:
    """Why an edit ended, as google.rpc.Status has it."""

    code: str
    reason: str
    message: str
    field: str = ""
    limit: str = ""
    value: str = ""


class Runner:
    """Holds the device."""

    def __init__(self, models: Models, store: ArtifactStore, settings: EditorSettings) -> None:
        self.models, self.store, self.settings = models, store, settings
        self.live: dict[str, Live] = {}
        self.cancelled: set[str] = set()
        self.stopping = threading.Event()
        # The same threads for every chunk, so that torch's own threads are made once.
        self._device = ThreadPoolExecutor(settings.max_running_edits, "edit")

    def chunk(self, edit: Edit, iteration: int, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Goes on behind an iteration for checkpoint_seconds, or to the end.

        Args:
            edit: which.
            iteration: iterations done, whose checkpoint the artifact store has.
            is_cancelled: asks the database, for a cancellation that came to another process.

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
        except Cancelled:
            return self._ended(edit, iteration, Failure("CANCELLED", "CANCELLED", "cancelled"))
        except SfumatoError as error:
            failure = Failure(error.code, error.reason, error.message, error.field, error.limit, error.value)
            return self._ended(edit, iteration, failure)
        except torch.OutOfMemoryError as error:
            full = ResourceExhausted("image", "smaller for this device's memory", str(error))
            return self._ended(edit, iteration, Failure(full.code, full.reason, full.message))
        except Exception:
            log.exception("failed", operation=edit.id, method=edit.method)
            message = f"{edit.method} failed; the editor's log has {edit.id}"
            return self._ended(edit, iteration, Failure("INTERNAL", "INTERNAL", message))

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
                path, frame = frame_path(edit.id, progress.iteration), encode_png(live.state.preview())
                self._patiently(edit, functools.partial(self.store.write, path, frame))
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
        """Writes the checkpoint or the result, and only then forgets the checkpoint before the last."""
        state = live.state
        chunk: dict[str, Any] = {
            "iteration": state.iteration,
            "num_iterations": state.num_iterations,
            "progress": [[p.iteration, p.losses] for p in live.feed if p.iteration > before],
        }
        if state.iteration < state.num_iterations:
            with CHECKPOINT_SECONDS.time():
                self.store.write_tensors(checkpoint_path(edit.id, state.iteration), state.tensors())
            for name in self.store.names(f"{edit.id}/checkpoints"):
                if int(Path(name).stem) < before:
                    self.store.delete(f"{edit.id}/checkpoints/{name}")
            return chunk
        result = [self._kept(edit, name, made) for name, made in state.result().items()]
        count_end(edit.method, "succeeded")
        return {**chunk, "result": result}

    def _kept(self, edit: Edit, name: str, made: Image.Image | Video | Tensors) -> tuple[str, int]:
        """Writes a part of the result; returns the file's name and size."""
        if isinstance(made, Video):
            file, data = f"{name}.mp4", encode_mp4(made)
        elif isinstance(made, Image.Image):
            file, data = f"{name}.png", encode_png(made)
        else:
            file, data = f"{name}.safetensors", safetensors.torch.save(made)
        self.store.write(result_path(edit.id, file), data)
        return file, len(data)

    def _ended(self, edit: Edit, before: int, failure: Failure) -> dict[str, Any]:
        count_end(edit.method, "cancelled" if failure.code == "CANCELLED" else "failed")
        live = self.live.get(edit.id)
        done = live.state.iteration if live else before
        num_iterations = live.state.num_iterations if live else 0
        progress = [[p.iteration, p.losses] for p in live.feed if p.iteration > before] if live else []
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

    def stop(self) -> None:
        """Ends after the iteration that runs, with a checkpoint."""
        self.stopping.set()
        self._device.shutdown(cancel_futures=True)
