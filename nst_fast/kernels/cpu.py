"""The kernels on numpy arrays: arguments are checked here, ``nst_fast._core`` does the work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast import _core
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.host import Float32, Float64, aligned_zeros

Int32 = NDArray[np.int32]
UInt16 = NDArray[np.uint16]
AnyArray = NDArray[Any]


class CpuKernels:
    """``Kernels`` on numpy arrays; the methods are documented there.

    Calls from several Python threads are safe; while one uses the worker threads, another computes
    on its own thread alone.
    """

    def __init__(self, threads: int) -> None:
        """Keep the number of threads that each call uses."""
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise SettingsError(f"threads must be a whole number from 1 to 1024, not {threads!r}")
        self.threads = threads

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> AnyArray:
        """Allocate a zeroed array; see ``Kernels.zeros``."""
        return aligned_zeros(shape, dtype)

    def moments(
        self,
        features: Float32,
        scales: Float64,
        out: Float32,
        *,
        pixel_weights: Float32 | None = None,
        accumulate: bool = False,
    ) -> None:
        """Write the moments; see ``Kernels.moments``."""
        N, C, P = _maps("features", features)
        _fit("scales", scales, (N,), np.float64)
        _fit("out", out, (N, C + 1, C + 1), written=True)
        _fit_weights(pixel_weights, N, P)
        _distinct(out=out, features=features, pixel_weights=pixel_weights)
        _core.moments(features, scales, out, pixel_weights, accumulate, self.threads)

    def pull_back(
        self,
        features: Float32,
        derivative: Float32,
        out: Float32,
        *,
        pixel_weights: Float32 | None = None,
        content: Float32 | None = None,
        content_factors: Float64 | None = None,
        content_losses: Float64 | None = None,
    ) -> None:
        """Write the gradient at the features; see ``Kernels.pull_back``."""
        N, C, P = _maps("features", features)
        _fit("derivative", derivative, (N, C, C + 1))
        _fit("out", out, (N, C, P), written=True)
        _fit_weights(pixel_weights, N, P)
        given = [a is not None for a in (content, content_factors, content_losses)]
        if any(given) and not all(given):
            raise ShapeError("content, content_factors and content_losses must be given together")
        if content is not None:
            _fit("content", content, (N, C, P))
            _fit("content_factors", content_factors, (N,), np.float64)
            _fit("content_losses", content_losses, (N,), np.float64, written=True)
        _distinct(
            out=out,
            features=features,
            derivative=derivative,
            content=content,
            pixel_weights=pixel_weights,
        )
        _distinct(content_losses=content_losses, content_factors=content_factors)
        _core.pull_back(
            features,
            derivative,
            out,
            pixel_weights,
            content,
            content_factors,
            content_losses,
            self.threads,
        )

    def content_pull_back(
        self,
        features: Float32,
        content: Float32,
        factors: Float64,
        out: Float32,
        losses: Float64,
        *,
        pixel_weights: Float32 | None = None,
    ) -> None:
        """Write the content term's gradient; see ``Kernels.content_pull_back``."""
        N, C, P = _maps("features", features)
        _fit("content", content, (N, C, P))
        _fit("factors", factors, (N,), np.float64)
        _fit("out", out, (N, C, P), written=True)
        _fit("losses", losses, (N,), np.float64, written=True)
        _fit_weights(pixel_weights, N, P)
        _distinct(out=out, features=features, content=content, pixel_weights=pixel_weights)
        _distinct(losses=losses, factors=factors)
        _core.content_pull_back(
            features, content, factors, out, losses, pixel_weights, self.threads
        )

    def extend(self, image: Float32, rows: Int32, columns: Int32, canvas: Float32) -> None:
        """Show pictures on a canvas; see ``Kernels.extend``."""
        _pictures("image", image)
        _fit_canvas(canvas, rows, columns, image.shape)
        _fit("canvas", canvas, canvas.shape, written=True)
        _distinct(canvas=canvas, image=image)
        _core.extend(image, rows, columns, canvas, self.threads)

    def fold(self, canvas: Float32, rows: Int32, columns: Int32, image: Float32) -> None:
        """Add a canvas to the pictures it shows; see ``Kernels.fold``."""
        _pictures("image", image)
        _fit_canvas(canvas, rows, columns, image.shape)
        _fit("image", image, image.shape, written=True)
        _distinct(image=image, canvas=canvas)
        _core.fold(canvas, rows, columns, image, self.threads)

    def smooth(
        self,
        image: Float32,
        taps: Float32,
        out: Float32,
        *,
        share: float,
        base: Float32 | None = None,
    ) -> None:
        """Smooth pictures; see ``Kernels.smooth``."""
        _pictures("image", image)
        _vector("taps", taps)
        _fit("out", out, image.shape, written=True)
        if base is not None:
            _fit("base", base, image.shape)
        _distinct(out=out, image=image, taps=taps, base=base)
        _core.smooth(image, taps, share, out, base, self.threads)

    def total_variation(
        self, image: Float32, weights: Float64, gradient: Float32, losses: Float64
    ) -> None:
        """Add the gradient of the total variation; see ``Kernels.total_variation``."""
        _check_picture_term(image, weights, gradient, losses)
        _core.total_variation(image, weights, gradient, losses, self.threads)

    def range_penalty(
        self, image: Float32, weights: Float64, gradient: Float32, losses: Float64
    ) -> None:
        """Add the gradient of the range penalty; see ``Kernels.range_penalty``."""
        _check_picture_term(image, weights, gradient, losses)
        _core.range_penalty(image, weights, gradient, losses, self.threads)

    def lbfgs_update(
        self,
        x: Float32,
        x_prev: Float32,
        gradient: Float32,
        gradient_prev: Float32,
        history: UInt16,
        *,
        slot: int,
        count: int,
        dots: Float64,
    ) -> None:
        """Store a pair and take the dot products; see ``Kernels.lbfgs_update``."""
        D = _vector("x", x)
        m = _history(history, D)
        _fit("x_prev", x_prev, (D,), written=True)
        _fit("gradient", gradient, (D,))
        _fit("gradient_prev", gradient_prev, (D,), written=True)
        _fit("dots", dots, (3, 2 * m + 1), np.float64, written=True)
        if not 0 <= slot < count <= m:
            raise ShapeError(
                f"slot {slot} and count {count}: need 0 <= slot < count <= {m}, the pairs"
            )
        _distinct(x_prev=x_prev, x=x, gradient=gradient, gradient_prev=gradient_prev)
        _distinct(gradient_prev=gradient_prev, x=x, gradient=gradient)
        _core.lbfgs_update(
            x, x_prev, gradient, gradient_prev, history, slot, count, dots, self.threads
        )

    def lbfgs_direction(
        self,
        history: UInt16,
        coefficients: Float64,
        gradient: Float32,
        x_prev: Float32,
        x: Float32,
        *,
        gradient_coefficient: float,
    ) -> None:
        """Move along a combination of the history; see ``Kernels.lbfgs_direction``."""
        D = _vector("x", x, written=True)
        m = _history(history, D)
        _fit("coefficients", coefficients, (2 * m,), np.float64)
        _fit("gradient", gradient, (D,))
        _fit("x_prev", x_prev, (D,))
        _distinct(x=x, gradient=gradient, x_prev=x_prev)
        _core.lbfgs_direction(
            history, coefficients, gradient, gradient_coefficient, x_prev, x, self.threads
        )

    def retract(self, x: Float32, x_prev: Float32, ratio: float) -> None:
        """Shorten the step taken; see ``Kernels.retract``."""
        D = _vector("x", x, written=True)
        _fit("x_prev", x_prev, (D,))
        _distinct(x=x, x_prev=x_prev)
        _core.retract(x, x_prev, ratio, self.threads)

    def adam_update(
        self,
        x: Float32,
        gradient: Float32,
        m: Float32,
        v: Float32,
        *,
        count: int,
        learning_rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        low: float,
        high: float,
    ) -> float:
        """Take one step of Adam; see ``Kernels.adam_update``."""
        D = _vector("x", x, written=True)
        _fit("gradient", gradient, (D,))
        _fit("m", m, (D,), written=True)
        _fit("v", v, (D,), written=True)
        _distinct(x=x, gradient=gradient, m=m, v=v)
        _distinct(m=m, gradient=gradient, v=v)
        _distinct(v=v, gradient=gradient)
        # The bias corrections of algorithm 1, moved from the moments to the step.
        step = learning_rate / (1 - beta1**count)
        root_scale = 1 / math.sqrt(1 - beta2**count)
        return _core.adam_update(
            x, gradient, m, v, beta1, beta2, step, root_scale, epsilon, low, high, self.threads
        )

    def clamp(self, x: Float32, low: float, high: float) -> None:
        """Clamp in place; see ``Kernels.clamp``."""
        _fit("x", x, getattr(x, "shape", ()), written=True)
        _core.clamp(x, low, high, self.threads)


