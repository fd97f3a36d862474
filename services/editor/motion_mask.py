"""Masks of a clip's foreground: given for the first frame and carried by flow, or found from the motion.

Frames are uint8 [n, h, w, 3]; masks float32 [n, h, w], 1 in the foreground.
"""

import cv2
import numpy as np
from PIL import Image

from sfumato.common.errors import InvalidArgument
from sfumato.editor.flow import Flows, look_up
from sfumato.editor.video import Video

SURE = 64  # of 255: a scribble's darker pixels are background, those lighter than 255 - SURE foreground
BAND = 4  # pixels beside a carried mask's edge, among which GrabCut decides
LEAST_DIFFERENCE = 12.0  # of 255, between the foreground and what it covers
REACH = 2  # frames on each side of the middle one, in which the background is looked for
BAND_ROWS = 16  # of the background that are made at one time: of all frames, they need memory
LEAST_SHARE = 0.002  # of the frame, of a foreground that was found


def from_scribble(frame: np.ndarray, scribble: np.ndarray) -> np.ndarray:
    """A mask [h, w] from one (uint8) whose grey, 64 to 191, is unknown, by GrabCut; without grey, itself.

    Raises:
        InvalidArgument: no pixel is white.
    """
    if not (scribble > 255 - SURE).any():
        raise InvalidArgument("mask", "white where the foreground is", "without white")
    unknown = (scribble >= SURE) & (scribble <= 255 - SURE)
    if not unknown.any():
        return (scribble > 127).astype(np.float32)
    labels = np.where(scribble > 127, cv2.GC_FGD, cv2.GC_BGD).astype(np.uint8)
    labels[unknown] = cv2.GC_PR_BGD
    return _grab(frame, labels)


