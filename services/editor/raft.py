"""RAFT (Teed and Deng 2020), torchvision's, as the optical flow of a clip: from a family's raft/."""

from collections.abc import Callable
from pathlib import Path

import sfumato.common.torchvision_ops  # noqa: F401  (before torchvision)

import numpy as np  # isort: skip
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from sfumato.common.errors import FailedPrecondition

LEAST_SIDE = 128  # of what RAFT takes
MOST_SIDE = 768  # as of a layered atlas's clips: its memory grows with the square of the pixels
MULTIPLE = 8


def load_raft(folder: Path) -> torch.nn.Module:
    """torchvision's raft_large or raft_small, whichever the state dict in model.safetensors is of.

    Raises:
        FailedPrecondition: it is of neither.
    """
    from torchvision.models.optical_flow import raft_large, raft_small

    weights = load_file(folder / "model.safetensors")
    shapes = {name: value.shape for name, value in weights.items()}
    for make in (raft_large, raft_small):
        model: torch.nn.Module = make()
        if shapes == {name: value.shape for name, value in model.state_dict().items()}:
            model.load_state_dict(weights)
            return model.eval().requires_grad_(False)
    raise FailedPrecondition(f"{folder}/model.safetensors is no state dict of torchvision's RAFT")


def flow_by(model: torch.nn.Module, device: torch.device) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The flow float32 [h, w, 2] between two frames uint8 [h, w, 3]; what flow.estimate takes."""

    @torch.inference_mode()
    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        height, width = a.shape[:2]
        both = torch.from_numpy(np.stack([a, b])).to(device).permute(0, 3, 1, 2) / 127.5 - 1
        factor = max(1.0, LEAST_SIDE / min(height, width))
        wanted = [round(side * factor / MULTIPLE) * MULTIPLE for side in (height, width)]
        size = [min(MOST_SIDE, max(LEAST_SIDE, side)) for side in wanted]
        both = F.interpolate(both, size=size, mode="bilinear", align_corners=False)
        flow = model(both[:1], both[1:])[-1]
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", antialias=True)[0]
        scale = flow.new_tensor([width / size[1], height / size[0]]).view(2, 1, 1)
        found: np.ndarray = (flow * scale).permute(1, 2, 0).float().cpu().numpy()
        return found

    return between
