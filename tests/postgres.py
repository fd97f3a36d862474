"""A real PostgreSQL on loopback, in a folder of its own, for as long as a test lasts."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
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


@dataclass
class Postgres:
    """A server that can be stopped and started. Run by root, it runs as the package's user."""

    folder: Path
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://sfumato@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Makes the data folder."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        initdb = [binary("initdb"), "-D", str(self.folder / "data"), "-U", "sfumato", "--auth=trust"]
        self._run([*initdb, "--no-sync"])

    def start(self) -> None:
        """Returns when it answers."""
        # With fsync: a stop may be a crash.
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        self._control("-l", str(self.folder / "log"), "-o", options, "start")

    def crash(self) -> None:
        """Ends it without a checkpoint, and with every connection."""
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        self._run([binary("pg_ctl"), "-D", str(self.folder / "data"), "-w", "-t", "60", *arguments])

    def _run(self, command: list[str]) -> None:
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            identity = {"user": "postgres", "group": "postgres", "extra_groups": []}
        subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.DEVNULL, **identity)


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A running one."""
    server = Postgres(Path(tempfile.mkdtemp(prefix="sfumato-postgres-")))
    server.create()
    server.start()
    try:
        yield server
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):  # a test may have stopped it
            server.crash()
        shutil.rmtree(server.folder)


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """Its URL."""
    with postgres_server() as server:
        yield server.url
