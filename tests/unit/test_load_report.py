"""What the load report says: verdicts, percentiles, memory by quarters."""

import pytest

from tests.load import memory, report
from tests.load.groups import joined
from tests.load.witness import Answer

FULL = "RESOURCE_EXHAUSTED"


def test_a_report_says_no_to_what_a_load_must_not_show() -> None:
    calls: list[report.Call] = [("Generate", 100.0, "OK"), ("Edit", 1.0, "WRONG")]
    shape = {
        **report.shape_figures(calls, [(60.0, FULL)], 3.0),
        "idle_after": True,
        "memory": {},
    }
    grown = {"gateway": {"last_over_second": 1.04}}
    figures = {"shapes": {"burst": shape, "soak": {**shape, "memory": grown}}, "ended_services": ["editor"]}
    held = report.verdicts(figures)
    assert [what for what, yes in held.items() if yes] == ["nothing runs on when its clients have gone"]
    assert len(held) == 5


@pytest.mark.parametrize(
    ("answers", "held"),
    [
        ([(20.0, FULL), (900.0, "OK")], True),
        ([(20.0, FULL)] * 90 + [(60.0, FULL)] * 10, False),
        ([(900.0, "OK")], False),  # no refusal seen: not shown
    ],
)
def test_how_fast_a_full_queue_answers_is_judged_by_the_witness(answers: list[Answer], held: bool) -> None:
    figures = report.shape_figures([("Generate", 700.0, FULL)], answers, 3.0)
    assert figures["refusals"]["users"]["p99_ms"] == 700.0
    shape = {**figures, "idle_after": True, "memory": {}}
    verdicts = report.verdicts({"shapes": {"burst": shape}, "ended_services": []})
    assert verdicts["queue full is answered in under 50 ms (p99 of the witness)"] is held


def test_what_the_witness_should_not_get_is_a_failure() -> None:
    figures = report.shape_figures([("Generate", 1.0, "OK")], [(1.0, "UNAVAILABLE"), (1.0, FULL)], 1.0)
    assert figures["failures"] == {"witness: UNAVAILABLE": 1}


def test_bytes_that_differ_between_groups_are_wrong() -> None:
    records: list[report.Record] = [
        ("Generate", 1.0, "OK", {"a cat": "1"}),
        ("Generate", 1.0, FULL, {}),
        ("Generate", 1.0, "OK", {"a cat": "1"}),
        ("Generate", 1.0, "OK", {"a cat": "2"}),
    ]
    assert [code for _, _, code in joined(records)] == ["OK", FULL, "OK", "WRONG"]


def test_percentiles_are_of_answered_calls_alone() -> None:
    calls: list[report.Call] = [("Generate", float(ms), "OK") for ms in range(1, 101)]
    calls.append(("Generate", 9000.0, FULL))
    row = report.shape_figures(calls, [], 1.0)["endpoints"]["Generate"]
    assert (row["calls"], row["p50_ms"], row["max_ms"]) == (101, 50.5, 100.0)


def test_memory_is_compared_between_the_second_and_the_last_quarter() -> None:
    points = [(float(i), (100 + 10 * (i // 25)) * 2**20) for i in range(100)]
    assert memory.quarters({"gateway": points})["gateway"]["last_over_second"] == pytest.approx(
        130 / 110, abs=1e-4
    )
