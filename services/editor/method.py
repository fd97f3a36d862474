"""What an editing method is to the editor; every method module (vqgan_clip.py ...) has this shape.

A module has its options, a frozen dataclass made with the fields below; a State; `start` and `run`; and ends
with one `Method` record, which registry.py lists. A run is resumed in another process like this:

    state = start(options, inputs, models)    # the same arguments give the same state
    state.load(tensors)                       # the last checkpoint, if there is one
    for progress in run(state):               # goes on behind state.iteration
        tensors = state.tensors()             # between two iterations, whenever the editor likes

- `run` is a generator: one Progress per iteration, the state changed in place, and consistent whenever the
  generator is suspended. Whatever takes long (an inversion, a relevance table) is iterations too: the editor
  cancels, and saves, only between two of them.
- `tensors` holds what going on bit for bit on a CPU needs: parameters, optimiser moments, averages,
  and the state of each random generator (`torch.Generator.get_state()`, a uint8 tensor). All randomness comes
  from generators of the state seeded with options.seed; where a library knows only torch's global one, run it
  under `torch.random.fork_rng` with a seed drawn from the state's.
- No file access, no gRPC, nothing global. Weights come from `models`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from sfumato.editor.video import Video

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Prompt:
    """A text that the image shall match, or (weight below 0) shall not."""

    text: str
    weight: float = 1.0
    stop: float = float("-inf")  # the loss is not driven below this


@dataclass(frozen=True)
class ImagePrompt:
    """An image (Inputs.image_prompts, same order) that the result shall match."""

    weight: float = 1.0
    stop: float = float("-inf")


@dataclass(frozen=True)
class Inputs:
    """The images of a request, RGB, and what an earlier operation made."""

    image: Image.Image | None = None  # what is edited
    mask: Image.Image | None = None  # the image's size, or of the video's first frame; white is repainted
    image_prompts: tuple[Image.Image, ...] = ()
    video: Video | None = None  # what is edited
    mask_video: Video | None = None  # a mask for each frame of it
    earlier: Tensors = field(default_factory=dict)  # result tensors of the operation that an option names


class Models(Protocol):
    """The family's weights, loaded at first use, frozen, in eval mode (models.py)."""

    family: Path
    device: torch.device

    @property
    def clip(self) -> Any:
        """open_clip model of clip/."""

    @property
    def tokenizer(self) -> Any:
        """open_clip tokenizer of clip/: texts to [texts, context]."""

    @property
    def vqgan(self) -> Any:
        """diffusers VQModel of vqgan/."""

    @property
    def identity(self) -> Any:
        """IdentityNetwork of identity/."""

    @property
    def raft(self) -> Any:
        """torchvision RAFT of raft/, or None: a family need not have one."""

    def stylegan2(self, name: str) -> Any:
        """StyleGAN2 of stylegan2/NAME/."""

    def cached(self, name: str, parts: tuple[str, ...], compute: Callable[[], Tensors]) -> Tensors:
        """What is computed once from these parts' weights and kept, such as channel relevance."""


@dataclass(frozen=True)
class Progress:
    """An iteration is done."""

    iteration: int  # 1 to num_iterations
    num_iterations: int
    losses: dict[str, float]  # each weighted term, and "total"


class State(Protocol):
    """A run between two iterations."""

    iteration: int  # iterations done, 0 at the start
    num_iterations: int

    def tensors(self) -> Tensors:
        """Everything that going on needs, beside `iteration` (which the editor keeps)."""

    def load(self, tensors: Tensors) -> None:
        """Takes over what `tensors` gave; the editor sets `iteration` itself."""

    def preview(self) -> Image.Image:
        """The image as it is now."""

    def result(self) -> Mapping[str, Image.Image | Video | Tensors]:
        """ "image" or "video", and what else there is, such as "edit_layer" (RGBA) or "mapper" (tensors)."""


def nothing_to_check(options: Any, inputs: Inputs) -> None:
    """The check of a method whose options say it all by their ranges."""


def anything_fits(earlier: Tensors, family: Path) -> None:
    """The `fits` of a method that takes nothing that an earlier operation made."""


@dataclass(frozen=True)
class Method:
    """A method as registry.py lists it."""

    name: str  # "vqgan-clip"
    options: type[Any]
    parts: tuple[str, ...]  # folders of the family that it needs: "clip", "vqgan", "stylegan2" ...
    needs_image: bool
    start: Callable[[Any, Inputs, Models], State]
    run: Callable[[Any], Iterator[Progress]]
    # What concerns several options, or options and inputs: raises InvalidArgument before anything is queued.
    check: Callable[[Any, Inputs], None] = nothing_to_check
    # What an earlier operation made, and the family's folder: raises as `check`, as early.
    fits: Callable[[Tensors, Path], None] = anything_fits
    packages: tuple[str, ...] = ()  # that it imports beyond those of every editor: the extra `video`


def whole(default: int, low: int, high: int) -> int:
    """An option that is a whole number from low to high, both allowed."""
    value: int = dataclasses.field(default=default, metadata={"low": low, "high": high})
    return value


def real(default: float, low: float, high: float) -> float:
    """An option that is a finite number from low to high, both allowed."""
    value: float = dataclasses.field(default=default, metadata={"low": low, "high": high})
    return value


def choice(default: str, *others: str) -> str:
    """An option that is one of these words; in the proto an enum of the same names."""
    value: str = dataclasses.field(default=default, metadata={"choices": (default, *others)})
    return value


def text(default: str = "", *, required: bool = False) -> str:
    """An option that is a text; the editor's settings limit its length."""
    value: str = dataclasses.field(default=default, metadata={"required": required})
    return value


def folder(default: str, part: str) -> str:
    """An option that is a folder of the family's `part`/."""
    value: str = dataclasses.field(default=default, metadata={"part": part})
    return value


def prompts(*, required: bool = False) -> tuple[Prompt, ...]:
    """An option that is several weighted texts."""
    value: tuple[Prompt, ...] = dataclasses.field(default=(), metadata={"required": required})
    return value


def operation(artifact: str) -> str:
    """An option that names a finished operation, whose result of that name comes as Inputs.earlier."""
    value: str = dataclasses.field(default="", metadata={"artifact": artifact, "required": True})
    return value
