"""`make load` in small: every endpoint under each kind of client, and what the report says of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sfumato_client.stack import local_stack
from tests.load import endpoints
from tests.load.__main__ import QUEUE, loaded, write
from tests.load.shapes import SHAPES
from tests.tiny_family import save_tiny_family

SECONDS = 8
NAMES = ("ENCODER", "DECODER", "DENOISER", "EDITOR")
THREADS = {f"SFUMATO_{name}_NUM_THREADS": "1" for name in NAMES}
ENGINES = {f"SFUMATO_{name}_ENGINE": "torch" for name in NAMES[:3]}


def test_every_endpoint_stands_a_crowd_slow_readers_and_clients_that_vanish(tmp_path: Path) -> None:
    settings = {**QUEUE, **THREADS, **ENGINES, "SFUMATO_EDITOR_STATE_DIR": str(tmp_path / "edits")}
    family = save_tiny_family(tmp_path / "tiny")
    with local_stack(family, log_dir=tmp_path, editor=True, metrics=True, settings=settings) as stack:
        figures = loaded(stack, ["smoke"], SECONDS)
    write(figures, tmp_path / "out")
    smoke = figures["shapes"]["smoke"]
    assert smoke["failures"] == {}
    assert smoke["killed_clients"] > 0
    assert smoke["idle_after"]
    assert figures["ended_services"] == []
    answered = {name for name, row in smoke["endpoints"].items() if row["codes"].get("OK")}
    assert answered >= set(endpoints.NAMES)
    assert smoke["refusals"]["witness"]["count"] > 0
    assert set(smoke["memory"]) == {service.name for service in stack.services}
    assert "| Generate |" in (tmp_path / "out" / "load.md").read_text()


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ended_by_a_signal_it_leaves_nobody_behind(name: signal.Signals, tmp_path: Path) -> None:
    family = save_tiny_family(tmp_path / "tiny")
    options = ("--family", str(family), "--output", str(tmp_path), "--shapes", "smoke", "--seconds", "600")
    environment = {**os.environ, **THREADS, **ENGINES, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-m", "tests.load", *options], env=environment) as load:
        # Five services, a witness, a client that vanishes, the users and their lead.
        while len(psutil.Process(load.pid).children()) < 8 + SHAPES["smoke"].num_groups:
            assert load.poll() is None
            time.sleep(0.2)
        time.sleep(3)
        everyone = psutil.Process(load.pid).children(recursive=True)
        load.send_signal(name)
    _, left = psutil.wait_procs(everyone, timeout=5)
    assert left == []
    assert load.returncode == (-name if name == signal.SIGKILL else 128 + name)
