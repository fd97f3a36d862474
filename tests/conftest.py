"""Families and running services that the tests share."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from sfumato_client import AsyncClient
from sfumato_client.stack import Service, Stack, free_port, local_stack
from tests import forked
from tests.secured import Secured, running_secured
from tests.tiny_family import save_tiny_family

METRICS_PORT = free_port()
if not torch.cuda.is_available():  # CUDA does not outlive a fork
    Service.start = forked.start  # type: ignore[method-assign]
# `sfumato serve` in a test keeps its edits apart from the user's.
os.environ["SFUMATO_EDITOR_STATE_DIR"] = tempfile.mkdtemp(prefix="sfumato-test-edits-")
SHIPPED = Path(__file__).parents[1] / "deploy" / "models" / "emoji"


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random weights: right in everything but looks."""
    return save_tiny_family(tmp_path_factory.mktemp("families") / "tiny")


@pytest.fixture(scope="session")
def emoji_family() -> Path:
    """The family that the repository ships."""
    return Path(os.environ.get("SFUMATO_FAMILY", SHIPPED))


@pytest.fixture(scope="session")
def stack(emoji_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services with the emoji family, and two denoisers."""
    settings = {"SFUMATO_GATEWAY_METRICS_PORT": str(METRICS_PORT)}
    logs = tmp_path_factory.mktemp("logs")
    with local_stack(emoji_family, denoisers=2, log_dir=logs, settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services with the tiny family, which has clip/ and clip_noised/, and two denoisers."""
    logs = tmp_path_factory.mktemp("tiny-logs")
    # A folder of its own: other tests look for processes that were left with theirs.
    family = save_tiny_family(tmp_path_factory.mktemp("served") / "tiny")
    # Gradients are torch's; without a graph to export and check, the services are ready sooner. More
    # threads only cost where the models are tiny. No canary step comes among the forwards that a test counts.
    settings = {"SFUMATO_GATEWAY_CANARY_SECONDS": "3600"}
    for name in ("ENCODER", "DECODER", "DENOISER"):
        settings |= {f"SFUMATO_{name}_ENGINE": "torch", f"SFUMATO_{name}_NUM_THREADS": "1"}
    with local_stack(family, denoisers=2, log_dir=logs, metrics=True, settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """All services with mutual TLS and credentials; its files are replaced now and then, so ask for them."""
    with running_secured(tmp_path_factory.mktemp("secured")) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncClient]:
    """A client of the shared services."""
    async with AsyncClient(stack.target, timeout=120) as opened:
        yield opened
