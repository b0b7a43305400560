"""The canvas: what an encoder sees of a picture, which has a mirrored margin around it.

Convolutions pad with zeros. At the border of a picture that is an edge which no statistic may
count and no gradient should follow, so the border is moved away from the picture: the canvas
mirrors the picture past its sides, by a margin and up to whole cells of the deepest tap. What lies
outside the picture has no weight in moments and content terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nst_fast.host import Float32

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Canvas:
    """Where a picture lies in its canvas; in pixels.

    Attributes:
        height: of the picture, 1 or more.
        width: of the picture, 1 or more.
        top: rows of the canvas above the picture.
        left: columns of the canvas left of it.
        size: height and width of the canvas, multiples of the deepest tap's stride.
    """

    height: int
    width: int
    top: int
    left: int
    size: tuple[int, int]

    @classmethod
    def around(cls, height: int, width: int, *, margin: int, stride: int) -> Canvas:
        """Place a picture in the middle of the smallest canvas with a margin of 0 or more."""
        sides = [-(-(side + 2 * margin) // stride) * stride for side in (height, width)]
        top, left = (
            (side - length) // 2 for side, length in zip(sides, (height, width), strict=True)
        )
        return cls(height, width, top, left, (sides[0], sides[1]))

    @property
    def whole(self) -> bool:
        """Whether the picture fills the canvas."""
        return self.size == (self.height, self.width)

    @property
    def rows(self) -> Int32:
        """Row of the picture that each row of the canvas shows, (H',)."""
        return _mirrored(self.height, self.top, self.size[0])

    @property
    def columns(self) -> Int32:
        """Column of the picture that each column of the canvas shows, (W',)."""
        return _mirrored(self.width, self.left, self.size[1])

    def extend(self, planes: Float32) -> Float32:
        """The canvas of planes (…, H, W)."""
        return planes.take(self.rows, axis=-2).take(self.columns, axis=-1)

    def weights(self, stride: int, opacity: Float32 | None = None) -> Float32:
        """Weight of each cell of a tap of this stride, (H'/stride, W'/stride) in [0, 1].

        The share of the cell's pixels that are in the picture, each as ``opacity`` says, (H, W) in
        [0, 1].
        """
        pixels = np.zeros(self.size, np.float32)
        inside = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        pixels[inside] = 1.0 if opacity is None else opacity
        return self._means(pixels, stride)

    def shares(self, stride: int, plane: Float32) -> Float32:
        """Mean of a plane (H, W) over each cell, in the mirrored margin as well."""
        return self._means(self.extend(plane), stride)

    def _means(self, pixels: Float32, stride: int) -> Float32:
        height, width = (side // stride for side in self.size)
        cells: Float32 = pixels.reshape(height, stride, width, stride).mean(
            axis=(1, 3), dtype=np.float32
        )
        return cells


def _mirrored(length: int, before: int, total: int) -> Int32:
    """Positions -before … total - before - 1 folded into [0, length) at its first and last."""
    period = max(2 * (length - 1), 1)
    at = np.arange(-before, total - before) % period
    return np.minimum(at, period - at if length > 1 else at).astype(np.int32)
