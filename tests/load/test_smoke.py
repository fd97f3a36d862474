"""`make load` in small: every endpoint under each kind of client, and what the report says of it."""

from pathlib import Path

from sfumato_client.stack import local_stack
from tests.load import endpoints
from tests.load.__main__ import QUEUE, loaded, write
from tests.tiny_family import save_tiny_family

SECONDS = 8


def test_every_endpoint_stands_a_crowd_slow_readers_and_clients_that_vanish(tmp_path: Path) -> None:
    settings = {**QUEUE, "SFUMATO_EDITOR_STATE_DIR": str(tmp_path / "edits")}
    for name in ("ENCODER", "DECODER", "DENOISER", "EDITOR"):
        settings[f"SFUMATO_{name}_NUM_THREADS"] = "1"
        if name != "EDITOR":
            settings[f"SFUMATO_{name}_ENGINE"] = "torch"
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
