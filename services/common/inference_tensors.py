"""Tensors of the Open Inference Protocol: what a model takes and gives, and messages to torch and back.

Sizes are checked before anything is made. Raw contents are row-major little-endian bytes; BYTES there are
elements behind their length, four bytes little-endian (Triton's form).
"""

import math
import struct
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tritonclient.grpc import service_pb2

from sfumato.common.errors import InvalidArgument, ResourceExhausted, Unimplemented
from sfumato.common.tensors import check_finite


class _Kind(NamedTuple):
    dtype: torch.dtype | None  # None: not a tensor's
    contents: str  # the field that holds such elements; "": raw alone


_KINDS = {
    "FP32": _Kind(torch.float32, "fp32_contents"),
    "FP16": _Kind(torch.float16, ""),
    "UINT8": _Kind(torch.uint8, "uint_contents"),
    "INT64": _Kind(torch.int64, "int64_contents"),
    "BYTES": _Kind(None, "bytes_contents"),
}
_DATATYPES = {kind.dtype: name for name, kind in _KINDS.items()}
_ALSO_TAKEN = {"FP32": ("FP16",)}


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: of the tensor.
        datatype: FP32 (FP16 is taken too), UINT8, INT64 or BYTES.
        shape: -1: any size.
        max_elements: most elements of an input.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    max_elements: int = 0


@dataclass(frozen=True)
class Model:
    """A model of the table.

    Attributes:
        name: of the model.
        inputs, outputs: what it takes, all of it, and gives.
        infer: of the wanted outputs' names and, by name, the inputs: float32 where FP32 is declared, and a
            list of bytes for BYTES. Gives the wanted outputs, others are dropped.
        max_batch_size: most rows, which every input then has first; 0: shapes have no batch dimension.
    """

    name: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    infer: Callable[..., Awaitable[Mapping[str, torch.Tensor]]]
    max_batch_size: int = 0


def wanted_outputs(request: service_pb2.ModelInferRequest, model: Model) -> list[str]:
    """The names that are asked for, in that order; none asked for: all.

    Raises:
        InvalidArgument: the model has no such output.
        Unimplemented: it is to go elsewhere than into the response.
    """
    known = [output.name for output in model.outputs]
    for output in request.outputs:
        if output.name not in known:
            raise InvalidArgument("outputs", f"of {', '.join(known)}", output.name)
        _refuse_elsewhere(output.parameters, output.name)
        if "classification" in output.parameters:
            raise Unimplemented(f"{output.name} is given whole: classification is not offered")
    return list(dict.fromkeys(output.name for output in request.outputs)) or known


def inputs_of(request: service_pb2.ModelInferRequest, model: Model) -> dict[str, Any]:
    """The request's inputs by name, checked.

    Raises:
        InvalidArgument: one is missing, unknown, there twice, or of a wrong type, shape or size.
        ResourceExhausted: a limit would be passed.
        Unimplemented: shared memory.
    """
    given = {tensor.name: tensor for tensor in request.inputs}
    names = [spec.name for spec in model.inputs]
    if sorted(tensor.name for tensor in request.inputs) != sorted(names):
        raise InvalidArgument("inputs", f"{', '.join(names)}, each once", [t.name for t in request.inputs])
    for spec in model.inputs:
        _check(given[spec.name], spec, model.max_batch_size)
    if model.max_batch_size:
        _check_rows(request.inputs)
    if not request.raw_input_contents:
        return {spec.name: _from_contents(given[spec.name]) for spec in model.inputs}
    if len(request.raw_input_contents) != len(request.inputs):
        raise InvalidArgument(
            "raw_input_contents", f"as many as inputs, {len(names)}", len(request.raw_input_contents)
        )
    pairs = zip(request.inputs, request.raw_input_contents, strict=True)
    return {tensor.name: _from_raw(tensor, data) for tensor, data in pairs}


def response_of(
    request: service_pb2.ModelInferRequest, wanted: Collection[str], outputs: Mapping[str, torch.Tensor]
) -> service_pb2.ModelInferResponse:
    """The answer, with raw contents as Triton gives them."""
    response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    for name in wanted:
        tensor = outputs[name].detach().cpu().contiguous()
        response.outputs.add(name=name, datatype=_DATATYPES[tensor.dtype], shape=tensor.shape)
        response.raw_output_contents.append(tensor.numpy().tobytes())
    return response


