"""Tensors to messages and back: raw little-endian bytes, sizes checked before anything is made."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sfumato_protos.v1 import tensor_pb2

from sfumato.common.errors import InvalidArgument, ResourceExhausted

_TORCH = {
    tensor_pb2.DATA_TYPE_FLOAT32: torch.float32,
    tensor_pb2.DATA_TYPE_FLOAT16: torch.float16,
    tensor_pb2.DATA_TYPE_BFLOAT16: torch.bfloat16,
    tensor_pb2.DATA_TYPE_FLOAT64: torch.float64,
    tensor_pb2.DATA_TYPE_UINT8: torch.uint8,
    tensor_pb2.DATA_TYPE_INT64: torch.int64,
}
_MESSAGE = {dtype: name for name, dtype in _TORCH.items()}
MAX_DIMENSIONS = 8

# The tensors below are views of the message's bytes and are never written to.
warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)


def to_message(tensor: torch.Tensor) -> tensor_pb2.Tensor:
    """A tensor of any shape, on any device, as a message."""
    tensor = tensor.detach().cpu().contiguous()
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return tensor_pb2.Tensor(dtype=_MESSAGE[tensor.dtype], shape=tensor.shape, data=data)


def from_message(
    message: tensor_pb2.Tensor, field: str, shape: Sequence[int | None], max_elements: int
) -> torch.Tensor:
    """A message as a read-only float32 view of its bytes (a copy where it is of another type).

    Args:
        message: what came over the wire.
        field: its name in the request, for errors.
        shape: what each dimension must be; None: anything.
        max_elements: largest number of elements.

    Raises:
        InvalidArgument: the dtype, the shape or the number of bytes is wrong.
        ResourceExhausted: more than max_elements.
    """
    dtype = _TORCH.get(message.dtype)
    if dtype is None:
        known = ", ".join(sorted(tensor_pb2.DataType.Name(name) for name in _TORCH))
        raise InvalidArgument(f"{field}.dtype", f"one of {known}", message.dtype)
    given = tuple(message.shape[: MAX_DIMENSIONS + 1])  # one too many is enough to know
    matches = len(given) == len(shape) <= MAX_DIMENSIONS and all(
        size >= 1 and want in (None, size) for size, want in zip(given, shape, strict=True)
    )
    if not matches:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidArgument(f"{field}.shape", f"({wanted})", given)
    num_elements = math.prod(given)
    if num_elements > max_elements:
        raise ResourceExhausted(f"{field}.shape", f"at most {max_elements} elements", num_elements)
    num_bytes = num_elements * dtype.itemsize
    if len(message.data) != num_bytes:
        raise InvalidArgument(f"{field}.data", f"{num_bytes} bytes for shape {given}", len(message.data))
    flat = torch.frombuffer(message.data, dtype=torch.uint8).view(dtype)
    return flat.reshape(given).to(torch.float32)


def check_finite(tensor: torch.Tensor, field: str) -> None:
    """Raises InvalidArgument where an element is NaN or infinite."""
    if not bool(np.isfinite(tensor.numpy()).all()):
        raise InvalidArgument(field, "finite everywhere", "a tensor with NaN or infinity")
