"""Files and folders that appear whole or not at all: what is there is taken for finished."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a place beside the path; what is written there has the path when the block ends without error.

    Under torchrun each process has a place of its own; of several that write the same, one remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{os.environ.get('RANK', '0')}.{path.name}")
    _remove(fresh)  # what a killed process left
    try:
        yield fresh
        if not (path.is_dir() and fresh.is_dir()):
            fresh.replace(path)
    finally:
        _remove(fresh)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
