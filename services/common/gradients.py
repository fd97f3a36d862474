"""A forward pass that is kept until its vector-Jacobian product is asked for, and how many may be kept."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from prometheus_client import Gauge

from sfumato.common.errors import ResourceExhausted

KEPT = Gauge("sfumato_kept_graphs", "Forward passes kept for their gradients.")
LIMIT = Gauge("sfumato_kept_graphs_limit", "Most forward passes kept at one time.")


@dataclass(frozen=True)
class Linearised:
    """A function's output at one input, with the graph of the pass: good for one `vjp`."""

    input: torch.Tensor
    graph: torch.Tensor
    output: torch.Tensor  # the graph's value, on the CPU

    def vjp(self, vector: torch.Tensor) -> torch.Tensor:
        """vector . d output / d input, of the input's shape, on the CPU; vector has the output's shape."""
        vector = vector.to(self.graph.device, self.graph.dtype)
        return torch.autograd.grad(self.graph, self.input, vector)[0].cpu()


def linearise(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Linearised:
    """Runs the function at x and keeps the graph."""
    with torch.enable_grad():
        start = x.detach().clone().requires_grad_()
        graph = function(start)
    # Here, on the model's thread: a GPU is not done before, and whoever copies from it waits.
    return Linearised(start, graph, graph.detach().cpu())


class GraphCount:
    """Counts the graphs kept at one time: each holds a forward pass's activations in memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept = 0
        LIMIT.set(limit)

    def add(self, count: int = 1) -> None:
        """So many more.

        Raises:
            ResourceExhausted: the limit is reached.
        """
        if self.kept + count > self.limit:
            raise ResourceExhausted(
                "kept graphs", f"at most {self.limit} at one time", self.kept + count,
                "Try again when other guided images are done.",
            )  # fmt: skip
        self.kept += count
        KEPT.inc(count)

    def remove(self, count: int = 1) -> None:
        """So many less."""
        self.kept -= count
        KEPT.dec(count)
