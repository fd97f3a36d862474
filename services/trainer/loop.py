"""The loop that every stage shares: schedule, EMA, checkpoints, progress."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage learns."""

    num_steps: int
    learning_rate: float
    warmup_steps: int = 200
    ema_decay: float = 0.999
    checkpoint_seconds: float = 120.0
    max_seconds: float = float("inf")  # the cosine follows whichever of steps and time runs out first


def learning_rate(schedule: Schedule, step: int, seconds: float) -> float:
    """Linear warm-up, then half a cosine down to 2 %."""
    progress = min(1.0, max(step / schedule.num_steps, seconds / schedule.max_seconds))
    warm = min(1.0, (step + 1) / schedule.warmup_steps)
    return schedule.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class Checkpoint:
    """Weights, their average, the optimiser's moments and the step, in one safetensors file."""

    def __init__(self, path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.model, self.optimizer = path, model, optimizer
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0

    def update_average(self, decay: float) -> None:
        """EMA with the usual warm-up of the decay."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self.model.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(tensor, 1 - decay)
            else:
                average.copy_(tensor)

    def save(self) -> None:
        """Writes to a new file, then renames it over the old one."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        metadata = {"step": str(self.step), "seconds": str(self.seconds)}
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, fresh, metadata)
        fresh.replace(self.path)

    def load(self) -> None:
        """Goes on where the file left off; does nothing without one."""
        if not self.path.exists():
            return
        from safetensors import safe_open

        tensors = load_file(self.path)
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        self.model.load_state_dict(_part(tensors, "model."))
        self.average = _part(tensors, "average.")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def average_of(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint."""
    return _part(load_file(path), "average.")


def train(
    name: str,
    model: torch.nn.Module,
    path: Path,
    schedule: Schedule,
    batches: Callable[[int], Iterable[Any]],
    loss_of: Callable[[Any, int], torch.Tensor],
    report: Callable[[int], str] | None = None,
) -> None:
    """Trains until the schedule ends.

    Args:
        batches: gives the batches from step n on.
        loss_of: loss of a batch at a step; the step seeds whatever is random in it.
        report: a line to print at each checkpoint.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    checkpoint = Checkpoint(path, model, optimizer)
    checkpoint.load()
    device_type = next(model.parameters()).device.type
    before, start = checkpoint.seconds, time.monotonic()
    saved = start
    bar = tqdm(batches(checkpoint.step), name, schedule.num_steps, initial=checkpoint.step, mininterval=5)
    for batch in bar:
        if checkpoint.seconds >= schedule.max_seconds:
            break
        rate = learning_rate(schedule, checkpoint.step, checkpoint.seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(checkpoint.step)
        with torch.autocast(device_type, torch.bfloat16):
            loss = loss_of(batch, checkpoint.step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        checkpoint.step += 1
        checkpoint.seconds = before + time.monotonic() - start
        checkpoint.update_average(schedule.ema_decay)
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if time.monotonic() - saved > schedule.checkpoint_seconds:
            saved = time.monotonic()
            checkpoint.save()
            if report:
                tqdm.write(report(checkpoint.step))
    checkpoint.save()
    if report:
        tqdm.write(report(checkpoint.step))
