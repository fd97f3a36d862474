"""Picks the torch device and its threads."""

import torch

from sfumato.common.errors import FailedPrecondition


def setup_device(name: str, num_threads: int) -> torch.device:
    """The device of a setting ("auto": cuda where there is one); sets torch's CPU threads, 0: per core."""
    if num_threads:
        torch.set_num_threads(num_threads)
    return device_of(name)


def device_of(name: str) -> torch.device:
    """The device of a setting.

    Raises:
        FailedPrecondition: torch knows no such device, or it is a GPU that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise _refused(name, "auto, cpu, cuda or cuda:N") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise _refused(name, f"one that is here (torch {torch.__version__} finds {count} GPUs)")
    return device


def _refused(name: str, limit: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"device must be {limit}, but is {name!r:.60}", field="device", limit=limit, value=name
    )
