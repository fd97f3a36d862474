"""Which weights a service holds, and what runs them: by these two, results can be compared."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def files_of(folder: Path) -> list[Path]:
    """The folder's own files, in order."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def sha256(file: Path) -> str:
    """Of its bytes, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of the files' names and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def weights_digest(family: Path, *parts: str, other: str = "") -> str:
    """SHA-256 of a family's folders of these names, those that it has; reads every byte of them.

    other: weights from elsewhere: a folder, whose bytes count, or a name, which counts itself.
    """
    digest = hashlib.sha256()
    for part in parts:
        if (family / part).is_dir():
            digest.update(f"{part} {digest_of(files_of(family / part))}\n".encode())
    if other:
        held = digest_of(files_of(Path(other))) if Path(other).is_dir() else other
        digest.update(f"other {held}\n".encode())
    return digest.hexdigest()


def engine_version(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """What the last bits of a result depend on beside the weights: "torch 2.13.0, cpu AVX2".

    In another precision than float32: "torch 2.13.0 bfloat16, cpu AVX2".
    """
    try:
        engine = f"{name} {version(name)}"
    except PackageNotFoundError:
        engine = name
    if dtype != torch.float32:
        engine += f" {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        return f"{engine}, {torch.cuda.get_device_name(device)}"
    return f"{engine}, {device.type} {torch.backends.cpu.get_cpu_capability()}"
