"""Training that is interrupted ends with the weights of training that was not."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from sfumato.trainer.loop import Schedule, learning_rate, train


def run(path: Path, last: int, num_steps: int = 12) -> dict[str, torch.Tensor]:
    """Trains a small network up to step `last` of a schedule of num_steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def batches(first: int, rank: int) -> Iterator[torch.Tensor]:
        for index in range(first, last):
            yield torch.randn(16, 4, generator=torch.Generator().manual_seed(index))

    def loss_of(batch: torch.Tensor, step: int) -> torch.Tensor:
        noisy = batch + 0.1 * torch.randn_like(batch)
        return (model(noisy).float() - batch.sum(1, keepdim=True)).square().mean()

    train("test", model, path, Schedule(num_steps, 1e-2, warmup_steps=3), batches, loss_of)
    return load_file(path)


def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.safetensors", 12)
    run(tmp_path / "broken.safetensors", 5)
    resumed = run(tmp_path / "broken.safetensors", 12)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    first = run(tmp_path / "first.safetensors", 5)
    assert any(not torch.equal(first[name], whole[name]) for name in whole)


def test_the_learning_rate_warms_up_and_falls() -> None:
    schedule = Schedule(100, 1.0, warmup_steps=10)
    rates = [learning_rate(schedule, step, 0.0) for step in range(100)]
    assert rates[0] < rates[5] < rates[10]
    assert rates[10] > rates[50] > rates[99] > 0
