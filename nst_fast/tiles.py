"""Tiles: a picture in windows that overlap, for what does not fit into a GPU's memory at once.

A convolutional feature depends on the pixels around it, no farther than the receptive field
reaches. A window shows these to every feature of its *own* part, and the own parts of all windows
cover the picture once: sums over the own parts are those over the picture, to the last term. At the
picture's borders a window ends where the picture does, and is padded as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nst_fast.encoders import Encoder
from nst_fast.host import Float32

Area = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Span:
    """One side of a tile, in pixels of the picture.

    Attributes:
        start: where the window begins.
        stop: where it ends.
        first: where its own part begins.
        last: where that ends.
    """

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Tile:
    """A window and its own part; areas are in cells of a feature map of some stride."""

    rows: Span
    columns: Span

    def window(self, stride: int = 1) -> Area:
        """Of the picture's cells, those in the window."""
        return _area(stride, *((span.start, span.stop) for span in self._spans))

    def own(self, stride: int = 1) -> Area:
        """Of the picture's cells, the window's own."""
        return _area(stride, *((span.first, span.last) for span in self._spans))

    def inside(self, stride: int = 1) -> Area:
        """Of the window's cells, its own."""
        return _area(
            stride, *((span.first - span.start, span.last - span.start) for span in self._spans)
        )

    @property
    def _spans(self) -> tuple[Span, Span]:
        return self.rows, self.columns


def _area(stride: int, rows: tuple[int, int], columns: tuple[int, int]) -> Area:
    return slice(rows[0] // stride, rows[1] // stride), slice(
        columns[0] // stride, columns[1] // stride
    )


@dataclass(frozen=True)
class Tiling:
    """Windows of one size over a picture.

    Attributes:
        window: height and width of every window, in pixels.
        tiles: from top left to bottom right.
        share: a window's pixels as a share of the picture's.
    """

    window: tuple[int, int]
    tiles: tuple[Tile, ...]
    share: float


def halo(encoder: Encoder, taps: Iterable[str]) -> int:
    """Pixels that a window needs around its own part, a multiple of the deepest tap's stride.

    Each 3×3 convolution up to the deepest tap reaches one cell of its feature map farther, and
    every convolution of a pack is a tap; the poolings' windows do not overlap.
    """
    names = list(encoder.taps)
    deepest = max(map(names.index, taps))
    strides = [encoder.taps[name].stride for name in names[: deepest + 1]]
    return -(-sum(strides) // strides[-1]) * strides[-1]


def cut(height: int, width: int, side: int, margin: int) -> Tiling:
    """Cut a picture into windows of at most ``side`` pixels a side.

    Args:
        height: of the picture; like all sizes here a multiple of the deepest tap's stride.
        width: of the picture.
        side: more than twice the margin.
        margin: pixels around the own part, where the picture does not end (:func:`halo`).
    """
    window = min(side, height), min(side, width)
    rows, columns = (
        _spans(length, extent, margin)
        for length, extent in zip((height, width), window, strict=True)
    )
    tiles = tuple(Tile(row, column) for row in rows for column in columns)
    return Tiling(window, tiles, window[0] * window[1] / (height * width))


def _spans(length: int, extent: int, margin: int) -> list[Span]:
    """Windows of ``extent`` along ``length``; the last one ends with the picture."""
    if extent == length:
        return [Span(0, length, 0, length)]
    step = extent - 2 * margin
    starts = [*range(0, length - extent, step), length - extent]
    firsts = [0, *(start + margin for start in starts[1:])]
    return [
        Span(start, start + extent, first, last)
        for start, first, last in zip(starts, firsts, [*firsts[1:], length], strict=True)
    ]


def smaller(side: int, margin: int) -> int | None:
    """Half a side, up to a multiple of the margin; None where little would be its own."""
    half = -(-side // (2 * margin)) * margin
    return half if half < side and half >= 3 * margin else None


def own_weights(weights: Float32, tile: Tile, stride: int) -> Float32:
    """Weights (N, h, w) of a window's cells, from those of the canvas: 0 where not its own."""
    whole = weights[:, *tile.window(stride)]
    own = np.zeros_like(whole)
    own[:, *tile.inside(stride)] = whole[:, *tile.inside(stride)]
    return own