def propagate(first: np.ndarray, frames: np.ndarray, flows: Flows) -> np.ndarray:
    """The first frame's mask [h, w] carried through the clip by flow; GrabCut draws each edge anew."""
    back = flows.offsets.index(-1)
    masks = [first]
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BAND + 1, 2 * BAND + 1))
    for frame, flow, sure in zip(frames[1:], flows.flow[back][1:], flows.consistent[back][1:], strict=True):
        carried = ((look_up(masks[-1], flow.astype(np.float32)) > 0.5) & sure).astype(np.uint8)
        labels = np.where(carried, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        inside, outside = cv2.erode(carried, element), cv2.dilate(carried, element)
        labels[inside > 0], labels[outside == 0] = cv2.GC_FGD, cv2.GC_BGD
        masks.append(_grab(frame, labels) if (labels == cv2.GC_FGD).any() else carried.astype(np.float32))
    return np.stack(masks)


def from_motion(frames: np.ndarray, flows: Flows) -> np.ndarray:
    """What moves unlike the background, whose motion is affine, and so covers it only for a while.

    The frames are laid over each other by the background's motion; the median is the background alone, and
    what differs from it the foreground.

    Raises:
        InvalidArgument: nothing does.
    """
    differences = _differences(frames, _background_motion(flows))
    levels = differences.clip(0, 255).astype(np.uint8).reshape(len(frames), -1)
    otsu, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    masks = np.stack([_largest(d > max(LEAST_DIFFERENCE, otsu / 2)) for d in differences])
    if masks.mean() < LEAST_SHARE:
        advice = "Nothing moves unlike the background; give a mask of the first frame."
        raise InvalidArgument("mask", "given, or a foreground that moves", "no motion found", advice)
    return masks


def _differences(frames: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Of each frame from the background alone, the largest of the three colours: float32 [n, h, w].

    It is 0 where no background is known: further than REACH frames from the middle one.

    Args:
        motion: [n, 3, 3], from each frame's pixels to common ones.
    """
    height, width = frames.shape[1:3]
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    places = (motion @ corners)[:, :2]
    size = np.array([width, height])
    low = np.floor(places.min((0, 2))).clip(-REACH * size, 0)
    high = np.ceil(places.max((0, 2))).clip(size, (REACH + 1) * size)
    matrices = motion[:, :2] - np.array([[0, 0, low[0]], [0, 0, low[1]]])
    background, seen = _background(frames, matrices, (high - low).astype(int))
    inverse = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = []
    for frame, matrix in zip(frames, matrices, strict=True):
        alone, known = (
            cv2.warpAffine(picture, matrix, (width, height), flags=inverse) for picture in (background, seen)
        )
        difference = np.abs(frame - alone / known.clip(0.5)[..., None]).max(-1)
        found.append(np.where(known > 0.5, difference, 0))
    return np.stack(found, dtype=np.float32)


def _background(frames: np.ndarray, matrices: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median [h, w, 3] of the frames laid over each other, 0 where none is, and where one is [h, w].

    Args:
        matrices: [n, 2, 3], from each frame's pixels to those of the common picture of that (width, height).
    """
    width, height = (int(side) for side in size)
    background, seen = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    whole = np.ones(frames.shape[1:3], np.uint8)
    for top in range(0, height, BAND_ROWS):
        rows = slice(top, min(height, top + BAND_ROWS))
        band = width, rows.stop - top
        moved = matrices - np.array([[0, 0, 0], [0, 0, top]])
        laid = np.stack(
            [
                cv2.warpAffine(frame, matrix, band, borderMode=cv2.BORDER_REPLICATE)
                for frame, matrix in zip(frames, moved, strict=True)
            ],
            -1,
        ).astype(np.int16)
        inside = np.stack([cv2.warpAffine(whole, m, band, flags=cv2.INTER_NEAREST) for m in moved], -1)
        laid[(inside == 0)[:, :, None].repeat(3, 2)] = np.iinfo(np.int16).max  # behind all that is seen
        laid.sort(-1)
        count = inside.sum(-1, dtype=np.int64)[..., None, None]
        middle = [np.take_along_axis(laid, index.clip(0), -1) for index in ((count - 1) // 2, count // 2)]
        seen[rows] = count[..., 0, 0] > 0
        background[rows] = (middle[0][..., 0] + middle[1][..., 0]) / 2 * seen[rows][..., None]
    return background, seen


def _background_motion(flows: Flows) -> np.ndarray:
    """From each frame's pixels to the middle frame's, by the motion of most of the picture: [n, 3, 3]."""
    forward = flows.flow[flows.offsets.index(1)].astype(np.float32)
    steps = [_dominant(flow) for flow in forward[:-1]]  # t to t + 1
    to_first = [np.eye(3)]
    for step in steps:
        to_first.append(to_first[-1] @ np.linalg.inv(step))
    to_middle = np.linalg.inv(to_first[len(to_first) // 2])
    return np.stack([to_middle @ matrix for matrix in to_first])


def _dominant(flow: np.ndarray) -> np.ndarray:
    """The affine motion [3, 3] that most of a flow [h, w, 2] follows."""
    height, width = flow.shape[:2]
    step = max(1, min(height, width) // 32)
    source = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    source = source[::step, ::step].reshape(-1, 2)
    target = source + flow[::step, ::step].reshape(-1, 2)
    matrix, _ = cv2.estimateAffine2D(source, target, ransacReprojThreshold=0.5)
    return np.eye(3) if matrix is None else np.vstack([matrix, [0, 0, 1]])


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part, its holes filled: float32 [h, w]."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return np.zeros(mask.shape, np.float32)
    largest = (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    contours, _ = cv2.findContours(largest, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(largest, contours, -1, 1, cv2.FILLED)
    return largest.astype(np.float32)


def _grab(frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """GrabCut (Rother et al. 2004) from sure and probable labels: float32 [h, w]."""
    models = np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    cut = labels.copy()
    try:
        cv2.grabCut(bgr, cut, (0, 0, 0, 0), models[0], models[1], 3, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # no pixel is background, or none is after a round: there is nothing to cut
        cut = labels
    return np.isin(cut, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)


def mask_of(frames: np.ndarray, flows: Flows, first: Image.Image | None, whole: Video | None) -> np.ndarray:
    """The clip's mask from that of each frame, of the first, or from the motion alone.

    Raises:
        InvalidArgument: nothing is white in it, or nothing moves.
    """
    height, width = frames.shape[1:3]
    if whole is not None:
        resized = np.stack(
            [cv2.resize(m, (width, height), interpolation=cv2.INTER_AREA) for m in whole.frames]
        )
        if resized.max() < 128:
            raise InvalidArgument("mask", "white where the foreground is", "without white")
        return resized.mean(-1).astype(np.float32) / 255
    if first is not None:
        scribble = np.asarray(first.convert("L").resize((width, height), Image.Resampling.NEAREST))
        return propagate(from_scribble(frames[0], scribble), frames, flows)
    return from_motion(frames, flows)
