"""Ways to make images on a device: the pipeline, eager and compiled, and the services; each one's figures."""

import asyncio
import contextlib
import gc
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sfumato_client.stack import Stack, local_stack
from tests.bench.mixed import InProcess, Request
from tests.bench.serving import closed_loop, mean_ms, mean_of, totals

LOOK_SECONDS = 0.05  # how often the device's memory is looked at
Say = Callable[[str], None]


@dataclass
class Measure:
    """What every way is measured by.

    Attributes:
        requests: of one setting, timed for each figure.
        flops_of_an_image: of the UNet. matrix_flops: of a second, that torch.mm reaches.
        used_before: bytes of the device's memory that are not of the ways'.
    """

    device: torch.device
    dtype: torch.dtype
    requests: Sequence[Request]
    flops_of_an_image: int
    matrix_flops: int
    used_before: int = field(init=False)

    def __post_init__(self) -> None:
        free_memory()
        self.used_before = used_bytes(self.device)

    def way(self, name: str, at_a_time: int, images_per_second: float, peak: list[int]) -> dict[str, Any]:
        """The figures that all ways have; peak: of peak_memory."""
        share = images_per_second * self.flops_of_an_image / self.matrix_flops
        return {
            "way": name, "at_a_time": at_a_time, "images_per_second": round(images_per_second, 3),
            "share_of_matrix_rate": round(share, 4),
            "peak_memory_bytes": peak[0] - self.used_before if self.device.type == "cuda" else None,
        }  # fmt: skip


def pipelines(
    family: Path, measure: Measure, modes: Sequence[str], batches: Sequence[int], say: Say
) -> Iterator[dict[str, Any]]:
    """Eager first, then each mode of torch.compile, at each number of images a call."""
    for mode in ("eager", *modes):
        for batch in batches:
            name = f"diffusers, {mode}"
            say(f"{name}, {batch} at a time")
            try:
                yield _pipeline(family, measure, name, mode, batch)
            except Exception as error:  # a mode that this machine has no compiler or memory for
                if mode == "eager":
                    raise
                say(f"{name} failed: {error!s:.300}")
                yield {"way": name, "at_a_time": batch, "failed": f"{error!s:.300}"}
            torch.compiler.reset()


def _pipeline(family: Path, measure: Measure, name: str, mode: str, batch: int) -> dict[str, Any]:
    with peak_memory(measure.device) as peak:
        pipeline = InProcess(family, measure.device, measure.dtype)
        if mode != "eager":
            pipeline.compile(mode)
        # Whole batches: one of another size would be compiled anew.
        count = max(1, len(measure.requests) // batch)
        groups = [[measure.requests[i % len(measure.requests)] for i in range(batch)] for _ in range(count)]
        start = time.perf_counter()
        for _ in range(2):  # CUDA graphs are recorded at the second call
            pipeline.batch(groups[0])
        warm_seconds = time.perf_counter() - start
        seconds = [pipeline.batch(group) for group in groups]
    found = measure.way(name, batch, batch / statistics.median(seconds), peak)
    return {**found, "warm_seconds": round(warm_seconds, 1)}


@contextlib.contextmanager
def started(family: Path, settings: dict[str, str]) -> Iterator[Stack]:
    """The services, which see how much memory is free."""
    free_memory()
    with (
        tempfile.TemporaryDirectory() as logs,
        local_stack(family, log_dir=Path(logs), metrics=True, settings=settings) as stack,
    ):
        yield stack


def environment(device: torch.device, dtype: torch.dtype, batch_invariant: bool) -> dict[str, str]:
    """Settings of the services on the device, the UNet in this precision."""
    found = {
        "SFUMATO_DENOISER_DTYPE": str(dtype).removeprefix("torch."),
        "SFUMATO_DENOISER_BATCH_INVARIANT": str(batch_invariant).lower(),
        "SFUMATO_GATEWAY_CANARY_SECONDS": "3600",  # none among the forwards that are measured
    }
    for name in ("ENCODER", "DECODER", "DENOISER"):
        found |= {f"SFUMATO_{name}_DEVICE": str(device), f"SFUMATO_{name}_ENGINE": "torch"}
    return found


def services(
    stack: Stack, name: str, measure: Measure, clients: Sequence[int], say: Say
) -> Iterator[dict[str, Any]]:
    """Over gRPC, with so many clients that each ask for the next image when they have the last."""
    for count in clients:
        say(f"{name}, {count} clients")
        with peak_memory(measure.device) as peak:
            found, images_per_second = _served(stack, measure, count)
        yield {**measure.way(name, count, images_per_second, peak), **found}


def _served(stack: Stack, measure: Measure, clients: int) -> tuple[dict[str, Any], float]:
    """Figures that only services have, and images/s."""
    repeats = -(-max(len(measure.requests), 2 * clients) // len(measure.requests))
    requests = [*measure.requests] * repeats
    # As many at a time as below: what may go together is tried when it first does.
    asyncio.run(closed_loop(stack.target, clients, requests[: 2 * clients]))
    before = totals(stack)
    run = asyncio.run(closed_loop(stack.target, clients, requests))
    after = totals(stack)
    forward, step = "sfumato_model_run_seconds", "sfumato_denoiser_step_seconds"
    return {
        "p50_ms": run.percentile_ms(50), "p95_ms": run.percentile_ms(95),
        "rows_of_a_forward": round(mean_of(before, after, "sfumato_model_batch_rows", "/unet"), 2),
        "forward_ms": mean_ms(before, after, forward, "/unet"), "step_ms": mean_ms(before, after, step),
        "gateway_step_ms": mean_ms(before, after, "sfumato_gateway_step_seconds"),
        "decode_ms": mean_ms(before, after, forward, "/decode"),
    }, run.images_per_second  # fmt: skip


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """One number: the most bytes of the device that were in use by any process while the block ran."""
    free_memory()
    peak, over = [used_bytes(device)], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], used_bytes(device))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def used_bytes(device: torch.device) -> int:
    """Of the device, by all processes; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)


def free_memory() -> None:
    """Gives back what this process no longer uses."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
