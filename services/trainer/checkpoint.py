"""Checkpoints of a stage: weights, their average, the optimiser's state."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


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
        """Replaces the file, which safetensors does whole or not at all."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, self.path, {"step": str(self.step), "seconds": str(self.seconds)})

    def load(self) -> None:
        """Goes on where the file left off; does nothing without one."""
        if not self.path.exists():
            return
        tensors = load_file(self.path)
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        self.model.load_state_dict(part(tensors, "model."))
        self.average = part(tensors, "average.")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in part(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def average_of(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint."""
    return part(load_file(path), "average.")
