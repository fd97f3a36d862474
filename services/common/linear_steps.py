"""Steps of a sampler as what most of them are: linear combinations of latents, predictions and noise.

Under a linear sampler (no clipping, no thresholding) and plain classifier-free guidance a step is

    prediction = sum_row weight[row] UNet(input_scale * latents, timestep)[row]
    latents    = sum_k coefficient[k] tensor[k]

over the latents, predictions and noise that there are by then. Whoever has these numbers can do many steps in
a row. The bits are the same wherever it is done: single float32 products and sums, in the order given.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)

MAX_STEPS = 32  # of a run

Sum = tuple[tuple[int, float], ...]  # tensors of the run and their coefficients


@dataclass(frozen=True)
class LinearStep:
    """One evaluation of the UNet and what follows.

    Attributes:
        timestep: of the noise schedule.
        input_scale: what the latents are multiplied by for the UNet.
        rows: of the conditioning; none named: all.
        weights: of each of these rows' predictions in the one that the sampler takes.
        sums: tensors that the step makes of those before it; the last is the next latents.
    """

    timestep: float
    input_scale: float
    rows: tuple[int, ...]
    weights: tuple[float, ...]
    sums: tuple[Sum, ...]


@dataclass(frozen=True)
class LinearRun:
    """Steps that follow each other without anybody in between.

    Attributes:
        tensors: float32 [n, C, h, w], numbered from 0; the first is the latents to start from. Each step
            adds its prediction, then its sums, which get the next numbers.
        steps: in their order.
        returned: numbers of the tensors that are wanted afterwards.
    """

    tensors: torch.Tensor
    steps: tuple[LinearStep, ...]
    returned: tuple[int, ...]


@dataclass(frozen=True)
class RunResult:
    """The tensors that were wanted [n, C, h, w], and the digest of the latents after each step."""

    tensors: torch.Tensor
    latents_digests: tuple[bytes, ...]


def combined(terms: Iterable[tuple[float, Array]]) -> Array:
    """sum_k coefficient[k] tensor[k], from the first to the last; one or more, float32."""
    products = (tensor * coefficient for coefficient, tensor in terms)
    total = next(products)
    for product in products:
        total = total + product
    return total


def latents_digest(latents: np.ndarray) -> bytes:
    """BLAKE2b, 16 bytes, of float32 latents' own bytes."""
    return hashlib.blake2b(np.ascontiguousarray(latents).data, digest_size=16).digest()
