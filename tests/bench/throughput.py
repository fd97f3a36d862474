"""Sixteen mixed requests at once through the services, against diffusers' in-process pipeline, in one run.

    python -m tests.bench.throughput                  # 10 minutes on two cores; needs them for itself
    python -m tests.bench.throughput --rounds 1 --most-clients 4 --markdown

Everything that is compared is measured in turn, round by round, so that a busy machine slows all of it;
ratios are medians over the rounds. Prints JSON and writes it to out/throughput.json, its table to
out/throughput.md and a plot to out/throughput.png.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato_client.stack import Stack, local_stack
from tests.bench.cores import second_core
from tests.bench.mixed import STATIC_BATCH_RULE, InProcess, Request, Settings, mixed_requests
from tests.bench.serving import Served, closed_loop, growth, percentile_ms, pin, served, totals
from tests.bench.throughput_report import draw, markdown

USUAL = Settings(30, "dpmpp_2m", 5.0, 64)
SHORT = Settings(20, "dpmpp_2m", 5.0, 64)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
SATURATING_CLIENTS = 16  # so that rows wait at each of two denoisers while the last ones are on their way
BATCH_SIZES = (1, 2, 4, 8, 16)
UTILISATION = 0.7  # of the arrivals that are spread in time
OVERHEAD_RULE = (
    "1 - (seconds in the denoiser's steps + seconds of encoding and decoding on the models' threads) / "
    "seconds of the client, from the services' metrics; the sampler's and guidance's arithmetic counts as "
    "overhead"
)


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--rounds", type=int, default=5, help="of what is compared")
    parser.add_argument("--most-clients", type=int, default=64, help="of the scaling")
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--markdown", action="store_true", help="print the table, not the JSON")
    arguments = parser.parse_args()
    pipeline = InProcess(arguments.family)
    with tempfile.TemporaryDirectory() as logs:
        with local_stack(arguments.family, log_dir=Path(logs), metrics=True) as stack:
            figures = {
                "machine": {"cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
                "mixed": mixed(stack, pipeline, arguments.rounds),
                "one_client": one_client(stack, pipeline, 4 * arguments.rounds),
                "scaling": scaling(stack, arguments.most_clients),
            }
        figures["replicas"] = replicas(arguments.family, Path(logs), arguments.rounds)
        figures["second_core"] = second_core(arguments.family, arguments.rounds, 3)
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2)
    (arguments.output / "throughput.json").write_text(text + "\n")
    (arguments.output / "throughput.md").write_text(markdown(figures))
    draw(figures, arguments.output / "throughput.png")
    print(markdown(figures) if arguments.markdown else text)


def mixed(stack: Stack, pipeline: InProcess, rounds: int) -> dict[str, Any]:
    """The sixteen requests: images/s of each way, latencies against first come, first served."""
    requests = mixed_requests()
    count, at_once = len(requests), [0.0] * len(requests)

    def together(at_a_time: int, arrivals: Sequence[float]) -> Served:
        return asyncio.run(served(stack.target, requests, at_a_time, arrivals))

    together(count, at_once)  # warm, as are the pipeline's batches below
    largest = min(BATCH_SIZES, key=lambda size: pipeline.static_batches(requests, size))
    spread = _arrivals(count, together(count, at_once).seconds / count / UTILISATION)
    found: dict[str, list[Any]] = {"services": [], "fcfs": [], "spread": [], "spread_fcfs": []}
    sequential, static = [], []
    for _ in range(rounds):
        sequential.append(pipeline.one_at_a_time(requests))
        found["services"].append(together(count, at_once))
        static.append(pipeline.static_batches(requests, largest))
        found["fcfs"].append(together(1, at_once))
        found["spread"].append(together(count, spread))
        found["spread_fcfs"].append(together(1, spread))
    seconds = [run.seconds for run in found["services"]]
    latencies = {
        name: {f"p{q}_ms": percentile_ms([s for run in runs for s in run.latencies], q) for q in (50, 95)}
        for name, runs in found.items()
    }
    return {
        "requests": count, "rounds": rounds, "static_batch_rule": STATIC_BATCH_RULE,
        "static_batch_largest": largest,
        "services_images_per_second": _rate(count, seconds),
        "sequential_images_per_second": _rate(count, sequential),
        "static_images_per_second": _rate(count, static),
        "first_come_first_served_images_per_second": _rate(count, [run.seconds for run in found["fcfs"]]),
        "over_sequential": _ratio(sequential, seconds), "over_static": _ratio(static, seconds),
        "latency_all_at_once": latencies["services"],
        "latency_all_at_once_first_come_first_served": latencies["fcfs"],
        "arrivals_spread_utilisation": UTILISATION,
        "latency_spread": latencies["spread"],
        "latency_spread_first_come_first_served": latencies["spread_fcfs"],
    }  # fmt: skip


def one_client(stack: Stack, pipeline: InProcess, repeats: int) -> dict[str, Any]:
    """Where the time of a client alone goes."""
    requests = [Request(USUAL, "a cat on a blue background", seed) for seed in range(repeats)]
    asyncio.run(closed_loop(stack.target, 1, requests[:2]))
    return {
        **shares(stack, requests),
        "pipeline_p50_ms": percentile_ms([pipeline.one_at_a_time([r]) for r in requests], 50),
        "pipeline_overhead_share": round(1 - pipeline.model_share(requests[0], repeats), 4),
    }


def shares(stack: Stack, requests: Sequence[Request]) -> dict[str, Any]:
    """What each part takes of the latency of one client that makes the requests, all of two rows a step."""
    before = totals(stack)
    run = asyncio.run(closed_loop(stack.target, 1, requests))
    after = totals(stack)

    def seconds(key: str) -> float:
        return growth(before, after, key)

    client = sum(run.latencies)
    steps, hops = seconds("sfumato_denoiser_step_seconds_sum"), seconds("sfumato_gateway_step_seconds_sum")
    forwards = seconds("sfumato_model_run_seconds_sum/unet") / 2  # two rows side by side
    ends = sum(seconds(f"sfumato_model_run_seconds_sum/{work}") for work in ("encode_text", "decode"))
    rows = seconds("sfumato_denoiser_rows_total") / seconds("sfumato_denoiser_step_seconds_count")
    # A canary's step, of one row, may come in between.
    assert abs(rows - 2) < 0.02, f"a step had {rows:.2f} rows: something else used the services"
    return {
        "repeats": len(requests), "overhead_rule": OVERHEAD_RULE,
        "p50_ms": run.percentile_ms(50), "p95_ms": run.percentile_ms(95),
        "overhead_share": round(1 - (steps + ends) / client, 4),
        "share": {
            "unet_forwards": round(forwards / client, 4),
            "wait_and_gather_in_denoiser": round((steps - forwards) / client, 4),
            "grpc_to_denoiser": round((hops - steps) / client, 4),
            "encode_and_decode": round(ends / client, 4),
            "gateway_and_client": round((client - hops - ends) / client, 4),
        },
    }  # fmt: skip


def scaling(stack: Stack, most: int) -> list[dict[str, Any]]:
    """Images/s and latency of 1 to `most` clients that ask again and again."""
    found = []
    for clients in (count for count in CLIENTS if count <= most):
        requests = [Request(SHORT, "a dog", seed) for seed in range(max(16, 2 * clients))]
        run = asyncio.run(closed_loop(stack.target, clients, requests))
        figures = {f"p{q}_ms": run.percentile_ms(q) for q in (50, 95)}
        found.append({"clients": clients, "images_per_second": round(run.images_per_second, 3), **figures})
    return found


def replicas(family: Path, logs: Path, rounds: int) -> dict[str, Any]:
    """Two denoisers, each on a core of its own, against one on one core; the other services go anywhere.

    By steady rates: while clients begin, and while the last ones end, not all of them keep the cores busy.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return {"skipped": "one core"}
    requests = [Request(SHORT, "a dog", seed) for seed in range(6 * SATURATING_CLIENTS)]
    settings = {"SFUMATO_DENOISER_NUM_THREADS": "1"}
    with (
        local_stack(family, log_dir=logs / "one", settings=settings) as one,
        local_stack(family, log_dir=logs / "two", denoisers=2, settings=settings) as two,
    ):
        for stack in (one, two):
            for denoiser, core in zip(stack.denoisers, cores, strict=False):
                pin(denoiser, core)
            asyncio.run(closed_loop(stack.target, SATURATING_CLIENTS, requests[: 2 * SATURATING_CLIENTS]))
        pairs = [
            [asyncio.run(closed_loop(stack.target, SATURATING_CLIENTS, requests)) for stack in (one, two)]
            for _ in range(rounds)
        ]
    alone, both = ([pair[i].steady_images_per_second(SATURATING_CLIENTS) for pair in pairs] for i in (0, 1))
    ratios = [b / a for a, b in zip(alone, both, strict=True)]
    return {
        "clients": SATURATING_CLIENTS, "one_images_per_second": round(statistics.median(alone), 3),
        "two_images_per_second": round(statistics.median(both), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_with_start_and_end": _ratio(*([pair[i].seconds for pair in pairs] for i in (0, 1))),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }  # fmt: skip


def _arrivals(count: int, mean_seconds: float) -> list[float]:
    """Of a Poisson process, the same in every run."""
    gaps, at, found = random.Random(0), 0.0, []
    for _ in range(count):
        found.append(at)
        at += gaps.expovariate(1 / mean_seconds)
    return found


def _rate(count: int, seconds: Sequence[float]) -> float:
    return round(count / statistics.median(seconds), 3)


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 3)


if __name__ == "__main__":
    main()
