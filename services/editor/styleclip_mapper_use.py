"""StyleCLIP (b), the use of a trained mapper: one pass, behind the inversion of the image where there is one.

w_edited = w + strength * 0.1 M(w)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.common.errors import InvalidArgument
from sfumato.common.stylegan2 import latent_shape
from sfumato.editor.inversion import LatentState
from sfumato.editor.method import Inputs, Method, Models, Progress, Tensors, operation, real, whole
from sfumato.editor.optimised import iterate
from sfumato.editor.options import folder_of
from sfumato.editor.styleclip_mapper import Mapper


@dataclass(frozen=True)
class Options:
    """The generator is that of the training, by the names of the mapper's weights."""

    mapper: str = operation("mapper")
    seed: int = whole(0, 0, 2**63 - 1)
    strength: float = real(1.0, -10.0, 10.0)
    num_inversion_iterations: int = whole(1000, 1, 10_000)


class State(LatentState):
    """The latents; the mapper is frozen."""

    def __init__(self, options: Options, inputs: Inputs, models: Models, name: str, mapper: Mapper) -> None:
        super().__init__(
            inputs,
            models,
            name=name,
            seed=options.seed,
            num_inversion_iterations=options.num_inversion_iterations,
            num_edit_iterations=1,
        )
        self.options, self.mapper = options, mapper


def named(earlier: Tensors) -> tuple[str, Tensors]:
    """The generator's folder, and the weights by their names in the mapper.

    Raises:
        InvalidArgument: what the operation made is no mapper.
    """
    names = {key.split("/", 1)[0] for key in earlier}
    if len(names) != 1:
        raise InvalidArgument("mapper", "an operation that trained a mapper", "another operation")
    return names.pop(), {key.split("/", 1)[1]: tensor for key, tensor in earlier.items()}


def check_shapes(mapper: Mapper, name: str, weights: Tensors) -> None:
    """
    Raises:
        InvalidArgument: the weights are not the mapper's, by names or shapes.
    """
    expected = {key: tensor.shape for key, tensor in mapper.state_dict().items()}
    if {key: tensor.shape for key, tensor in weights.items()} != expected:
        raise InvalidArgument("mapper", f"of the generator {name}", "of another shape", "Train it again.")


def fits(earlier: Tensors, family: Path) -> None:
    """
    Raises:
        InvalidArgument: as `start`, by the generator's configuration alone.
    """
    name, weights = named(earlier)
    num_layers, d = latent_shape(folder_of(family, "stylegan2", name, "mapper"))
    with torch.device("meta"):
        check_shapes(Mapper(num_layers, d), name, weights)


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        InvalidArgument: what the operation made is no mapper, or one of another generator's shape.
        NotFound: the family lacks the generator of the training.
    """
    name, weights = named(inputs.earlier)
    stylegan = models.stylegan2(name)
    mapper = Mapper(stylegan.num_layers, stylegan.d)
    check_shapes(mapper, name, weights)
    mapper.load_state_dict(weights)
    return State(options, inputs, models, name, mapper.to(models.device).eval().requires_grad_(False))


@torch.no_grad()
def apply(state: State) -> dict[str, float]:
    """The edit."""
    w_plus = state.w_plus(state.start)
    offset = state.options.strength * state.mapper(w_plus)
    state.latents.copy_(w_plus + offset)
    return {"total": float(offset.norm())}


def step(state: State) -> dict[str, float]:
    """One iteration of the inversion, or behind it the edit; its "total" is the length of the offset."""
    return state.invert() if state.inverting else apply(state)


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("styleclip-mapper", Options, ("clip", "stylegan2"), False, start, run, fits=fits)