def _check_picture_term(
    image: Float32, weights: Float64, gradient: Float32, losses: Float64
) -> None:
    _pictures("image", image)
    _fit("weights", weights, image.shape[:1], np.float64)
    _fit("gradient", gradient, image.shape, written=True)
    _fit("losses", losses, image.shape[:1], np.float64, written=True)
    _distinct(gradient=gradient, image=image)
    _distinct(losses=losses, weights=weights)


def _fit_canvas(canvas: Float32, rows: Int32, columns: Int32, shape: tuple[int, ...]) -> None:
    """Refuse a canvas that does not show pictures of this shape, and tables beyond them."""
    N, K, *sides = shape
    _pictures("canvas", canvas)
    _fit("canvas", canvas, (N, K, *canvas.shape[2:]))
    tables = {"rows": rows, "columns": columns}
    for (name, table), side, length in zip(tables.items(), sides, canvas.shape[2:], strict=True):
        _fit(name, table, (length,), np.int32)
        if table.min() < 0 or table.max() >= side:
            raise ShapeError(
                f"{name}: needs values from 0 to {side - 1} for an image of shape {shape}, "
                f"not from {table.min()} to {table.max()}"
            )


def _fit(
    name: str,
    array: AnyArray | None,
    shape: tuple[int, ...],
    dtype: DTypeLike = np.float32,
    *,
    written: bool = False,
) -> None:
    """Refuse an array of another shape or type, one with gaps, and a read-only output."""
    kind = np.dtype(dtype)
    if not isinstance(array, np.ndarray):
        raise ShapeError(
            f"{name}: needs a numpy array of shape {shape}, not {type(array).__name__}"
        )
    if array.shape != shape or array.dtype != kind:
        raise ShapeError(f"{name}: needs shape {shape} {kind}, not {array.shape} {array.dtype}")
    if not array.flags.c_contiguous:
        raise ShapeError(
            f"{name}: needs C-contiguous memory for shape {shape}, not strides {array.strides}; "
            "pass numpy.ascontiguousarray of it"
        )
    if written and not array.flags.writeable:
        raise ShapeError(f"{name}: is written, but this array of shape {shape} is read-only")


