"""Tensors out of pickled checkpoints, without running what a pickle asks to be run.

torch's files go through `torch.load(weights_only=True)`. NVIDIA's networks.pkl are plain pickles of whole
modules, their source code with them: here every class and function that such a pickle names becomes a
`Record` of what it was given, so nothing is imported and nothing is called, but for torch's own rebuilding
of tensors.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sfumato.common.checked_weights import WeightsError, read_header

Tensors = dict[str, torch.Tensor]


class Record(dict[str, Any]):
    """Whatever a pickle wanted to make: its arguments, its items, its state."""

    def __new__(cls, *args: Any, **_: Any) -> "Record":
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def extend(self, items: Any) -> None:
        """A list's; not kept."""

    append = extend


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


_REBUILT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _InertUnpickler(pickle.Unpickler):
    """Finds no class but those that hold tensors."""

    def find_class(self, module: str, name: str) -> Any:
        return _REBUILT.get((module, name), Record)


def read_tensors(file: Path, member: str = "") -> Tensors:
    """The tensors of a .safetensors file, or of a checkpoint of torch.

    Args:
        file: what was published.
        member: the entry of a checkpoint that holds them, as "g_ema"; "state_dict" is looked into unasked.

    Raises:
        WeightsError: it is neither, holds more than tensors, or a tensor of fewer numbers than its shape has.
    """
    if file.suffix == ".safetensors":
        read_header(file)
        return dict(load_file(file))
    try:
        mapped = zipfile.is_zipfile(file)  # torch wrote no ZIP before 1.6: ArcFace's and rosinality's files
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{file} is not read: it holds more than tensors, or is damaged: "
                           f"{str(error).splitlines()[0]}"[:300]) from error  # fmt: skip
    for name in (member, "state_dict"):
        if name and isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{file} holds no tensors by name but a {type(loaded).__name__}")
    return _held(file, {str(k): value for k, value in loaded.items() if isinstance(value, torch.Tensor)})


def read_module(file: Path, name: str) -> Tensors:
    """The parameters and buffers of one module of a networks.pkl of NVIDIA's, by their dotted names.

    Raises:
        WeightsError: it is no pickle, has no module of that name, or a tensor of too few numbers.
    """
    try:
        with file.open("rb") as opened:
            loaded = _InertUnpickler(opened).load()
    except Exception as error:  # whatever a damaged pickle makes of the machine
        raise WeightsError(f"{file} is no pickle that can be read: {error}"[:300]) from error
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get(name), Record):
        raise WeightsError(f"{file} holds no {name}")
    return _held(file, dict(_tensors(loaded[name], "")))


def _held(file: Path, tensors: Tensors) -> Tensors:
    """The tensors; raises WeightsError where one repeats its few numbers to any size (stride 0)."""
    for name, tensor in tensors.items():
        if tensor.nbytes > (held := tensor.untyped_storage().nbytes()):
            raise WeightsError(f"{file} holds {held} bytes of {name} where it has {tensor.nbytes}")
    return tensors


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """NVIDIA's persistent classes: one argument, a record whose "state" is the module's __dict__."""
    state = module.state
    if state is None and module.args and isinstance(module.args[0], Mapping):
        state = module.args[0].get("state")
    if not isinstance(state, Mapping):
        return
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if isinstance(tensor, torch.Tensor):
                yield f"{prefix}{name}", tensor.detach()
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, Record):
            yield from _tensors(child, f"{prefix}{name}.")
