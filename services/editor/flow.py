"""Optical flow of a clip: DIS (Kroeger et al. 2016), spans of several frames, and where it can be trusted.

Frames are uint8 [n, h, w, 3]. A flow is float32 [h, w, 2]: what pixel (y, x) shows is at (x + u, y + v) in
the other frame. It is consistent where the other frame's flow leads back to within a pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

Between = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two frames to the flow from one to the other
CONSISTENT_PIXELS = 1.0
LEAST_SIDE = 128  # smaller frames are enlarged for DIS, whose patches have 8 pixels


@dataclass(frozen=True)
class Flows:
    """Flow from each frame to others; a row for each offset in frames."""

    offsets: tuple[int, ...]  # 1, -1, 2, -2 ...
    flow: np.ndarray  # float16 [offsets, n, h, w, 2], pixels
    consistent: np.ndarray  # bool [offsets, n, h, w]; False where the other frame does not exist


def dis(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The flow float32 [h, w, 2] between two frames uint8 [h, w, 3]."""
    height, width = a.shape[:2]
    first, second = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (a, b))
    factor = -(-LEAST_SIDE // min(height, width))
    if factor > 1:
        size = (width * factor, height * factor)
        first, second = (cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC) for grey in (first, second))
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow: np.ndarray = method.calc(first, second, np.zeros((*first.shape, 2), np.float32))
    if factor > 1:
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / factor
    return flow


def estimate(frames: np.ndarray, num_spans: int = 1, between: Between = dis) -> Flows:
    """Flow over 1, 2, 4 ... frames, `num_spans` of them, both ways; the longer are chains of the shorter."""
    there = [between(a, b) for a, b in pairwise(frames)]
    back = [between(b, a) for a, b in pairwise(frames)]
    offsets, flows, consistent = [], [], []
    for span in (2**k for k in range(num_spans)):
        if span >= len(frames):
            break
        if span > 1:  # there[t] leads from t to t + span, back[t] from t + span to t
            half = span // 2
            there, back = (
                [chain(there[t], there[t + half]) for t in range(len(there) - half)],
                [chain(back[t + half], back[t]) for t in range(len(back) - half)],
            )
        missing = [np.zeros_like(there[0])] * span
        for offset, one_way, other, lead in ((span, there, back, 0), (-span, back, there, span)):
            sure = [is_consistent(a, b) for a, b in zip(one_way, other, strict=True)]
            unsure = [np.zeros(sure[0].shape, bool)] * span
            offsets.append(offset)
            flows.append(np.stack([*missing[:lead], *one_way, *missing[lead:]]).astype(np.float16))
            consistent.append(np.stack([*unsure[:lead], *sure, *unsure[lead:]]))
    return Flows(tuple(offsets), np.stack(flows), np.stack(consistent))


def chain(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Flow a to c from flows a to b and b to c."""
    return first + look_up(second, first)


def look_up(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The other frame's values [h, w, ...] where the flow leads, bilinear, the border's outside."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    looked_up: np.ndarray = cv2.remap(
        values, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return looked_up


def is_consistent(flow: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Where the way there and back ends within a pixel, inside the frame: bool [h, w]."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    x, y = x + flow[..., 0], y + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    error = np.linalg.norm(flow + look_up(back, flow), axis=-1)
    sure: np.ndarray = inside & (error < CONSISTENT_PIXELS)
    return sure
