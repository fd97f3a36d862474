"""Files that appear whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_file(path: Path, data: bytes) -> Path:
    """Writes the file; makes the folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(fresh).chmod(0o644)
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
    return path
