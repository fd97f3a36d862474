"""What all runs share: tensors under an optimiser and one generator, saved and resumed bit for bit."""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from sfumato.common.errors import InvalidArgument
from sfumato.common.optimizer_state import load_optimizer, optimizer_tensors, part_of_tensors
from sfumato.editor.method import Progress, Tensors


class Optimised:
    """Base of the methods' states.

    Args:
        num_iterations: of the whole run.
        trained: the tensors that the optimiser changes, by name.
        optimizer: over just these.
        generator: where all randomness of the run comes from.
        kept: other tensors that iterations change in place, such as averages.
    """

    def __init__(
        self,
        num_iterations: int,
        trained: Tensors,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        kept: Tensors | None = None,
    ) -> None:
        self.iteration, self.num_iterations = 0, num_iterations
        self.trained, self.optimizer, self.generator = trained, optimizer, generator
        self.kept = kept or {}

    def tensors(self) -> Tensors:
        """Copies of everything that going on needs."""
        tensors = {f"trained.{name}": tensor.detach().clone() for name, tensor in self.trained.items()}
        tensors |= {f"kept.{name}": tensor.detach().clone() for name, tensor in self.kept.items()}
        tensors |= {f"optimizer.{k}": tensor for k, tensor in optimizer_tensors(self.optimizer).items()}
        return {**tensors, "generator": self.generator.get_state()}

    @torch.no_grad()
    def load(self, tensors: Tensors) -> None:
        """Takes over what `tensors` gave."""
        for prefix, own in (("trained.", self.trained), ("kept.", self.kept)):
            for name, tensor in part_of_tensors(tensors, prefix).items():
                own[name].copy_(tensor)
        load_optimizer(self.optimizer, part_of_tensors(tensors, "optimizer."))
        self.generator.set_state(tensors["generator"].cpu())

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def descend(self, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        """One optimiser step on the sum of the losses; returns them, and "total", as numbers.

        Raises:
            InvalidArgument: the sum is not finite: the learning rate or a weight is too large.
        """
        total = torch.stack(list(losses.values())).sum()
        values = {name: loss.item() for name, loss in losses.items()} | {"total": total.item()}
        if not math.isfinite(values["total"]):
            advice = (
                f"The loss became {values['total']} at iteration {self.iteration + 1}; lower it or a weight."
            )
            rate = self.optimizer.param_groups[0]["lr"]
            raise InvalidArgument("learning_rate", "small enough for a finite loss", rate, advice)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return values


S = TypeVar("S", bound=Optimised)


def iterate(state: S, step: Callable[[S], dict[str, float]]) -> Iterator[Progress]:
    """Steps until the state has all its iterations."""
    while state.iteration < state.num_iterations:
        losses = step(state)
        state.iteration += 1
        yield Progress(state.iteration, state.num_iterations, losses)
