"""What the load report says: verdicts, percentiles, memory by quarters."""

import pytest

from tests.load import memory, report


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
