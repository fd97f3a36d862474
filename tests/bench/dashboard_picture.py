"""The dashboard's panels, drawn from a real run: all services under load, scraped by a real Prometheus.

    make dashboard-picture

Clients generate by several kinds of guidance and are refused; edits run beside them; half-way a denoiser is
killed and started again. Then every query of deploy/grafana/sfumato.json is asked and drawn.
"""

import argparse
import io
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato_client import Client, SfumatoError
from sfumato_client.stack import Stack, local_stack
from tests.prometheus import ask, expression, panels, running_prometheus

SCRAPE_SECONDS = 2
MOST_NAMED = 6  # curves of a panel in its legend
THREADS = {f"SFUMATO_{service}_NUM_THREADS": "1" for service in ("ENCODER", "DECODER", "DENOISER", "EDITOR")}
REQUESTS: tuple[dict[str, Any], ...] = (
    {"num_inference_steps": 20},
    {"num_inference_steps": 12, "scheduler": "euler_a", "num_images": 2},
    {"num_inference_steps": 6, "guidance": "cfg+clip", "num_cutouts": 4},
    {"num_inference_steps": 10, "preview_interval_steps": 2, "guidance": "noised-clip"},
    {"num_inference_steps": 10, "guidance": "none"},
    {"num_images": 100},  # refused
)


def generate_until(target: str, end: float, first: int) -> None:
    """A client that asks for one thing after the other; refusals and losses are part of it."""
    with Client(target, timeout=120) as client:
        for options in itertools.islice(itertools.cycle(REQUESTS), first, None):
            if time.monotonic() > end:
                return
            try:
                client.generate("a cat on a blue background", **options)
            except SfumatoError:
                time.sleep(0.2)


def edit_until(target: str, end: float) -> None:
    """A client that edits, and cancels every third edit."""
    with Client(target, timeout=120) as client:
        for count in itertools.count(1):
            if time.monotonic() > end:
                return
            operation = client.start_edit("deep-image-prior", prompts=["a cat"], num_iterations=6)
            if count % 3 == 0:
                client.cancel_operation(operation.name)
            client.wait_operation(operation.name)


def load(stack: Stack, seconds: float, num_clients: int) -> None:
    """Runs the clients; kills a denoiser half-way."""
    end = time.monotonic() + seconds
    works: list[Callable[[], None]] = [lambda: edit_until(stack.target, end)]
    works += [lambda i=i: generate_until(stack.target, end, i) for i in range(num_clients)]  # type: ignore[misc]
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    lost = stack.denoisers[0]
    lost.process.kill()
    lost.process.wait()
    lost.start()
    for thread in threads:
        thread.join()


def targets(stack: Stack) -> dict[str, list[str]]:
    """Metrics ports by job."""
    jobs: dict[str, list[str]] = {}
    for service in stack.services:
        jobs.setdefault(service.name.rstrip("0123456789"), []).append(f"127.0.0.1:{service.metrics_port}")
    return jobs


def curves(url: str, panel: dict[str, Any], start: float, end: float) -> list[tuple[str, list[Any]]]:
    """A panel's series: their legends, and [time, value] pairs."""
    found = []
    for target in panel["targets"]:
        query = expression(target, "20s")
        data = ask(url, "query_range", query=query, start=f"{start}", end=f"{end}", step=f"{SCRAPE_SECONDS}")
        for series in data["result"]:
            legend = target["legendFormat"]
            for name, value in series["metric"].items():
                short = value.rpartition("/")[2].removeprefix("sfumato.v1.")
                legend = legend.replace(f"{{{{{name}}}}}", short)
            found.append((legend, series["values"]))
    return found


def draw(drawn: list[tuple[dict[str, Any], list[tuple[str, list[Any]]]]], start: float, path: Path) -> None:
    """All panels in one picture."""
    import matplotlib.pyplot as plt

    columns = 5
    figure, axes = plt.subplots(-(-len(drawn) // columns), columns, figsize=(22, 13), squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.axis("off")
    for axis, (panel, series) in zip(axes.flat, drawn, strict=False):
        unit = panel["fieldConfig"]["defaults"]["unit"]
        scale = 2**20 if unit == "bytes" else 1
        suffix = {"bytes": " (MiB)", "s": " (s)", "percentunit": ""}.get(unit, "")
        axis.set_title(panel["title"] + suffix, fontsize=11)
        for legend, values in series:
            points = [(float(at) - start, float(value) / scale) for at, value in values if value != "NaN"]
            if points:
                axis.plot(*zip(*points, strict=True), label=legend, linewidth=1)
        axis.set(ylim=(0, None), xlim=(0, None))
        largest = sorted(axis.lines, key=lambda line: -max(line.get_ydata()))[:MOST_NAMED]
        if largest:
            axis.legend(handles=largest, fontsize=7, loc="upper left", framealpha=0.7)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.tight_layout()
    drawn_at = io.BytesIO()
    figure.savefig(drawn_at, dpi=60)
    few = Image.open(drawn_at).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> None:
    """Runs and draws."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--seconds", type=float, default=240, help="of load")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("docs/observability.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SFUMATO_EDITOR_STATE_DIR"] = f"{folder}/edits"
        services = local_stack(
            arguments.family, denoisers=2, log_dir=Path(folder), editor=True, metrics=True, settings=THREADS
        )
        with (
            services as stack,
            running_prometheus(Path(folder), targets(stack), f"{SCRAPE_SECONDS}s") as url,
        ):
            start = time.time()
            load(stack, arguments.seconds, arguments.clients)
            time.sleep(2 * SCRAPE_SECONDS)
            drawn = [(panel, curves(url, panel, start, time.time())) for panel in panels()]
            firing = [alert["labels"]["alertname"] for alert in ask(url, "alerts")["alerts"]]
    draw(drawn, start, arguments.output)
    empty = [panel["title"] for panel, series in drawn if not series]
    print(f"{arguments.output}: {len(drawn)} panels; without data: {empty or 'none'}; alerts: {firing}")


if __name__ == "__main__":
    main()
