"""Calls and memory of a load to figures, verdicts and Markdown."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.load.shapes import SHAPES
from tests.load.witness import Answer

Record = tuple[str, float, str, dict[str, str]]  # a call, and digests of what must always be the same
Call = tuple[str, float, str]  # endpoint, milliseconds, code
EXPECTED = ("OK", "RESOURCE_EXHAUSTED")  # refusals are answers; the others are failures
FULL_MS = 50.0
FLAT = 1.03
WHO = {"witness": "the witness, alone in its process", "users": "users, several in a process"}


def shape_figures(calls: Sequence[Call], witness: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """By endpoint: calls, percentiles of those that were answered, codes; and how fast refusals came."""
    names = sorted({call[0] for call in calls})
    failures = Counter(code for _, _, code in calls if code not in EXPECTED)
    failures.update(f"witness: {code}" for _, code in witness if code not in EXPECTED)
    return {
        "seconds": round(seconds, 1),
        "endpoints": {name: _endpoint([call for call in calls if call[0] == name]) for name in names},
        "refusals": {
            "witness": _refusals(witness),
            "users": _refusals([(ms, code) for _, ms, code in calls]),
        },
        "failures": dict(failures),
    }


def _endpoint(calls: Sequence[Call]) -> dict[str, Any]:
    codes = Counter(code for _, _, code in calls)
    return {
        "calls": len(calls),
        "codes": dict(codes),
        **percentiles([ms for _, ms, code in calls if code == "OK"]),
    }


def _refusals(answers: Sequence[Answer]) -> dict[str, Any]:
    refused = [ms for ms, code in answers if code == "RESOURCE_EXHAUSTED"]
    return {"count": len(refused), **percentiles(refused)}


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest."""
    if not ms:
        return {}
    found = {f"p{q}_ms": round(float(np.percentile(list(ms), q)), 1) for q in (50, 95, 99)}
    return {**found, "max_ms": round(max(ms), 1)}


def _times(row: dict[str, Any]) -> str:
    return " | ".join(str(row.get(f"p{q}_ms", "-")) for q in (50, 95, 99))


def verdicts(figures: dict[str, Any]) -> dict[str, bool]:
    """What a load must show."""
    shapes = figures["shapes"].values()
    filled = [
        shape["refusals"]["witness"] for name, shape in figures["shapes"].items() if SHAPES[name].witnesses
    ]
    found = {
        "no wrong, lost or failed result": not any(shape["failures"] for shape in shapes),
        "nothing runs on when its clients have gone": all(shape["idle_after"] for shape in shapes),
        "no service ended": not figures["ended_services"],
    }
    if filled:
        fast = all(refusals.get("p99_ms", math.inf) < FULL_MS for refusals in filled)
        found[f"queue full is answered in under {FULL_MS:.0f} ms (p99 of the witness)"] = fast
    if "soak" in figures["shapes"]:
        memory = figures["shapes"]["soak"]["memory"].values()
        flat = all(service["last_over_second"] <= FLAT for service in memory)
        found[f"memory of the last quarter at most {FLAT - 1:.0%} over the second's"] = flat
    return found


def markdown(figures: dict[str, Any]) -> str:
    """The whole report."""
    lines = ["# Load", ""]
    lines += [f"- {'yes' if held else '**no**'}: {what}" for what, held in figures["verdicts"].items()]
    for name, shape in figures["shapes"].items():
        lines += ["", f"## {name}, {shape['seconds']} s", ""]
        lines += ["| endpoint | calls | p50 ms | p95 ms | p99 ms | codes |", "| --- " * 6 + "|"]
        for endpoint, row in shape["endpoints"].items():
            codes = ", ".join(f"{code} {count}" for code, count in row["codes"].items())
            lines.append(f"| {endpoint} | {row['calls']} | {_times(row)} | {codes} |")
        if shape["failures"]:
            lines += ["", f"Failures: {shape['failures']}"]
        lines += ["", "| queue full, as seen by | refusals | p50 ms | p95 ms | p99 ms | most ms |"]
        lines += ["| --- " * 6 + "|"]
        for who, row in shape["refusals"].items():
            lines.append(f"| {WHO[who]} | {row['count']} | {_times(row)} | {row.get('max_ms', '-')} |")
        if "service_mean_ms" in shape:
            lines += ["", f"A refusal's mean in the service itself: {shape['service_mean_ms']} ms."]
        lines += ["", "| memory, MiB | 1st quarter | 2nd | 3rd | last | last over 2nd |", "| --- " * 6 + "|"]
        for service, row in shape["memory"].items():
            lines.append(f"| {service} | {' | '.join(str(value) for value in row.values())} |")
    return "\n".join(lines) + "\n"
