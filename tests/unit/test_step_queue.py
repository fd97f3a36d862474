"""Rows that wait go together, and no bit of them shows it."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from sfumato.common.forwards import Tensors
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_onnx import MAX_ROWS, OnnxUNet, open_unet
from sfumato.denoiser.engine_torch import MAX_AREA, TorchUNet, unet_forward
from sfumato.denoiser.step_queue import StepQueue

CPU = torch.device("cpu")


class Unet:
    """Counts rows of each forward; the first waits until it may go on. `depends`: on a row's company."""

    def __init__(self, max_rows: int = 4, depends: bool = False) -> None:
        self.depends = depends
        self.forward = unet_forward(SimpleNamespace(in_channels=4), CPU, self.noise_preds, max_rows)
        self.forwards: list[int] = []
        self.go_on = threading.Event()

    def noise_preds(self, latents: torch.Tensor, timesteps: torch.Tensor, embeds: torch.Tensor) -> Tensors:
        self.forwards.append(len(latents))
        assert self.go_on.wait(20)
        if bool((latents[:, 0, 0, 0] < 0).any()):
            raise ValueError("negative")
        return (latents + timesteps[:, None, None, None] + (len(latents) if self.depends else 0),)


def step(queue: StepQueue, unet: Any, value: float, side: int = 8) -> "asyncio.Task[torch.Tensor]":
    latents, conditioning = torch.full((1, 4, side, side), value), Conditioning(torch.ones(1, 3, 2))
    return asyncio.create_task(queue.noise_pred(unet, latents, value, conditioning))


async def both_threads(queue: StepQueue, unet: Unet, side: int = 16) -> "list[asyncio.Task[torch.Tensor]]":
    """Two steps, both in their forwards."""
    before = len(unet.forwards)
    busy = [step(queue, unet, float(index), side) for index in range(2)]
    while len(unet.forwards) < before + 2:
        await asyncio.sleep(0.001)
    return busy


async def waiting(num_rows: int) -> None:
    """Returns when so many rows are in the queue or in a forward."""
    while REGISTRY.get_sample_value("sfumato_model_queued", {"work": "unet"}) != num_rows:
        await asyncio.sleep(0.001)


async def waiting_behind_one(queue: StepQueue, unet: Unet, others: list[tuple[float, int]]) -> list[Any]:
    """Steps that arrive while both threads are at work: their results, the first's first."""
    busy = await both_threads(queue, unet)
    rest = [step(queue, unet, value, side) for value, side in others]
    await waiting(len(busy) + len(rest))
    unet.go_on.set()
    return await asyncio.gather(*busy, *rest, return_exceptions=True)


async def test_rows_that_wait_go_together_and_each_gets_its_own() -> None:
    queue, unet = StepQueue(2), Unet()
    for _ in range(2):  # the first time each also runs alone
        unet.go_on.clear()
        unet.forwards.clear()
        results = await waiting_behind_one(queue, unet, [(float(value), 8) for value in range(2, 8)])
        for value, result in zip(range(2, 8), results[2:], strict=True):
            assert torch.equal(result, torch.full((1, 4, 8, 8), 2.0 * value))
    assert unet.forwards[:2] == [1, 1]  # none waits for company
    assert sum(unet.forwards[2:]) == 6
    assert len(unet.forwards[2:]) == 2  # the two threads share what waited
    queue.close()


async def test_rows_whose_bits_would_show_their_company_go_apart() -> None:
    queue, unet = StepQueue(2), Unet(max_rows=2, depends=True)
    for _ in range(2):
        unet.go_on.clear()
        results = await waiting_behind_one(queue, unet, [(float(value), 8) for value in range(2, 6)])
        for value, result in zip(range(2, 6), results[2:], strict=True):
            assert torch.equal(result, torch.full((1, 4, 8, 8), 2.0 * value + 1))
    assert set(unet.forwards[-4:]) == {1}
    queue.close()


async def test_bits_may_show_their_company_where_the_operator_says_so() -> None:
    queue, unet = StepQueue(2), Unet(max_rows=2, depends=True)
    unet.forward.batch_invariant = False
    results = await waiting_behind_one(queue, unet, [(float(value), 8) for value in range(2, 6)])
    assert unet.forwards[2:] == [2, 2]  # together at once, without a trial
    for value, result in zip(range(2, 6), results[2:], strict=True):
        assert torch.equal(result, torch.full((1, 4, 8, 8), 2.0 * value + 2))
    queue.close()


async def test_only_rows_of_one_size_go_together_and_large_ones_alone() -> None:
    queue, unet = StepQueue(2), Unet()
    large = int(MAX_AREA**0.5)
    sizes = [(2.0, 8), (3.0, 12), (4.0, 8), (5.0, large), (6.0, large), (7.0, large)]
    results = await waiting_behind_one(queue, unet, sizes)
    for (value, side), result in zip(sizes, results[2:], strict=True):
        assert torch.equal(result, torch.full((1, 4, side, side), 2 * value))
    queue.close()


async def test_a_failure_and_a_cancelled_step_leave_the_queue_at_work() -> None:
    queue, unet = StepQueue(2), Unet(max_rows=1)
    unet.go_on.set()
    with pytest.raises(ValueError, match="negative"):
        await step(queue, unet, -1.0)
    unet.go_on.clear()
    busy = await both_threads(queue, unet, 8)
    dropped = step(queue, unet, 9.0)
    await waiting(3)
    dropped.cancel()
    await waiting(2)
    started = len(unet.forwards)
    unet.go_on.set()
    await asyncio.gather(*busy)
    assert float((await step(queue, unet, 3.0)).mean()) == 6
    assert len(unet.forwards) == started + 1  # the cancelled one never ran
    queue.close()


async def test_what_waits_of_a_step_that_failed_never_runs() -> None:
    queue, unet = StepQueue(2), Unet(max_rows=1)
    rows = Conditioning(torch.ones(6, 3, 2))
    failing = asyncio.create_task(queue.noise_pred(unet, torch.full((1, 4, 8, 8), -1.0), 1.0, rows))
    await asyncio.sleep(0.05)
    unet.go_on.set()
    with pytest.raises(ValueError, match="negative"):
        await failing
    assert float((await step(queue, unet, 3.0)).mean()) == 6
    assert len(unet.forwards) == 3  # of the failed one those two that both threads had begun
    queue.close()


async def test_a_real_unets_rows_have_the_same_bits_in_any_company(tiny_family: Path, tmp_path: Path) -> None:
    torch_unet = TorchUNet(tiny_family, CPU)
    unet = open_unet(torch_unet, "onnxruntime", tmp_path)
    assert isinstance(unet, OnnxUNet)
    assert unet.forward.max_rows == MAX_ROWS
    queue, generator = StepQueue(2), torch.Generator().manual_seed(0)
    steps = []
    for index in range(24):
        side = 8 if index % 3 else 12
        latents = torch.randn(1, 4, side, side, generator=generator)
        given = Conditioning(torch.randn(2, 24, 32, generator=generator))
        steps.append((latents, 37.0 * index, given))
    alone = [
        torch.cat([unet.noise_pred(latents, timestep, row) for row in given.split()])
        for latents, timestep, given in steps
    ]
    for _ in range(3):
        together = await asyncio.gather(*(queue.noise_pred(unet, *given) for given in steps))
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other)
    queue.close()
