"""The throughput figures as a Markdown table for docs/performance.md, and as a plot."""

from pathlib import Path
from typing import Any


def markdown(figures: dict[str, Any]) -> str:
    """Two tables: figures beside their aims, and the scaling."""
    m, alone, pinned = figures["mixed"], figures["one_client"], figures["replicas"]
    at_once, fcfs = m["latency_all_at_once"], m["latency_all_at_once_first_come_first_served"]
    spread, spread_fcfs = m["latency_spread"], m["latency_spread_first_come_first_served"]
    rows = [
        ("images/s, 16 mixed requests at once", m["services_images_per_second"], ""),
        ("the same, pipeline one at a time", m["sequential_images_per_second"], ""),
        (f"the same, pipeline in static batches of at most {m['static_batch_largest']}",
         m["static_images_per_second"], ""),
        ("services over one at a time", m["over_sequential"], "at least 3.0"),
        ("services over static batches", m["over_static"], "at least 1.3"),
        ("p95 ms, all at once", at_once["p95_ms"], f"at most {fcfs['p95_ms']}, first come, first served"),
        (f"p95 ms, arrivals spread to {m['arrivals_spread_utilisation']:.0%} use", spread["p95_ms"],
         f"at most {spread_fcfs['p95_ms']}, first come, first served"),
        ("one client, p50 ms", alone["p50_ms"], f"pipeline: {alone['pipeline_p50_ms']}"),
        ("gateway and gRPC, share of one client's latency", f"{alone['overhead_share']:.1%}", "at most 5 %"),
        ("what is not model in the pipeline's own latency", f"{alone['pipeline_overhead_share']:.1%}", ""),
        ("two denoisers on a core each over one on one core", pinned.get("ratio", "skipped"), "at least 1.8"),
        ("the same of bare UNets, without services", figures["second_core"].get("ratio", "skipped"), ""),
    ]  # fmt: skip
    lines = ["| figure | measured | aim |", "| --- | --- | --- |"]
    lines += [f"| {what} | {value} | {aim} |" for what, value, aim in rows]
    lines += ["", "| clients | images/s | p50 ms | p95 ms |", "| --- | --- | --- | --- |"]
    for row in figures["scaling"]:
        lines.append(f"| {row['clients']} | {row['images_per_second']} | {row['p50_ms']} | {row['p95_ms']} |")
    return "\n".join(lines) + "\n"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Images/s of each way, images/s and p95 over clients, one client's time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    m, scaling, share = figures["mixed"], figures["scaling"], figures["one_client"]["share"]
    figure, (ways, clients, parts) = plt.subplots(1, 3, figsize=(16, 4.5))
    names = {
        "sequential": "pipeline, one at a time",
        "static": "pipeline, static batches",
        "first_come_first_served": "services, one at a time",
        "services": "services, all at once",
    }
    bars = ways.barh(list(names.values()), [m[f"{name}_images_per_second"] for name in names])
    ways.bar_label(bars)
    ways.set(title="16 mixed requests", xlabel="images/s")
    ways.margins(x=0.15)
    counts = [row["clients"] for row in scaling]
    clients.plot(counts, [row["images_per_second"] for row in scaling], marker="o", label="images/s")
    clients.set(title="Concurrent clients", xlabel="clients", ylabel="images/s", ylim=(0, None))
    clients.set_xscale("log", base=2)
    clients.set_xticks(counts, [str(count) for count in counts])
    late = clients.twinx()
    late.plot(counts, [row["p95_ms"] for row in scaling], marker="s", color="tab:red")
    late.set(ylabel="p95 ms (red)", ylim=(0, None))
    parts.barh([name.replace("_", " ") for name in share], [100 * value for value in share.values()])
    parts.set(title="One client's latency", xlabel="%")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
