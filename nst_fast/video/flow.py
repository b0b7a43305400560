"""Motion between two frames: what was where before, what can be trusted of it, and cuts.

Flow is dense inverse search (Kroeger et al. 2016) of OpenCV, in both directions, f from a frame to
the one before and g the other way. After Ruder et al. 2016, "Artistic style transfer for videos",
section 4.2, a pixel p was not seen before where the way there and back does not end at p,

    |g(p + f(p)) + f(p)|² > 0.01·(|g(p + f(p))|² + |f(p)|²) + 0.5          (pixels²)

as is taken of one whose f leads out of the picture, and f is not known well where it changes
suddenly, at the borders of what moves: |∇f_x|² + |∇f_y|² > 0.01·|f|² + 0.002.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nst_fast.host import Float32
from nst_fast.images import Picture

Mask = NDArray[np.bool_]

# Grey values, of 255, that two frames of a shot differ by where flow leads from one to the other.
SAME = 24.0
LEAST_SIDE = 16  # pixels: below it DIS has no level to search


@dataclass(frozen=True)
class Motion:
    """How a frame comes from the one before.

    Attributes:
        flow: f, (H, W, 2) pixels, across and down: the content of p was at p + f(p).
        seen: (H, W) float32, 1 where that can be trusted and 0 where it cannot.
        explained: share of the frame that looks as the flow says, from 0 to 1; what came in from
            outside the picture does not count. Next to nothing behind a cut.
    """

    flow: Float32
    seen: Float32
    explained: float


def motion(before: Picture, after: Picture) -> Motion:
    """Estimate the motion of a frame, given the one before of the same size."""
    old, new = _grey(before), _grey(after)
    flow, forth = _flow(new, old), _flow(old, new)
    returned = _sample(forth, flow, cv2.INTER_LINEAR)
    inside = _inside(flow)
    seen = inside & _returns(flow, returned)
    same = np.abs(_sample(old, flow, cv2.INTER_LINEAR) - new.astype(np.float32)) < SAME
    explained = float(np.mean((seen & same)[inside])) if inside.any() else 0.0
    return Motion(flow, (seen & ~_boundary(flow)).astype(np.float32), explained)


def warped(picture: Picture, moved: Motion) -> Picture:
    """A picture of the frame before, (H, W), as the motion carries it into this one.

    Pixels that come from outside are those of its border. Sampled by cubics: linear
    interpolation, again and again, loses a tenth of the sharpness, Lanczos adds as much.
    """
    pixels = _sample(picture.pixels, moved.flow, cv2.INTER_CUBIC)
    return Picture(np.clip(pixels, 0.0, 1.0))


def warping_error(before: Picture, after: Picture, moved: Motion) -> float:
    """How much a picture flickers against the one before: a mean of squares where that was seen.

    Lai et al. 2018, "Learning Blind Video Temporal Consistency", equation 5, by the pixel and
    colour. NaN where nothing was seen.
    """
    weights = moved.seen[..., None]
    off = np.square(after.pixels - _sample(before.pixels, moved.flow, cv2.INTER_LINEAR)) * weights
    total = 3.0 * float(weights.sum(dtype=np.float64))
    return float(off.sum(dtype=np.float64)) / total if total else float("nan")


def _grey(picture: Picture) -> NDArray[np.uint8]:
    """A frame as DIS reads it, 8 bits."""
    levels = np.rint(picture.pixels * np.float32(255)).astype(np.uint8)
    return np.asarray(cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY))


def _flow(start: NDArray[np.uint8], end: NDArray[np.uint8]) -> Float32:
    """Where the pixels of ``start`` are in ``end``: (H, W, 2), across and down."""
    if min(start.shape) < LEAST_SIDE:
        return np.zeros((*start.shape, 2), np.float32)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)  # half the error of the preset's, for the time of one more step
    return np.asarray(search.calc(start, end, None))


def _places(flow: Float32) -> tuple[Float32, Float32]:
    """p + flow(p): column and row of each pixel."""
    height, width = flow.shape[:2]
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    return np.add(flow[..., 0], columns), np.add(flow[..., 1], rows[:, None])


def _sample(planes: NDArray[Any], flow: Float32, how: int) -> Float32:
    """Planes (H, W[, C]) at p + flow(p), for every p; borders go on."""
    floats = planes.astype(np.float32, copy=False)
    border = cv2.BORDER_REPLICATE
    return np.asarray(cv2.remap(floats, *_places(flow), how, borderMode=border))


def _inside(flow: Float32) -> Mask:
    (across, down), (height, width) = _places(flow), flow.shape[:2]
    found: Mask = (across >= 0) & (across <= width - 1) & (down >= 0) & (down <= height - 1)
    return found


def _returns(flow: Float32, back: Float32) -> Mask:
    lengths = np.square(flow).sum(axis=2) + np.square(back).sum(axis=2)
    found: Mask = np.square(flow + back).sum(axis=2) <= 0.01 * lengths + 0.5
    return found


def _boundary(flow: Float32) -> Mask:
    slopes = np.zeros(flow.shape[:2], np.float32)
    for axis in (0, 1):
        if flow.shape[axis] > 1:
            slopes += np.square(np.gradient(flow, axis=axis)).sum(axis=2)
    found: Mask = slopes > 0.01 * np.square(flow).sum(axis=2) + 0.002
    return found
