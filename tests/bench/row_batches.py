"""What a row costs in company: one forward of n rows against n forwards of one row, in ONNX Runtime.

    python -m tests.bench.row_batches       # 2 minutes on two cores; needs them for itself

The denoiser runs rows apart on a CPU, each on one thread, as many at a time as cores: a request's bits then
cannot depend on its company. This says whether forwards of several rows were faster: on one thread against
rows one after the other; on all cores, as one forward on all threads and as forwards of n/cores rows on a
thread each, against rows apart. Ratios above 1: rows apart are faster. It also says whether a row's bits in a
forward of n are those that it has alone, and whether they are the same at any place among the n, which is
what batches of a fixed size would need. The encoder's and the decoder's forwards are measured as they run, on
all cores (row_batches_of_others). Prints JSON and writes it to out/row_batches.json.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sfumato.common.onnx_graph import Session, open_graph
from sfumato.denoiser.engine_onnx import unet_graph
from sfumato.denoiser.engine_torch import TorchUNet
from tests.bench.row_batches_of_others import others
from tests.bench.step_profile import row_of

ROWS = (2, 4, 8, 16, 32)


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    unet = TorchUNet(arguments.family, torch.device("cpu"))
    graph = unet_graph(unet)
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(cores) as pool:
        one, many = (open_graph(graph, Path(cache), unet.device, threads) for threads in (1, cores))
        figures = [measured(unet, one, many, pool, cores, n, arguments.repeats) for n in ROWS]
        of_others = others(arguments.family, Path(cache), cores, arguments.repeats)
    found = {"cores": cores, "ratios_above_1": "rows apart are faster", "rows": figures, "others": of_others}
    text = json.dumps(found, indent=2)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "row_batches.json").write_text(text + "\n")
    print(text)


def measured(
    unet: TorchUNet, one: Session, many: Session, pool: ThreadPoolExecutor, cores: int, n: int, repeats: int
) -> dict[str, Any]:
    """Seconds of n rows each way, and their ratios; the ways take turns."""
    rows, part = inputs(unet, n), inputs(unet, max(1, n // cores))
    row = inputs(unet, 1)
    ways: dict[str, Callable[[], object]] = {
        "one_thread_apart": lambda: [one.run(*row) for _ in range(n)],
        "one_thread_together": lambda: one.run(*rows),
        "all_cores_apart": lambda: list(pool.map(lambda _: one.run(*row), range(n))),
        "all_cores_together": lambda: many.run(*rows),
        "all_cores_a_part_each": lambda: list(pool.map(lambda _: one.run(*part), range(n // len(part[0])))),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(2 + repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(found[2:]) for name, found in times.items()}
    return {
        "rows": n,
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
        "one_thread_together_over_apart": _over(seconds, "one_thread_together", "one_thread_apart"),
        "all_cores_together_over_apart": _over(seconds, "all_cores_together", "all_cores_apart"),
        "all_cores_a_part_each_over_apart": _over(seconds, "all_cores_a_part_each", "all_cores_apart"),
        **same_bits(unet, one, n),
    }


def same_bits(unet: TorchUNet, session: Session, n: int) -> dict[str, bool]:
    """Of n rows that differ: whether each has the bits that it has alone, and those that it has elsewhere."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(given.shape, generator=generator) for given in inputs(unet, n)]
    together = session.run(*rows)
    alone = torch.cat([session.run(*(given[i : i + 1] for given in rows)) for i in range(n)])
    moved = [session.run(*(given.roll(by, 0) for given in rows)).roll(-by, 0) for by in range(1, n)]
    return {
        "same_bits_as_alone": torch.equal(together, alone),
        "same_bits_at_any_place": all(torch.equal(together, other) for other in moved),
    }


def inputs(unet: TorchUNet, n: int) -> tuple[torch.Tensor, ...]:
    """Of a forward of n rows."""
    latents, conditioning = row_of(unet)
    given = [tensor.repeat(n, *[1] * (tensor.dim() - 1)) for tensor in conditioning.tensors.values()]
    return latents.repeat(n, 1, 1, 1), torch.full((n,), 500.0), *given


def _over(seconds: dict[str, float], a: str, b: str) -> float:
    return round(seconds[a] / seconds[b], 3)


if __name__ == "__main__":
    main()
