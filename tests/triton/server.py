"""A real Triton Inference Server, without root or containers: the one that nvidia-pytriton's wheel carries.

The wheel is fetched once from PyPI (55 MB) and kept outside tree and environment; nothing of it is imported.
"""

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from sfumato_client.stack import free_port

WHEEL = "nvidia-pytriton==0.7.0"
READY_SECONDS = 60.0
ROOT = Path(__file__).parents[2]


def triton_folder() -> Path:
    """The unpacked wheel, made on first use; its Python backend has the stub of this Python."""
    folder = Path("~/.cache/sfumato").expanduser() / WHEEL.replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".done").exists():
            with tempfile.TemporaryDirectory() as downloads:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                subprocess.run([*pip, "--no-deps", "--dest", downloads, WHEEL], check=True)
                (wheel,) = Path(downloads).glob("*.whl")
                zipfile.ZipFile(wheel).extractall(folder)
            python = f"{sys.version_info.major}.{sys.version_info.minor}"
            server = folder / "pytriton" / "tritonserver"
            stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
            stub.rename(server / "backends" / "python" / stub.name)
            for program in (server / "bin" / "tritonserver", server / "backends" / "python" / stub.name):
                program.chmod(0o755)
            (folder / ".done").touch()
    return folder


def export(repository: Path, family: Path) -> None:
    """Writes the family's model repository, as the README says."""
    command = [sys.executable, ROOT / "deploy" / "triton" / "export.py", repository, "--family", family]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


class TritonServer:
    """The server on a port of its own; may be killed and started again."""

    def __init__(self, repository: Path, log: Path) -> None:
        self.port, self.repository, self.log = free_port(), repository, log
        self._prefix = f"sfumato-test-triton-{secrets.token_hex(4)}-"

    @property
    def url(self) -> str:
        """host:port of its gRPC."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        folder = triton_folder()
        server = folder / "pytriton" / "tritonserver"
        python = Path(sysconfig.get_config_var("LIBDIR"))
        if not list(python.glob(f"libpython{sysconfig.get_python_version()}.so*")):
            pytest.skip(f"Triton's Python backend needs Python's shared library, and {python} has none")
        libraries = f"{folder / 'nvidia_pytriton.libs'}:{python}"
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
        command = [
            server / "bin" / "tritonserver", "--model-repository", self.repository,
            "--backend-directory", server / "backends", "--grpc-address", "127.0.0.1",
            "--grpc-port", self.port, "--allow-http", "false", "--allow-metrics", "false",
            "--backend-config", f"python,shm-region-prefix-name={self._prefix}",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], env=environment, stdout=log, stderr=log,
                # The backend's Python reads no PYTHONPATH, and looks for onnxruntime where it runs.
                cwd=Path(onnxruntime.__file__).parents[1], start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        with (
            triton.InferenceServerClient(self.url) as client,
            contextlib.suppress(InferenceServerException),
        ):
            return bool(client.is_server_ready(client_timeout=2))
        return False

    def kill(self) -> None:
        """By SIGKILL, with its backends, as a container goes; and what they had in shared memory."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for left in Path("/dev/shm").glob(f"{self._prefix}*"):
            left.unlink()


@contextlib.contextmanager
def triton_server(repository: Path, log: Path) -> Iterator[TritonServer]:
    """Runs it until the block ends."""
    server = TritonServer(repository, log)
    server.start()
    try:
        yield server
    finally:
        server.kill()  # its drain takes seconds, and nothing is to be kept