def _maps(name: str, array: Float32) -> tuple[int, int, int]:
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.size == 0:
        shape = getattr(array, "shape", type(array).__name__)
        raise ShapeError(f"{name}: needs shape (N, C, P), none of them 0, not {shape}")
    _fit(name, array, array.shape)
    N, C, P = array.shape
    return N, C, P


def _pictures(name: str, array: Float32) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.size == 0:
        shape = getattr(array, "shape", type(array).__name__)
        raise ShapeError(f"{name}: needs shape (N, C, H, W), none of them 0, not {shape}")
    _fit(name, array, array.shape)


def _vector(name: str, array: Float32, *, written: bool = False) -> int:
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.size == 0:
        shape = getattr(array, "shape", type(array).__name__)
        raise ShapeError(f"{name}: needs shape (D,), D above 0, not {shape}")
    _fit(name, array, array.shape, written=written)
    return array.size


def _history(history: UInt16, D: int) -> int:
    """Check the history and return m, the pairs it has room for."""
    if history.ndim != 2 or history.shape[0] % 2 or history.shape[0] == 0:
        raise ShapeError(f"history: needs shape (2m, {D}) uint16, not {history.shape}")
    _fit("history", history, (history.shape[0], D), np.uint16, written=True)
    rows: int = history.shape[0]
    return rows // 2


def _fit_weights(weights: Float32 | None, N: int, P: int) -> None:
    if weights is not None:
        shared = getattr(weights, "ndim", 0) == 1
        _fit("pixel_weights", weights, (P,) if shared else (N, P))


def _distinct(**arrays: AnyArray | None) -> None:
    """Refuse an output, given first, that shares memory with another argument."""
    (name, out), *others = arrays.items()
    for other, array in others:
        # Contiguous arrays overlap exactly where their bounds do.
        if out is not None and array is not None and np.may_share_memory(out, array):
            raise ShapeError(
                f"{name} of shape {out.shape} shares memory with {other} of shape {array.shape}; "
                "give it its own array"
            )
