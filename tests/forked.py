"""Services that start in a second: forked from a process that has the libraries imported already.

Imports of torch, diffusers and transformers are 6 to 7 CPU seconds of a service, and a stack has five.
`sfumato` itself starts each service as a new Python; tests/e2e runs it so.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess

from sfumato_client.stack import OPENMP_SPINS, Service

# Libraries alone: what our own modules do when they are imported is to happen in each service.
IMPORTED = [
    "sfumato.common", "uvloop", "structlog", "pydantic_settings", "onnxruntime", "onnxscript", "open_clip",
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.autoencoders.vq_model",
    "diffusers.models.unets.unet_2d_condition", "diffusers.loaders.lora_pipeline",
    "diffusers.schedulers.scheduling_ddim", "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip", "torchvision.transforms.functional", "timm.optim.madgrad",
    "dbos", "fsspec", "cv2", "torch.onnx",
]  # fmt: skip
PR_SET_PDEATHSIG = 1

forkserver = get_context("forkserver")
forkserver.set_forkserver_preload(IMPORTED)


class Forked:
    """What `subprocess.Popen` gives of a process, of a forked one."""

    def __init__(self, process: ForkServerProcess) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        """Of the service."""
        assert self.process.pid
        return self.process.pid

    def poll(self) -> int | None:
        """The exit status, negative after a signal; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends it, unless the process ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(service: Service) -> None:
    """In place of `Service.start`: the same environment, log and end with the launcher."""
    os.environ.setdefault("GOMP_SPINCOUNT", OPENMP_SPINS)  # read when torch is imported
    environment = {**os.environ, **service.environment}
    module = f"sfumato.{service.name.rstrip('0123456789')}"
    process = forkserver.Process(target=_run, args=(module, environment, str(service.log)), daemon=True)
    process.start()
    service.process = Forked(process)  # type: ignore[assignment]


def _run(module: str, environment: dict[str, str], log: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
