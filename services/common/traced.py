"""A model's function recorded once for each shape: the same kernels in order, without Python between.

At one row of a small model, half of a forward pass is Python calling modules; a recorded graph does without,
and its gradient is autograd's as before. Same bits: nothing is fused or reordered. TorchScript, although it
is no longer developed: torch.export's graphs and torch.compile without a C++ compiler were no faster than
the model itself (docs/decisions/007).
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

KEPT_SHAPES = 8  # a graph is a few MB; its weights are the model's


class Traced:
    """A function of tensors that does the same whatever they hold; the branches it takes see shapes only."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self._function = function
        self._graphs: OrderedDict[tuple[torch.Size, ...], Any] = OrderedDict()

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The function's output, with autograd's graph where a tensor wants one. One thread at a time."""
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._record(tensors)
            if len(self._graphs) > KEPT_SHAPES:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shapes)
        # Without the optimiser: it would fuse, and compile for seconds at the second call.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            output: torch.Tensor = self._graphs[shapes](*tensors)
        return output

    def _record(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        # As for a gradient: without one, attention may take a fast path that has none.
        examples = tuple(tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in tensors)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # of branches on shapes
            return torch.jit.trace(self._function, examples, check_trace=False)
