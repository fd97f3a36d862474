"""What every service shares: configuration, server bootstrap, errors, tensor codec."""

# First of all: without it, whatever imports torchvision fails beside a CPU build of torch.
from sfumato.common import torchvision_ops  # noqa: F401
