"""Weights on disk, compared with the model they are for before memory is taken for either.

A model on torch's "meta" device has names and shapes and no numbers; a safetensors file says in its first
bytes what it holds and where. What does not agree is one line that names file and key.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sfumato.common.errors import SfumatoError

STEMS = ("diffusion_pytorch_model", "model", "open_clip_model")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Names of other times: each is tried only where the model does not have the file's own name.
_RENAMED = (
    (re.compile(r"^"), "text_model."),
    (re.compile(r"^text_model\."), ""),
    (re.compile(r"\.query\."), ".to_q."),
    (re.compile(r"\.key\."), ".to_k."),
    (re.compile(r"\.value\."), ".to_v."),
    (re.compile(r"\.proj_attn\."), ".to_out.0."),
)
_NOT_WEIGHTS = ("position_ids", "num_batches_tracked")


class WeightsError(SfumatoError):
    """Weights that cannot be used; the message names file and key."""

    code = "FAILED_PRECONDITION"
    reason = "WEIGHTS_INVALID"


@dataclass(frozen=True)
class Weights:
    """A part's files.

    Attributes:
        files: the safetensors files, more than one where it is sharded.
        variant: of the files' names ("fp16"), None: none.
        shapes: of each tensor, by its name in the files.
        dtypes: as safetensors names them, "F32".
        num_bytes: of all tensors.
    """

    files: tuple[Path, ...]
    variant: str | None
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: frozenset[str]
    num_bytes: int

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


def read_weights(folder: Path) -> Weights:
    """What a folder's safetensors files hold, by their headers.

    Raises:
        WeightsError: there are none, one is missing, cut short, or no safetensors file.
    """
    files, variant = _files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    num_bytes = 0
    for file in files:
        for name, entry in read_header(file).items():
            shapes[name] = tuple(entry["shape"])
            dtypes.add(entry["dtype"])
            first, end = entry["data_offsets"]
            num_bytes += end - first
    return Weights(files, variant, shapes, frozenset(dtypes), num_bytes)


def check_weights(folder: Path, build: Callable[[], torch.nn.Module]) -> Weights:
    """The folder's weights, which fit the model.

    Args:
        folder: with safetensors files.
        build: makes the model; it is called where that takes no memory.

    Raises:
        WeightsError: names the first key that is missing, too many, or of another shape.
    """
    weights = read_weights(folder)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    compare(weights, expected)
    return weights


def compare(weights: Weights, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises WeightsError for the first difference."""
    where = weights.files[0] if len(weights.files) == 1 else weights.files[0].parent
    missing = {name for name in expected if not name.endswith(_NOT_WEIGHTS)}
    unknown = []
    for name, shape in weights.shapes.items():
        known = _known_as(name, expected)
        if known is None:
            if not name.endswith(_NOT_WEIGHTS):
                unknown.append(name)
            continue
        missing.discard(known)
        if expected[known] != shape and not _same_but_for_ones(expected[known], shape):
            raise WeightsError(f"{where}: {name} has shape {list(shape)}; the configuration asks for "
                               f"{list(expected[known])}")  # fmt: skip
    for names, what in ((sorted(missing), "is missing"), (sorted(unknown), "is not of this architecture")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise WeightsError(f"{where}: {names[0]} {what}{more}")


def _known_as(name: str, expected: Mapping[str, tuple[int, ...]]) -> str | None:
    if name in expected:
        return name
    for pattern, replacement in _RENAMED:
        if (renamed := pattern.sub(replacement, name)) in expected:
            return renamed
    return None


def _same_but_for_ones(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """A linear layer that was saved as a convolution of 1x1, or the other way round."""
    return [n for n in one if n != 1] == [n for n in other if n != 1] and {len(one), len(other)} == {2, 4}


def _files(folder: Path) -> tuple[tuple[Path, ...], str | None]:
    """The files to load, full precision before a variant; shards by their index."""
    for variant in (None, "fp16", "bf16"):
        for stem in STEMS:
            dotted = f".{variant}" if variant else ""
            file = folder / f"{stem}{dotted}.safetensors"
            if file.is_file():
                return (file,), variant
            index = folder / f"{stem}.safetensors.index{dotted}.json"
            if index.is_file():
                names: Iterable[str] = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                return tuple(folder / name for name in names), variant
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED)
    if pickled:
        raise WeightsError(f"{folder} holds pickled weights ({pickled[0]}), which are never read; convert "
                           f"them: sfumato models import --help")  # fmt: skip
    raise WeightsError(f"{folder} holds no weights: no {STEMS[0]}.safetensors, no {STEMS[1]}.safetensors")


def read_header(file: Path) -> dict[str, Any]:
    """A safetensors file's entries: dtype, shape and place of each tensor.

    Raises:
        WeightsError: it is missing, cut short, or no safetensors file.
    """
    if not file.is_file():
        raise WeightsError(f"{file} is missing")
    with file.open("rb") as opened:
        # The header's length, whose bytes may be a pickle's first, and the brace that the header begins with.
        start, brace = opened.read(8), opened.read(1)
        if brace != b"{" and start.startswith((b"PK", b"\x80")):
            raise WeightsError(f"{file} is a pickle by another name: it is not read")
        length = int.from_bytes(start, "little")
        if length > min(100 * 2**20, file.stat().st_size):
            raise WeightsError(f"{file} is no safetensors file, or is cut short: {file.stat().st_size} bytes")
        opened.seek(len(start))
        text = opened.read(length)
    try:
        # Reads the header alone; and checks it, and the file's length, as loading does.
        with safe_open(file, "pt"):
            header: dict[str, Any] = json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{file} is damaged or cut short: {error}"[:300]) from error
    header.pop("__metadata__", None)
    return header
