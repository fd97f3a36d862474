"""What a family's models take in memory, by the headers of their weights, and what there is."""

import ctypes
import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from sfumato.common.errors import ResourceExhausted
from sfumato.common.family_parts import check_part

# Beside parameters: modules, tokenizers, and what is made when asked for: recorded graphs, LoRA adapters.
ALLOWANCE_SHARE, ALLOWANCE_BYTES = 0.1, 32 * 2**20
CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")


def model_bytes(family: Path, copies: Mapping[str, int], dtype: torch.dtype = torch.float32) -> int:
    """Bytes that parts of a family take, the allowance included; reads headers alone.

    Args:
        family: the folder.
        copies: of each part's weights in memory; parts that the family does not have do not count.
        dtype: in which they are held.

    Raises:
        NotFound, WeightsError: a part is not what it should be; names file and key.
    """
    weights = sum(
        count * dtype.itemsize * check_part(family, part).num_parameters
        for part, count in copies.items()
        if (family / part).is_dir()
    )
    return int(weights * (1 + ALLOWANCE_SHARE)) + ALLOWANCE_BYTES


def copies_of(engine: str, device: torch.device) -> int:
    """Copies of a model's weights: ONNX Runtime has its own beside torch's, which does the gradients."""
    runs_graph = engine == "onnxruntime" or (engine == "auto" and device.type == "cpu")
    return 2 if runs_graph else 1


def limit_bytes(configured: int, held: int, device: torch.device) -> int:
    """What all families may take together: the setting, or with 0 what they have and what is free now."""
    return configured or held + free_bytes(device)


def check_fits(name: str, num_bytes: int, held: int, limit: int, setting: str) -> None:
    """
    Args:
        name, num_bytes: of the family. held: bytes of those that are loaded. limit: of all together.
        setting: the variable that sets the limit.

    Raises:
        ResourceExhausted: with those that are held it would be more than the limit.
    """
    if held + num_bytes > limit:
        asked = f"{held + num_bytes}: {held} held and {num_bytes} of {name}"
        raise ResourceExhausted("family", f"at most {limit} bytes with those loaded", asked,
                                f"Unload another, or raise {setting}.")  # fmt: skip


def free_bytes(device: torch.device) -> int:
    """Of the device; on a CPU of the machine, or of the cgroup where that has less."""
    if device.type == "cuda":
        # What torch keeps for its next tensors is free for this process, although not for others.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if not MEMINFO.is_file():  # no Linux: all that there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = (line.split() for line in MEMINFO.read_text().splitlines())
    available = next(1024 * int(fields[1]) for fields in lines if fields[0] == "MemAvailable:")
    return min(available, cgroup_free_bytes(CGROUP))


def cgroup_free_bytes(folder: Path) -> int:
    """Up to the limit of control group v2; files that were read and can be dropped are free."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # no group, or the root one
        return 2**63 - 1
    return 2**63 - 1 if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))


def free_unused() -> None:
    """Gives what nothing refers to back to the system, not only to Python."""
    gc.unfreeze()  # of what was loaded first; see server.py
    gc.collect()  # recorded graphs and modules refer to each other
    gc.freeze()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
