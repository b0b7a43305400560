"""The terms of the picture itself, and its gradient, by the kernels of ``csrc/steps.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np

from nst_fast.cuda import DeviceArray, Launcher, check_array
from nst_fast.errors import ShapeError

THREADS = 256  # of a block that passes over a picture, as in steps.cu
MOST_BLOCKS = 512  # a plane: more would make their sums, one block's work, the longer part
NUMBERS: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 1,
    np.dtype(np.uint16): 2,
}


class PictureKernels:
    """Unscales the provider's gradient and adds those of total variation and range penalty.

    The terms are means over the D = 3·H·W values of a picture, in float32 sums over a few values
    that are added in double in a fixed order:

        terms = tv/D·(Σ across² + Σ down²), range/D·Σ (x − clamp(x, 0, 1))²

    Attributes:
        terms: (N, 2) float64, total variation and range penalty, overwritten by :meth:`run`.
        overflow: (N,) int32, overwritten by :meth:`run`: 1 where the provider's gradient has a
            value that is not finite.
    """

    def __init__(
        self,
        launcher: Launcher,
        image: DeviceArray,
        d_image: DeviceArray,
        gradient: DeviceArray,
        scale: DeviceArray,
        *,
        tv: float,
        range_weight: float,
    ) -> None:
        """Allocate the sums.

        Args:
            launcher: where the arrays are; all come from its ``zeros``.
            image: x, (N, 3, H, W) float32, H·W below 2³¹.
            d_image: the provider's gradient times ``scale[n]``, (N, 3, H, W) float32, float16 or
                uint16 (the bits of bfloat16).
            gradient: (N, 3, H, W) float32, overwritten: the gradient of all terms.
            scale: (N,) float32, powers of two; read by every run.
            tv: weight of the total variation; with 0 the term is 0.
            range_weight: weight of the range penalty; with 0 the term is 0.

        Raises:
            ShapeError: arrays do not fit each other.
        """
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] != 3 or 0 in shape or shape[2] * shape[3] >= 2**31:
            raise ShapeError(
                f"image: needs shape (N, 3, H, W), none of them 0, H·W below 2³¹, not {shape}"
            )
        n, _, height, width = shape
        check_array("image", image, shape, np.float32)
        check_array("d_image", d_image, shape, *NUMBERS)
        check_array("gradient", gradient, shape, np.float32)
        check_array("scale", scale, (n,), np.float32)
        per_thread = 4 if width % 4 == 0 else 1
        blocks = balanced_blocks(-(-height * width // (THREADS * per_thread)), MOST_BLOCKS)
        size = 3 * height * width
        weights = (np.float64(tv / size), np.float64(range_weight / size))
        sums = launcher.zeros((n, 3, 3 * blocks), np.float64)
        self.terms: DeviceArray = launcher.zeros((n, 2), np.float64)
        self.overflow: DeviceArray = launcher.zeros((n,), np.int32)
        self._launcher = launcher
        self._pass = (
            (blocks, 3, n),
            (
                *(image, d_image, gradient, scale, sums),
                *(np.int32(NUMBERS[d_image.dtype]), np.int32(height), np.int32(width), *weights),
            ),
        )
        self._sums = (1, 1, n), (sums, self.terms, self.overflow, np.int32(3 * blocks), *weights)

    def run(self) -> None:
        """Enqueue both launches; does not wait, allocates nothing."""
        grid, arguments = self._pass
        self._launcher.launch("picture_pass", grid, THREADS, arguments)
        grid, sums = self._sums
        self._launcher.launch("picture_sums", grid, 3 * 32, sums)


def balanced_blocks(tasks: int, most: int) -> int:
    """Blocks, at most ``most``, that share ``tasks`` out evenly; depends on nothing else."""
    return -(-tasks // -(-tasks // most))
