"""All services of this machine under load, every endpoint asked; figures and report to out/load.json, .md.

    python -m tests.load               # steady, burst, slow readers, clients that vanish: 5 minutes
    python -m tests.load --shapes soak --seconds 1200

Exits 1 where a verdict of the report is no. Ended by a signal, it leaves no process behind.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato_client.stack import Stack, local_stack
from tests.bench.serving import growth, totals
from tests.load import memory, report
from tests.load.groups import calls_of
from tests.load.shapes import SHAPES
from tests.load.vanishing import vanishing
from tests.load.witness import witnessed

USUAL = ("steady", "burst", "slow-readers", "vanishing")
# Few places and a short queue, so that a burst fills it.
QUEUE = {"SFUMATO_GATEWAY_MAX_CONCURRENT_IMAGES": "8", "SFUMATO_GATEWAY_MAX_QUEUED_ROW_STEPS": "250"}
IDLE_SECONDS = 30.0


def main() -> None:
    """Parses the options, starts the services, loads them, reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--shapes", nargs="+", default=list(USUAL), choices=SHAPES)
    parser.add_argument("--seconds", type=float, default=60, help="of each shape")
    parser.add_argument("--output", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder:
        settings = {**QUEUE, "SFUMATO_EDITOR_STATE_DIR": f"{folder}/edits"}
        with local_stack(
            arguments.family, log_dir=Path(folder), editor=True, metrics=True, settings=settings
        ) as stack:
            figures = loaded(stack, arguments.shapes, arguments.seconds)
    write(figures, arguments.output)
    print(report.markdown(figures))
    sys.exit(not all(figures["verdicts"].values()))


def loaded(stack: Stack, shapes: Sequence[str], seconds: float) -> dict[str, Any]:
    """The figures of each shape, one after the other. stack: with an editor, metrics and the QUEUE."""
    figures: dict[str, Any] = {"shapes": {shape: under(stack, shape, seconds) for shape in shapes}}
    figures["ended_services"] = [s.name for s in stack.services if s.process.poll() is not None]
    figures["verdicts"] = report.verdicts(figures)
    return figures


def under(stack: Stack, shape: str, seconds: float) -> dict[str, Any]:
    """One shape."""
    wanted = SHAPES[shape]
    before = totals(stack)
    with (
        tempfile.TemporaryDirectory() as folder,
        memory.watched(stack) as samples,
        vanishing(stack.target, wanted.vanishing) as killed,
        witnessed(stack.target, wanted.witnesses) as answers,
    ):
        start = time.monotonic()
        calls = calls_of(stack.target, shape, seconds, Path(folder))
        passed = time.monotonic() - start
    figures = report.shape_figures(calls, answers, passed)
    after = totals(stack)
    refused, spent = (
        growth(before, after, f"sfumato_request_seconds_{part}/RESOURCE_EXHAUSTED")
        for part in ("count", "sum")
    )
    if refused:
        figures["service_mean_ms"] = round(1000 * spent / refused, 2)
    every = max(1, len(next(iter(samples.values()))) // 240)
    return {
        **figures,
        "killed_clients": len(killed),
        "idle_after": idle(stack),
        "memory": memory.quarters(samples),
        "resident_bytes": {name: points[::every] for name, points in samples.items()},
    }


def idle(stack: Stack) -> bool:
    """Whether the services soon have nothing left to do."""
    end = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < end:
        found = totals(stack)
        if not found["sfumato_gateway_images_running"] and not found["sfumato_gateway_queued_row_steps"]:
            return True
        time.sleep(0.2)
    return False


def write(figures: dict[str, Any], folder: Path) -> None:
    """load.json and load.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "load.json").write_text(json.dumps(figures) + "\n")
    (folder / "load.md").write_text(report.markdown(figures))


if __name__ == "__main__":
    main()
