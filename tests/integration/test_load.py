"""`make load` in small: every endpoint under each kind of client, and what the report says of it."""

from pathlib import Path

import pytest

from sfumato_client.stack import local_stack
from tests.load import endpoints, memory, report
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
    assert set(smoke["memory"]) == {service.name for service in stack.services}
    assert "| Generate |" in (tmp_path / "out" / "load.md").read_text()


def test_a_report_says_no_to_what_a_load_must_not_show() -> None:
    calls: list[report.Record] = [
        ("Generate", 1.0, 100.0, "OK"),
        ("Generate", 2.0, 60.0, "RESOURCE_EXHAUSTED"),
    ]
    shape = {
        **report.shape_figures([*calls, ("Edit", 3.0, 1.0, "WRONG")], 3.0),
        "idle_after": True,
        "memory": {},
    }
    grown = {"gateway": {"last_over_second": 1.04}}
    figures = {"shapes": {"burst": shape, "soak": {**shape, "memory": grown}}, "ended_services": ["editor"]}
    held = report.verdicts(figures)
    assert [what for what, yes in held.items() if yes] == ["nothing runs on when its clients have gone"]
    assert len(held) == 5


def test_percentiles_are_of_answered_calls_alone() -> None:
    calls: list[report.Record] = [("Generate", 1.0, float(ms), "OK") for ms in range(1, 101)]
    calls.append(("Generate", 1.0, 9000.0, "RESOURCE_EXHAUSTED"))
    row = report.shape_figures(calls, 1.0)["endpoints"]["Generate"]
    assert (row["calls"], row["p50_ms"], row["max_ms"]) == (101, 50.5, 100.0)


def test_memory_is_compared_between_the_second_and_the_last_quarter() -> None:
    points = [(float(i), (100 + 10 * (i // 25)) * 2**20) for i in range(100)]
    assert memory.quarters({"gateway": points})["gateway"]["last_over_second"] == pytest.approx(
        130 / 110, abs=1e-4
    )
