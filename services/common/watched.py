"""Files that may be replaced while they are in use: certificates, keys, credentials."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

LOOK_SECONDS = 1.0  # between looks at the files

T = TypeVar("T")


class WatchedFiles(Generic[T]):
    """What files say, read together and again when one of them was replaced. Safe between threads.

    Files that cannot be read or understood at a replacement leave the earlier value in use, with an error in
    the log: a half-written certificate must not take a service down.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[list[bytes]], T]) -> None:
        """
        Args:
            paths: the files; a link that leads elsewhere counts as replaced (Kubernetes does it so).
            read: makes the value of the files' contents, in the same order. Raises ValueError.

        Raises:
            OSError, ValueError: the first reading failed.
        """
        self._paths, self._read = list(paths), read
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = self._load()
        self._looked = time.monotonic()

    def current(self) -> T:
        """The value; the same object as long as no file was replaced."""
        with self._lock:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._refresh()
                self._looked = time.monotonic()
            return self._value

    def _refresh(self) -> None:
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._value = self._load()
                self._stamp = stamp
                log.info("files read again", paths=[str(path) for path in self._paths])
        except (OSError, ValueError) as error:  # a file between two states is read at the next look
            paths = [str(path) for path in self._paths]
            log.error("files not readable; the earlier ones stay in use", paths=paths, error=str(error))

    def _load(self) -> T:
        return self._read([path.read_bytes() for path in self._paths])

    def _look(self) -> list[tuple[int, int, int]]:
        stats = [path.stat() for path in self._paths]
        return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats]
