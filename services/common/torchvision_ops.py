"""Lets torchvision import beside a CPU build of torch; import this before open_clip.

The registry's torchvision is built against CUDA, so beside a CPU torch its compiled operators do not
load, and `import torchvision` fails on the two whose schema it wants. We use neither. This module can go
once a CPU torchvision can be installed from the same index as torch.
"""

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")

for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}{_BOXES}")
