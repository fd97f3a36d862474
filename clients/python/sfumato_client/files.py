"""Files that appear whole or not at all."""

import errno
import os
import tempfile
from pathlib import Path


def check_writable(path: Path) -> None:
    """Found out before the work whose result is to be written there; makes nothing.

    Raises:
        OSError: write_file could not write it.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(parent for parent in path.parents if parent.exists())
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_file(path: Path, data: bytes) -> Path:
    """Writes the file; makes the folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(fresh).chmod(0o644)
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
    return path
