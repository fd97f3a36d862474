"""Files that appear whole or not at all."""

import errno
import os
import secrets
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
    fresh = path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}")
    try:
        with fresh.open("xb") as file:  # with the rights that the user's umask leaves
            file.write(data)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return path