def _check(tensor: Any, spec: Tensor, max_rows: int) -> None:
    """Type, shape and number of elements, before anything is made."""
    _refuse_elsewhere(tensor.parameters, spec.name)
    taken = (spec.datatype, *_ALSO_TAKEN.get(spec.datatype, ()))
    if tensor.datatype not in taken:
        raise InvalidArgument(f"{spec.name}.datatype", " or ".join(taken), tensor.datatype or "empty")
    given = tuple(tensor.shape)
    matches = len(given) == len(spec.shape) and all(
        size >= 1 and want in (-1, size) for size, want in zip(given, spec.shape, strict=True)
    )
    if not matches:
        wanted = ", ".join("any" if size == -1 else str(size) for size in spec.shape)
        raise InvalidArgument(f"{spec.name}.shape", f"({wanted})", given)
    if max_rows and given[0] > max_rows:
        raise ResourceExhausted(f"{spec.name}.shape", f"at most {max_rows} rows", given[0])
    if (num_elements := math.prod(given)) > spec.max_elements:
        raise ResourceExhausted(f"{spec.name}.shape", f"at most {spec.max_elements} elements", num_elements)


def _check_rows(tensors: Sequence[Any]) -> None:
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape[0] != first.shape[0]:
            limit = f"of as many rows as {first.name}, {first.shape[0]}"
            raise InvalidArgument(f"{tensor.name}.shape", limit, tuple(tensor.shape))


def _refuse_elsewhere(parameters: Mapping[str, Any], name: str) -> None:
    if any(key.startswith("shared_memory") for key in parameters):
        raise Unimplemented(f"{name} travels in the message: shared memory is not offered")


def _from_raw(tensor: Any, data: bytes) -> Any:
    """A read-only view of the bytes (a copy where they are FP16)."""
    if tensor.HasField("contents"):
        raise InvalidArgument(f"{tensor.name}.contents", "empty beside raw_input_contents", "given")
    num_elements, dtype = math.prod(tensor.shape), _KINDS[tensor.datatype].dtype
    if dtype is None:
        return _strings(tensor.name, data, num_elements)
    if len(data) != (num_bytes := num_elements * dtype.itemsize):
        limit = f"{num_bytes} bytes for {tensor.datatype} of shape {tuple(tensor.shape)}"
        raise InvalidArgument(f"{tensor.name} in raw_input_contents", limit, len(data))
    return _finished(tensor, torch.frombuffer(data, dtype=torch.uint8).view(dtype))


def _from_contents(tensor: Any) -> Any:
    kind = _KINDS[tensor.datatype]
    if not kind.contents:
        raise InvalidArgument(tensor.name, f"in raw_input_contents, as all {tensor.datatype}", "not there")
    elements = getattr(tensor.contents, kind.contents)
    if len(elements) != (num_elements := math.prod(tensor.shape)):
        field = f"{tensor.name}.contents.{kind.contents}"
        raise InvalidArgument(field, f"{num_elements} for shape {tuple(tensor.shape)}", len(elements))
    if kind.dtype is None:
        return list(elements)
    values = np.array(elements)
    if kind.dtype is torch.uint8 and values.max() > 255:
        raise InvalidArgument(f"{tensor.name}.contents", "0 to 255", values.max())
    return _finished(tensor, torch.from_numpy(values).to(kind.dtype))


def _finished(tensor: Any, flat: torch.Tensor) -> torch.Tensor:
    """In its shape, float32 where it is FP16."""
    shaped = flat.reshape(tuple(tensor.shape))
    if not shaped.is_floating_point():
        return shaped
    check_finite(shaped, tensor.name)
    return shaped.to(torch.float32)


def _strings(name: str, data: bytes, number: int) -> list[bytes]:
    """The elements, each behind its length."""
    found: list[bytes] = []
    start = 0
    while len(found) < number and start + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, start)
        found.append(data[start + 4 : start + 4 + length])
        start += 4 + length
    if len(found) != number or start != len(data):
        limit = f"{number} elements, each behind its length in 4 bytes"
        raise InvalidArgument(f"{name} in raw_input_contents", limit, f"{len(data)} bytes that are not")
    return found
