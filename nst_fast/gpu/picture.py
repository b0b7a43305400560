"""A picture's canvas, its own terms, and its gradient, by the kernels of ``csrc/terms.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast.canvas import Canvas, Int32
from nst_fast.device import ADDRESS, DeviceArray, Launcher, check_array, describe
from nst_fast.errors import ShapeError
from nst_fast.graph.channels_last import PIXEL_BYTES

THREADS = 256  # of a block that passes over a picture, as in steps.cu
MOST_BLOCKS = 512  # a plane: more would make their sums, one block's work, the longer part
NUMBERS: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 1,
    np.dtype(np.uint16): 2,
}
SIZES = ("height", "width")

# Canvas, Shown and Picture of terms.cu.
CANVAS = np.dtype(
    [
        *((name, ADDRESS) for name in ("image", "shown", "mean", "rows", "columns")),
        *((name, np.int32) for name in ("kind", *SIZES, "canvas_height", "canvas_width")),
    ],
    align=True,
)
SHOWN = np.dtype(
    [
        *((name, ADDRESS) for name in ("row_starts", "rows", "column_starts", "columns")),
        *((name, np.int32) for name in SIZES),
    ],
    align=True,
)
PICTURE = np.dtype(
    [
        *((name, ADDRESS) for name in ("image", "provided", "gradient", "loss_scale", "sums")),
        *((name, ADDRESS) for name in ("terms", "overflow", "anchor", "anchor_weights")),
        ("shown", SHOWN),
        ("weights", ADDRESS),
        ("corner", np.float64),
        *((name, np.int32) for name in ("kind", *SIZES, "blocks", "columns")),
    ],
    align=True,
)


class CanvasKernel:
    """Shows N pictures on their canvas, as a provider reads it."""

    def __init__(
        self,
        launcher: Launcher,
        canvas: Canvas,
        image: DeviceArray,
        shown: DeviceArray,
        *,
        mean: NDArray[np.float32],
    ) -> None:
        """Upload where each row and column comes from.

        Args:
            launcher: where the arrays are; all come from its ``zeros``.
            canvas: of size H', W'.
            image: x, (N, 3, H, W) float32.
            shown: the canvas, overwritten by :meth:`run`, 16 bytes a pixel: (N, H', W', 4) float32,
                x − mean and a 0, or (N, H', W', 8) float16 or uint16 (the bits of bfloat16): that
                rounded and what the rounding left over. One number has too few bits: an edge is a
                small difference of large values.
            mean: of each colour, (3,).

        Raises:
            ShapeError: arrays do not fit each other.
        """
        n, _, height, width = check_pictures(image, canvas)
        _check_pixels("shown", shown, n, canvas)
        self._launcher = launcher
        pixels = canvas.size[0] * canvas.size[1]
        self._grid = balanced_blocks(-(-pixels // THREADS), MOST_BLOCKS), 1, n
        self._held = {
            "image": image,
            "shown": shown,
            "mean": launcher.put(mean),
            "rows": launcher.put(canvas.rows),
            "columns": launcher.put(canvas.columns),
            "kind": NUMBERS[shown.dtype],
            "height": height,
            "width": width,
            "canvas_height": canvas.size[0],
            "canvas_width": canvas.size[1],
        }
        self._canvas = describe(launcher, CANVAS, self._held)

    def run(self) -> None:
        """Enqueue one launch; does not wait, allocates nothing."""
        self._launcher.launch("extend", self._grid, THREADS, [self._canvas])


class PictureKernels:
    """Takes the provider's gradient from the canvas, and adds the terms of the picture itself.

    Unscales the gradient, adds that of every place of the canvas to the pixel that it shows, and
    those of total variation, range penalty and temporal loss. The terms are means over the
    D = 3·H·W values of a picture, in float32 sums over a few values that are added in double in a
    fixed order:

        terms = tv/D·Σ (√(corner² + right² + below²) − corner), range/D·Σ (x − clamp(x, 0, 1))²,
                temporal/D·Σ m (x − a)²

    Attributes:
        terms: (N, 2) float64, total variation and range penalty, or (N, 3) with a temporal weight;
            overwritten by :meth:`run`.
        overflow: (N,) int32, overwritten by :meth:`run`: 1 where the provider's gradient has a
            value that is not finite.
        anchor: a, (N, 3, H, W) float32, written by the caller; None without a temporal term.
        anchor_weights: m, (N, H, W) float32, likewise; 0 at first.
    """

    def __init__(
        self,
        launcher: Launcher,
        canvas: Canvas,
        image: DeviceArray,
        *,
        d_canvas: DeviceArray,
        gradient: DeviceArray,
        loss_scale: DeviceArray,
        corner: float,
        temporal: bool = False,
    ) -> None:
        """Allocate the sums, and upload where each pixel is shown.

        Args:
            launcher: where the arrays are; all come from its ``zeros``.
            canvas: of size H', W'.
            image: x, (N, 3, H, W) float32, H·W below 2³¹.
            d_canvas: the provider's gradient times ``loss_scale[n]``, 16 bytes a pixel:
                (N, H', W', 4) float32 or (N, H', W', 8) float16 or uint16 (the bits of bfloat16).
            gradient: (N, 3, H, W) float32, overwritten: the gradient of all terms.
            loss_scale: (N,) float32, powers of two; read by every run.
            corner: of the total variation.
            temporal: whether there is such a term, and an anchor.

        Raises:
            ShapeError: arrays do not fit each other.
        """
        n, colours, height, width = shape = check_pictures(image, canvas)
        _check_pixels("d_canvas", d_canvas, n, canvas)
        check_array("gradient", gradient, shape, np.float32)
        check_array("loss_scale", loss_scale, (n,), np.float32)
        blocks = _blocks(height, width)
        size = colours * height * width
        self.terms: DeviceArray = launcher.zeros((n, 3 if temporal else 2), np.float64)
        self.overflow: DeviceArray = launcher.zeros((n,), np.int32)
        self.anchor: DeviceArray = launcher.zeros(shape) if temporal else None
        self.anchor_weights: DeviceArray = launcher.zeros((n, height, width)) if temporal else None
        self._weights: DeviceArray = launcher.zeros((3,), np.float64)
        self._size = size
        shown = {
            **_places(launcher, "row", canvas.rows, height),
            **_places(launcher, "column", canvas.columns, width),
            "height": canvas.size[0],
            "width": canvas.size[1],
        }
        picture = {
            "image": image,
            "provided": d_canvas,
            "gradient": gradient,
            "loss_scale": loss_scale,
            "sums": launcher.zeros((n, 4, colours * blocks), np.float64),
            "terms": self.terms,
            "overflow": self.overflow,
            "anchor": self.anchor,
            "anchor_weights": self.anchor_weights,
            "shown": describe(launcher, SHOWN, shown),
            "weights": self._weights,
            "corner": corner,
            "kind": NUMBERS[d_canvas.dtype],
            "height": height,
            "width": width,
            "blocks": colours * blocks,
            "columns": self.terms.shape[1],
        }
        self._launcher, self._held = launcher, (shown, picture)
        self._picture = describe(launcher, PICTURE, picture)
        self._grid = blocks, colours, n

    def set_weights(self, tv: float, range_weight: float, temporal: float = 0.0) -> None:
        """Upload the weights of the terms, 0 at first; with 0 a term is 0."""
        weights = np.array([tv, range_weight, temporal]) / self._size
        self._launcher.upload(weights, self._weights)

    def run(self) -> None:
        """Enqueue both launches; does not wait, allocates nothing."""
        self._launcher.launch("picture_pass", self._grid, THREADS, [self._picture])
        self._launcher.launch("picture_sums", (1, 1, self._grid[2]), 4 * 32, [self._picture])


def check_pictures(image: DeviceArray, canvas: Canvas) -> tuple[int, int, int, int]:
    """The shape of pictures that a canvas is for.

    Raises:
        ShapeError: they are none, or too large.
    """
    n, size = image.shape[0], (canvas.height, canvas.width)
    check_array("image", image, (n, 3, *size), np.float32)
    if n == 0 or max(np.prod(size), np.prod(canvas.size)) >= 2**31:
        raise ShapeError(
            f"image: needs at least one picture of fewer than 2³¹ pixels, not {image.shape}"
        )
    return n, 3, *size


def pixels_shape(n: int, size: tuple[int, int], dtype: DTypeLike) -> tuple[int, int, int, int]:
    """(N, H', W', 4 or 8): what a provider reads and writes for canvases of a size."""
    return n, *size, PIXEL_BYTES // np.dtype(dtype).itemsize


def _check_pixels(name: str, array: DeviceArray, n: int, canvas: Canvas) -> None:
    check_array(name, array, pixels_shape(n, canvas.size, array.dtype), *NUMBERS)


def balanced_blocks(tasks: int, most: int) -> int:
    """Blocks, at most ``most``, that share ``tasks`` out evenly; depends on nothing else."""
    return -(-tasks // -(-tasks // most))


def _blocks(height: int, width: int) -> int:
    """Blocks that pass over a plane."""
    per_thread = 4 if width % 4 == 0 else 1
    return balanced_blocks(-(-height * width // (THREADS * per_thread)), MOST_BLOCKS)


def _places(launcher: Launcher, axis: str, shown: Int32, length: int) -> dict[str, DeviceArray]:
    """Of SHOWN: i is shown at ``places[starts[i]]`` to ``places[starts[i + 1] - 1]``."""
    counts = np.bincount(shown, minlength=length)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    places = np.argsort(shown, kind="stable").astype(np.int32)
    return {f"{axis}_starts": launcher.put(starts), f"{axis}s": launcher.put(places)}
