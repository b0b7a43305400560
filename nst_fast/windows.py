"""Pictures as an encoder sees them: their canvas in windows, of which one is on show at a time.

A canvas that is seen in windows exists as far as the window on show: nothing here is as large as
the picture but the picture and its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nst_fast.canvas import Canvas, Int32
from nst_fast.graph.parts import IMAGE, IMAGE_GRADIENT
from nst_fast.host import Float32, aligned_zeros
from nst_fast.kernels import Kernels
from nst_fast.tiles import Tile, Tiling

Tables = tuple[Int32, Int32]


def tables(canvas: Canvas, tile: Tile) -> Tables:
    """Row and column of the picture that each row and column of a window of its canvas shows."""
    rows, columns = tile.window()
    return canvas.rows[rows], canvas.columns[columns]


class Windows:
    """Pictures and their gradient, and the buffers in which an encoder sees them.

    Attributes:
        tiles: of the canvas, one where it is seen as a whole.
        ends: what the encoder reads, ``image``, and writes, ``d_image``: (N, 3, h, w) each. They
            are the pictures themselves where these fill a canvas that is seen as a whole.
    """

    def __init__(
        self, image: Float32, gradient: Float32, canvas: Canvas, tiling: Tiling, kernels: Kernels
    ) -> None:
        """Take pictures and gradient, (N, 3, H, W), and allocate the rest."""
        self.tiles = tiling.tiles
        self._image, self._gradient, self._kernels = image, gradient, kernels
        self._tables = [tables(canvas, tile) for tile in self.tiles]
        self.ends: Mapping[str, Float32] = {IMAGE: image, IMAGE_GRADIENT: gradient}
        self._direct = canvas.whole and len(self.tiles) == 1
        if not self._direct:
            self.ends = {name: aligned_zeros((len(image), 3, *tiling.window)) for name in self.ends}

    def show(self, index: int) -> None:
        """Let the encoder see a window."""
        if not self._direct:
            self._kernels.extend(self._image, *self._tables[index], self.ends[IMAGE])

    def take_gradient(self, index: int, *, first: bool = True) -> None:
        """Add the gradient of the window on show to the pictures'; the first one overwrites it."""
        window = self.ends[IMAGE_GRADIENT]
        if len(self.tiles) == 1:
            if not self._direct:
                self._kernels.fold(window, *self._tables[index], self._gradient)
            return
        if first:
            self._gradient.fill(0)
        rows, columns = self._tables[index]
        top, left = rows.min(), columns.min()
        shown = self._gradient[:, :, top : rows.max() + 1, left : columns.max() + 1]
        part = np.empty(shown.shape, np.float32)
        self._kernels.fold(window, rows - top, columns - left, part)
        shown += part
