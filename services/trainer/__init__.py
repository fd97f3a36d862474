"""The trainer: makes the embedded model family from emoji artwork, as a batch job."""

# First of all: without it, whatever imports torchvision fails beside a CPU build of torch.
from sfumato.common import torchvision_ops  # noqa: F401
