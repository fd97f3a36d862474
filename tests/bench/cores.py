"""What a second core brings to the bare UNet on this machine: the most that a second denoiser could.

    python -m tests.bench.cores     # a minute; what are called cores may share one, or the rate of memory

A process on each of two cores runs one row after another on one thread; both at once against one alone. No
gateway, no gRPC. Prints JSON.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_onnx import open_unet
from sfumato.denoiser.engine_torch import TorchUNet, Unet
from tests.bench.step_profile import row_of

_given: tuple[Unet, torch.Tensor, Conditioning]  # in a measured process


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    arguments = parser.parse_args()
    print(json.dumps(second_core(arguments.family, arguments.rounds, arguments.seconds), indent=2))


def second_core(family: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Rows a second of one process alone, of two, and the median of their ratios."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return {"skipped": "one core"}
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, _open, (family, cores[0])) as first,
        ProcessPoolExecutor(1, spawn, _open, (family, cores[1])) as second,
    ):
        for process in (first, second):
            process.submit(_rows_per_second, 0.5).result()
        pairs = []
        for _ in range(rounds):
            alone = first.submit(_rows_per_second, seconds).result()
            both = [process.submit(_rows_per_second, seconds) for process in (first, second)]
            pairs.append((alone, sum(future.result() for future in both)))
    return {
        "one_rows_per_second": round(statistics.median(alone for alone, _ in pairs), 2),
        "two_rows_per_second": round(statistics.median(both for _, both in pairs), 2),
        "ratio": round(statistics.median(both / alone for alone, both in pairs), 3),
    }


def _open(family: Path, core: int) -> None:
    """On its core before a library counts the cores that there are."""
    global _given
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    torch_unet = TorchUNet(family, torch.device("cpu"))
    unet = open_unet(torch_unet, "onnxruntime", DenoiserSettings().onnx_cache)
    _given = unet, *row_of(torch_unet)


def _rows_per_second(seconds: float) -> float:
    unet, latents, row = _given
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        unet.noise_pred(latents, 500.0, row)
        count += 1
    return count / passed


if __name__ == "__main__":
    main()
