"""What stands where nothing shows: the colours around it, continued smoothly.

Convolutions look past the edge of what shows. Any colour that stands there is an edge to them, or
none: the smoothest continuation is the membrane that is stretched between the colours at the edge
(the discrete Laplace equation). A pyramid finds it from coarse to fine: a pixel without a colour
takes that of the halved picture, then a few times the mean of its neighbours.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from nst_fast.host import Float32

SWEEPS = 4  # at each size; more changes nothing that can be seen
NOTHING = np.float32(0.5)  # grey, where a picture shows no colour at all
TINY = np.finfo(np.float32).tiny  # in place of 0 where 0 is divided


def fill(plane: Float32, weight: Float32) -> Float32:
    """A colour plane (H, W) in [0, 1], continued to where it has no weight, (H, W) in [0, 1].

    A value of weight 1 stays as it is, one of weight 0 counts for nothing.
    """
    height, width = weight.shape
    if weight.min() >= 1:
        return plane
    if height == width == 1:
        return np.where(weight > 0, plane, NOTHING)
    half = (width + 1) // 2, (height + 1) // 2
    share = _scaled(weight, half, Image.Resampling.BOX)
    means = _scaled(plane * weight, half, Image.Resampling.BOX) / np.maximum(share, TINY)
    coarse = fill(
        means.astype(np.float32, copy=False), np.minimum(4 * share, 1)
    )  # one of 4 is enough
    around = _scaled(coarse, (width, height), Image.Resampling.BILINEAR)
    filled = around + (plane - around) * weight
    for _ in range(SWEEPS):
        around = _neighbours(filled)
        filled = around + (plane - around) * weight
    return np.where(weight >= 1, plane, np.clip(filled, 0, 1))


def _scaled(plane: Float32, size: tuple[int, int], how: Image.Resampling) -> Float32:
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, how))


def _neighbours(plane: Float32) -> Float32:
    """The mean of the four neighbours of each pixel; past the border stands the border's own."""
    wide = np.pad(plane, 1, mode="edge")
    total = wide[:-2, 1:-1] + wide[2:, 1:-1]
    total += wide[1:-1, :-2]
    total += wide[1:-1, 2:]
    total *= np.float32(0.25)
    return total
