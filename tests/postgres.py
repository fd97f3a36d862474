"""A real PostgreSQL on loopback, in a folder of its own, for as long as a test lasts."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato_client.stack import free_port


def binary(name: str) -> str:
    """A program of the server's package, which Debian keeps off the path; skips the test without it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing: apt-get install postgresql (CI does)")
    return path


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """Its URL. It refuses to run as root, so that root runs it as the package's user."""
    folder = Path(tempfile.mkdtemp(prefix="sfumato-postgres-"))
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        identity = {"user": "postgres", "group": "postgres", "extra_groups": []}
    port, data = free_port(), folder / "data"
    initdb = [binary("initdb"), "-D", str(data), "-U", "sfumato", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **identity)
    control = [binary("pg_ctl"), "-D", str(data), "-w", "-t", "60"]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    start = [*control, "-l", str(folder / "log"), "-o", options, "start"]
    subprocess.run(start, check=True, cwd=folder, stdout=subprocess.DEVNULL, **identity)
    try:
        yield f"postgresql+psycopg://sfumato@127.0.0.1:{port}/postgres"
    finally:
        stop = [*control, "-m", "immediate", "stop"]
        subprocess.run(stop, check=True, cwd=folder, stdout=subprocess.DEVNULL, **identity)
        shutil.rmtree(folder)
