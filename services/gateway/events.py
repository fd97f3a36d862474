"""What a generation tells while it runs."""

from dataclasses import dataclass

import torch

from sfumato.gateway.stages import Seconds


@dataclass(frozen=True)
class Started:
    """The request is accepted: so many steps an image, and what the user should know."""

    num_steps: int
    warnings: list[str]


@dataclass(frozen=True)
class Stepped:
    """A step of an image is done; preview is an encoded image or empty."""

    image_index: int
    step: int
    num_steps: int
    preview: bytes = b""


@dataclass(frozen=True)
class Attended:
    """The attention maps [words, h, w] of an image over the steps done so far."""

    image_index: int
    step: int
    num_steps: int
    words: list[str]
    maps: torch.Tensor


@dataclass(frozen=True)
class Finished:
    """An image is done; partial where `step` is below `num_steps`: the x0 that its last step predicted."""

    image_index: int
    seed: int
    data: bytes
    step: int = 0
    num_steps: int = 0
    latents_digests: tuple[bytes, ...] = ()  # after each step


Event = Started | Stepped | Attended | Finished | Seconds
