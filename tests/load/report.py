"""Calls and memory of a load to figures, verdicts and Markdown."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

Record = tuple[str, float, float, str]  # endpoint, seconds since the start, milliseconds, code
EXPECTED = ("OK", "RESOURCE_EXHAUSTED")  # refusals are answers; the others are failures
FULL_MS = 50.0
FLAT = 1.03


def shape_figures(records: Sequence[Record], seconds: float) -> dict[str, Any]:
    """By endpoint: calls, percentiles of those that were answered, codes; and how fast refusals came."""
    names = sorted({record[0] for record in records})
    refused = [ms for _, _, ms, code in records if code == "RESOURCE_EXHAUSTED"]
    return {
        "seconds": round(seconds, 1),
        "endpoints": {name: _endpoint([r for r in records if r[0] == name]) for name in names},
        "refusals": {"count": len(refused), **percentiles(refused)},
        "failures": dict(Counter(code for *_, code in records if code not in EXPECTED)),
    }


def _endpoint(records: Sequence[Record]) -> dict[str, Any]:
    codes = Counter(code for *_, code in records)
    return {
        "calls": len(records),
        "codes": dict(codes),
        **percentiles([ms for _, _, ms, code in records if code == "OK"]),
    }


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest."""
    if not ms:
        return {}
    found = {f"p{q}_ms": round(float(np.percentile(list(ms), q)), 1) for q in (50, 95, 99)}
    return {**found, "max_ms": round(max(ms), 1)}


def verdicts(figures: dict[str, Any]) -> dict[str, bool]:
    """What a load must show."""
    shapes = figures["shapes"].values()
    refusals = [shape["refusals"] for shape in shapes if shape["refusals"]["count"]]
    found = {
        "no wrong, lost or failed result": not any(shape["failures"] for shape in shapes),
        "nothing runs on when its clients have gone": all(shape["idle_after"] for shape in shapes),
        "no service ended": not figures["ended_services"],
    }
    if refusals:
        fast = all(refusal["p99_ms"] < FULL_MS for refusal in refusals)
        found[f"queue full is answered in under {FULL_MS:.0f} ms (p99)"] = fast
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
        rows = [*shape["endpoints"].items(), ("refusals: queue full", shape["refusals"])]
        for endpoint, row in rows:
            times = " | ".join(str(row.get(f"p{q}_ms", "-")) for q in (50, 95, 99))
            codes = ", ".join(f"{code} {count}" for code, count in row.get("codes", {}).items())
            lines.append(f"| {endpoint} | {row.get('calls', row.get('count'))} | {times} | {codes} |")
        if "mean_ms_in_service" in shape["refusals"]:
            lines += ["", f"A refusal's mean in the service: {shape['refusals']['mean_ms_in_service']} ms."]
        lines += ["", "| memory, MiB | 1st quarter | 2nd | 3rd | last | last over 2nd |", "| --- " * 6 + "|"]
        for service, row in shape["memory"].items():
            lines.append(f"| {service} | {' | '.join(str(value) for value in row.values())} |")
    return "\n".join(lines) + "\n"
