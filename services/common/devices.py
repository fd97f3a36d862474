"""Picks the torch device and its threads."""

import torch


def setup_device(name: str, num_threads: int) -> torch.device:
    """The device of a setting ("auto": cuda where there is one); sets torch's CPU threads, 0: per core."""
    if num_threads:
        torch.set_num_threads(num_threads)
    return device_of(name)


def device_of(name: str) -> torch.device:
    """The device of a setting."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
