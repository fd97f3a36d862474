"""The artifact store: inputs, checkpoints, frames and results under a file:// or s3:// URL."""

import errno
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import fsspec
import safetensors.torch

from sfumato.common.errors import NotFound, ResourceExhausted, SfumatoError, Unavailable
from sfumato.common.metrics import count_lookup
from sfumato.editor.method import Tensors

FULL = (errno.ENOSPC, errno.EDQUOT)
PART = ".part"  # of what is being written, or was when its process died


class StoreFull(ResourceExhausted):
    """The store has no room; it may have again."""


class ArtifactStore:
    """Files by relative path; each appears whole or not at all. Blocking: call it from a thread.

    Every method raises StoreFull when the store is full, Unavailable when it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.local = url.startswith("file:")
        # S3's listings and clients are not kept: other processes write too.
        remote = {"use_listings_cache": False, "skip_instance_cache": True}
        options: dict[str, Any] = {"auto_mkdir": True} if self.local else remote
        self.url = url.rstrip("/")
        self.fs, self.root = fsspec.core.url_to_fs(self.url, **options)

    def uri(self, path: str) -> str:
        """Where the file lies."""
        return f"{self.url}/{path}"

    def write(self, path: str, data: bytes) -> None:
        """Writes or replaces a file."""
        target = f"{self.root}/{path}"
        with self._asking(path):
            if not self.local:  # an object appears when it is complete
                self.fs.pipe_file(target, data)
                return
            part = f"{target}.{uuid.uuid4().hex}{PART}"  # others may write the same file now
            try:
                self.fs.pipe_file(part, data)
                self.fs.mv(part, target)
            except OSError:
                if self.fs.exists(part):
                    self.fs.rm_file(part)
                raise

    def read(self, path: str) -> bytes:
        """
        Raises:
            NotFound: there is no such file.
        """
        with self._asking(path):
            data: bytes = self.fs.cat_file(f"{self.root}/{path}")
            return data

    def write_tensors(self, path: str, tensors: Tensors) -> None:
        """Writes a safetensors file."""
        self.write(
            path, safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
        )

    def read_tensors(self, path: str) -> Tensors:
        """
        Raises:
            NotFound: there is no such file.
        """
        return safetensors.torch.load(self.read(path))

    def cached(self, path: str, compute: Callable[[], Tensors]) -> Tensors:
        """The tensors of the file, computed and written where it is missing."""
        try:
            tensors = self.read_tensors(path)
            count_lookup("tensors", hit=True)
        except NotFound:
            count_lookup("tensors", hit=False)
            tensors = compute()
            self.write_tensors(path, tensors)
        return tensors

    def names(self, folder: str = "") -> list[str]:
        """What lies in a folder; nothing where there is none."""
        try:
            with self._asking(folder):
                paths = self.fs.ls(f"{self.root}/{folder}".rstrip("/"), detail=False)
        except NotFound:
            return []
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return sorted(name for name in names if not name.endswith(PART))

    def delete(self, path: str) -> None:
        """Removes a file or folder; nothing where there is none."""
        with self._asking(path):
            target = f"{self.root}/{path}"
            if self.fs.exists(target):
                self.fs.rm(target, recursive=True)

    def _asking(self, path: str) -> AbstractContextManager[None]:
        return _asking(self.uri(path))


@contextmanager
def _asking(uri: str) -> Iterator[None]:
    """Turns the store's failures into errors that name the file."""
    try:
        yield
    except SfumatoError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{uri} is gone from the artifact store") from error
    except OSError as error:
        if error.errno in FULL:
            raise StoreFull(
                "artifact store", "used while it has room", f"full: {uri}", "Free space, then send it again."
            ) from error
        raise _unavailable(uri, error) from error
    except Exception as error:  # each backend has its own for a server that does not answer
        raise _unavailable(uri, error) from error


def _unavailable(uri: str, error: Exception) -> Unavailable:
    return Unavailable(f"the artifact store does not take or give {uri}: {error}")


def checkpoint_path(operation: str, iteration: int) -> str:
    """Where the state behind an iteration is kept."""
    return f"{operation}/checkpoints/{iteration:07d}.safetensors"


def frame_path(operation: str, iteration: int) -> str:
    """Where the preview of an iteration is kept."""
    return f"{operation}/frames/{iteration:07d}.png"


def result_path(operation: str, file: str) -> str:
    """Where a file of the result is kept."""
    return f"{operation}/result/{file}"
