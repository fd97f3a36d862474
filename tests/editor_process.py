"""An editor of its own process, to be killed and started again."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sfumato_client.client import Client
from sfumato_client.stack import Service, Stack, free_port, is_serving, local_stack

# A deep image prior that is small, and has everything: parameters, moments, an average, random numbers.
SMALL: dict[str, Any] = {"channels": 8, "num_scales": 2, "size": 32}


def noisy_image(seed: int = 0, side: int = 32) -> bytes:
    """A PNG of a smooth picture with noise."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 200, side).expand(3, side, side)
    pixels = (ramp + 30 * torch.randn(3, side, side, generator=generator)).clamp(0, 255).byte()
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def editor_service(family: Path, folder: Path, **settings: object) -> Service:
    """An editor that is not started yet; settings become SFUMATO_EDITOR_*."""
    port = free_port()
    given = {
        "port": port, "family": family, "state_dir": folder / "state", "num_threads": 1,
        "checkpoint_seconds": 0.2, **settings,
    }  # fmt: skip
    environment = {f"SFUMATO_EDITOR_{name.upper()}": str(value) for name, value in given.items()}
    return Service("editor", port, environment, folder / "editor.log")


def wait_until_serving(service: Service) -> None:
    """Returns when the editor serves; fails with its log when it ends before."""
    import time

    end = time.monotonic() + 180
    while not is_serving(service.target):
        assert service.process.poll() is None, service.last_lines(20)
        assert time.monotonic() < end, service.last_lines(20)
        time.sleep(0.1)


def kill_and_restart(service: Service) -> None:
    """SIGKILL, then the same again."""
    service.process.kill()
    service.process.wait()
    service.start()
    wait_until_serving(service)


@contextlib.contextmanager
def running(*services: Service) -> Iterator[None]:
    """The services serve within."""
    for service in services:
        service.start()
    try:
        for service in services:
            wait_until_serving(service)
        yield
    finally:
        for service in services:
            service.process.kill()
            service.process.wait()


@contextlib.contextmanager
def running_editor(family: Path, folder: Path, **settings: object) -> Iterator[tuple[Service, Client]]:
    """An editor and a client of it, which needs no gateway: both serve the same."""
    service = editor_service(family, folder, **settings)
    with running(service), Client(service.target, timeout=60) as client:
        yield service, client


@contextlib.contextmanager
def editing_stack(family: Path, folder: Path, **settings: object) -> Iterator[Stack]:
    """All services, and an editor with its state in the folder; settings become SFUMATO_EDITOR_*."""
    given = {"state_dir": folder / "state", "num_threads": 1, **settings}
    environment = {f"SFUMATO_EDITOR_{name.upper()}": str(value) for name, value in given.items()}
    with local_stack(family, log_dir=folder, editor=True, settings=environment) as running:
        yield running
