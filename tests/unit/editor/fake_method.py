"""A method of which a test decides how long its iterations take."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from sfumato.common.errors import InvalidArgument
from sfumato.editor.method import Inputs, Method, Models, Progress, Prompt, Tensors, prompts, real, whole


@dataclass(frozen=True)
class Options:
    """A random walk."""

    prompts: tuple[Prompt, ...] = prompts()
    seed: int = whole(0, 0, 2**63 - 1)
    num_iterations: int = whole(10, 1, 10_000)
    seconds: float = real(0.0, 0, 10)  # of an iteration
    fails_at: int = whole(0, 0, 10_000)


class State:
    """A position and a generator."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.iteration, self.num_iterations = 0, options.num_iterations
        self.position = torch.zeros(3, 4, 4)
        self.generator = torch.Generator().manual_seed(options.seed)

    def tensors(self) -> Tensors:
        """Both."""
        return {"position": self.position.clone(), "generator": self.generator.get_state()}

    def load(self, tensors: Tensors) -> None:
        """Both."""
        self.position = tensors["position"]
        self.generator.set_state(tensors["generator"])

    def preview(self) -> Image.Image:
        """Every pixel depends on every step."""
        pixels = (self.position.sigmoid() * 255).byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((32, 32))

    def result(self) -> dict[str, Image.Image | Tensors]:
        """The picture, and the position."""
        return {"image": self.preview(), "position": {"position": self.position}}


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """A state that has done nothing."""
    return State(options)


def run(state: State) -> Iterator[Progress]:
    """Walks."""
    while state.iteration < state.num_iterations:
        time.sleep(state.options.seconds)
        state.position = state.position + torch.randn(3, 4, 4, generator=state.generator)
        state.iteration += 1
        if state.iteration == state.options.fails_at:
            raise InvalidArgument("fails_at", "never reached", state.iteration)
        losses = {"total": float(state.position.norm())}
        yield Progress(state.iteration, state.num_iterations, losses)


METHOD = Method("walk", Options, (), False, start, run)


def options_of(**values: Any) -> dict[str, Any]:
    """The options as an Edit has them."""
    return {**vars(Options()), "prompts": [], **values}
