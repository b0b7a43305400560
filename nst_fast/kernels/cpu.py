"""The kernels on numpy arrays: arguments are checked here, ``nst_fast._core`` does the work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast import _core
from nst_fast.device import Float32, Float64, aligned_zeros
from nst_fast.errors import SettingsError, ShapeError

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

    def gram(
        self, features: Float32, out: Float32, *, pixel_weights: Float32 | None = None
    ) -> None:
        """Write Gram matrices; see ``Kernels.gram``."""
        N, C, P = _maps("features", features)
        _fit("out", out, (N, C, C), written=True)
        _fit_weights(pixel_weights, N, P)
        _distinct(out=out, features=features, pixel_weights=pixel_weights)
        _core.gram(features, out, pixel_weights, self.threads)

    def style_residual(
        self, gram: Float32, target: Float32, coefficients: Float64, losses: Float64
    ) -> None:
        """Subtract the target and take the losses; see ``Kernels.style_residual``."""
        N, C, _ = _maps("gram", gram)
        _fit("gram", gram, (N, C, C), written=True)
        _fit_either("target", target, (C, C), (N, C, C))
        _fit("coefficients", coefficients, (N,), np.float64)
        _fit("losses", losses, (N,), np.float64, written=True)
        _distinct(gram=gram, target=target)
        _distinct(losses=losses, coefficients=coefficients)
        _core.style_residual(gram, target, coefficients, losses, self.threads)

    def gram_gradient(
        self,
        features: Float32,
        residual: Float32,
        coefficients: Float64,
        out: Float32,
        *,
        accumulate: bool = False,
        pixel_weights: Float32 | None = None,
        content: Float32 | None = None,
        content_coefficients: Float64 | None = None,
        content_losses: Float64 | None = None,
    ) -> None:
        """Write the gradient at the features; see ``Kernels.gram_gradient``."""
        N, C, P = _maps("features", features)
        _fit("residual", residual, (N, C, C))
        _fit("coefficients", coefficients, (N,), np.float64)
        _fit("out", out, (N, C, P), written=True)
        _fit_weights(pixel_weights, N, P)
        given = [a is not None for a in (content, content_coefficients, content_losses)]
        if any(given) and not all(given):
            raise ShapeError(
                "content, content_coefficients and content_losses must be given together"
            )
        if content is not None:
            _fit("content", content, (N, C, P))
            _fit("content_coefficients", content_coefficients, (N,), np.float64)
            _fit("content_losses", content_losses, (N,), np.float64, written=True)
        _distinct(
            out=out,
            features=features,
            residual=residual,
            content=content,
            pixel_weights=pixel_weights,
        )
        _distinct(
            content_losses=content_losses,
            content_coefficients=content_coefficients,
            coefficients=coefficients,
        )
        _core.gram_gradient(
            features,
            residual,
            coefficients,
            out,
            accumulate,
            pixel_weights,
            content,
            content_coefficients,
            content_losses,
            self.threads,
        )

    def content_gradient(
        self,
        features: Float32,
        content: Float32,
        coefficients: Float64,
        out: Float32,
        losses: Float64,
        *,
        accumulate: bool = False,
    ) -> None:
        """Write the content gradient; see ``Kernels.content_gradient``."""
        N, C, P = _maps("features", features)
        _fit("content", content, (N, C, P))
        _fit("coefficients", coefficients, (N,), np.float64)
        _fit("out", out, (N, C, P), written=True)
        _fit("losses", losses, (N,), np.float64, written=True)
        _distinct(out=out, features=features, content=content)
        _distinct(losses=losses, coefficients=coefficients)
        _core.content_gradient(
            features, content, coefficients, out, losses, accumulate, self.threads
        )

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
    if not isinstance(image, np.ndarray) or image.ndim != 4 or image.size == 0:
        shape = getattr(image, "shape", type(image).__name__)
        raise ShapeError(f"image: needs shape (N, C, H, W), none of them 0, not {shape}")
    _fit("image", image, image.shape)
    _fit("weights", weights, image.shape[:1], np.float64)
    _fit("gradient", gradient, image.shape, written=True)
    _fit("losses", losses, image.shape[:1], np.float64, written=True)
    _distinct(gradient=gradient, image=image)
    _distinct(losses=losses, weights=weights)


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


def _fit_either(name: str, array: Float32, shared: tuple[int, ...], each: tuple[int, ...]) -> None:
    _fit(name, array, shared if getattr(array, "ndim", 0) == len(shared) else each)


def _fit_weights(weights: Float32 | None, N: int, P: int) -> None:
    if weights is not None:
        _fit_either("pixel_weights", weights, (P,), (N, P))


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
