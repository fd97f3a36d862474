"""The library that makes invisible watermarks: fetched once from PyPI, kept outside tree and environment."""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

from sfumato.decoder.watermark import PACKAGES


def watermark_library() -> Path:
    """A folder for PYTHONPATH, made on first use."""
    digest = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    folder = Path("~/.cache/sfumato").expanduser() / f"watermark-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".done").exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--no-deps", "--upgrade", "--target", folder, *PACKAGES], check=True)
            (folder / ".done").touch()
    return folder
