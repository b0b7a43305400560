"""The kernels of the CPU, for features, pictures, optimisers; a GPU's are in ``nst_fast.gpu``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast.errors import NstError, SettingsError
from nst_fast.host import Float32, Float64, aligned_zeros

try:
    from nst_fast import _core
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None

Int32 = NDArray[np.int32]
UInt16 = NDArray[np.uint16]


class Kernels:
    """The kernels of the CPU, on a number of threads.

    N images, C channels, P = H·W pixels, D elements of a picture. Arrays are numpy's,
    C-contiguous float32, normalizers, factors and losses (N,) float64, unless said otherwise.
    Arrays that are written must not overlap any other argument. All methods raise ShapeError where
    an array does not fit; the message gives both shapes. The same call gives the same bits, for
    any number of threads. NaN and infinity propagate.

    Calls from several Python threads are safe; while one uses the worker threads, another computes
    on its own thread alone.
    """

    def __init__(self, threads: int) -> None:
        """Keep the number of threads that each call uses.

        Raises:
            NstError: the compiled module is missing.
            SettingsError: ``threads`` is not a whole number from 1 to 1024.
        """
        if _missing is not None:
            raise NstError(
                f"the compiled module nst_fast._core is missing ({_missing}): "
                "build it with 'pip install -e .'"
            ) from _missing
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise SettingsError(f"threads must be a whole number from 1 to 1024, not {threads!r}")
        self.threads = threads

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Allocate a zeroed, aligned array."""
        return aligned_zeros(shape, dtype)

    def moments(
        self,
        features: Float32,
        normalizers: Float64,
        out: Float32,
        *,
        pixel_weights: Float32 | None = None,
        accumulate: bool = False,
    ) -> None:
        """Write each image's moments: Gram matrix, sums and number of pixels in one matrix.

        M[n] = [M[n] +] s[n]·Σ_p m_p f~_p f~_pᵀ with f~ = [f; 1], exactly symmetric. Its last row
        and column hold s·Σ m f, its corner s·Σ m.

        Args:
            features: (N, C, P).
            normalizers: s, (N,).
            out: (N, C + 1, C + 1), overwritten, or added to if ``accumulate``.
            pixel_weights: m ≥ 0, (N, P) or (P,) for all images; None: all 1.
            accumulate: add to what ``out`` holds; of that only the upper triangle is read.
        """
        _core.moments(features, normalizers, out, pixel_weights, accumulate, self.threads)

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
        accumulate: bool = False,
    ) -> None:
        """Write the gradient at the features: of a function of the moments, and of the content.

        out = [out +] (A F + b 1ᵀ) diag(m) + 2·c[n]·m∘(F − content).

        Args:
            features: (N, C, P).
            derivative: [A b], (N, C, C + 1), A symmetric: 2·s[n] times the first C rows of the
                function's symmetric derivative at the moments.
            out: (N, C, P), overwritten, or added to if ``accumulate``.
            pixel_weights: m, those of the moments.
            content: (N, C, P); None: no content term.
            content_factors: c, (N,); with ``content`` only.
            content_losses: (N,), overwritten by c[n]·Σ m (F − content)²; with ``content`` only.
            accumulate: add to what ``out`` holds.
        """
        _core.pull_back(
            features,
            derivative,
            out,
            pixel_weights,
            content,
            content_factors,
            content_losses,
            accumulate,
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
        accumulate: bool = False,
    ) -> None:
        """Write the gradient of the content term alone: out = [out +] 2·c[n]·m∘(F − content).

        Args:
            features: (N, C, P).
            content: (N, C, P).
            factors: c, (N,).
            out: (N, C, P), overwritten, or added to if ``accumulate``.
            losses: (N,), overwritten by c[n]·Σ m (F − content)².
            pixel_weights: m ≥ 0, (N, P) or (P,) for all images; None: all 1.
            accumulate: add to what ``out`` holds.
        """
        _core.content_pull_back(
            features, content, factors, out, losses, pixel_weights, accumulate, self.threads
        )

    def extend(self, image: Float32, rows: Int32, columns: Int32, canvas: Float32) -> None:
        """Show pictures on a larger canvas: canvas[i, j] = image[rows[i], columns[j]].

        Any tables do; those of a mirrored margin, long runs that count up by 1, are copied fast.

        Args:
            image: (N, K, H, W).
            rows: (H',) int32, from 0 to H − 1.
            columns: (W',) int32, from 0 to W − 1.
            canvas: (N, K, H', W'), overwritten.
        """
        _core.extend(image, rows, columns, canvas, self.threads)

    def fold(self, canvas: Float32, rows: Int32, columns: Int32, image: Float32) -> None:
        """Add every value of a canvas to the pixel it shows: the adjoint of ``extend``.

        Args:
            canvas: (N, K, H', W').
            rows: (H',) int32, from 0 to H − 1.
            columns: (W',) int32, from 0 to W − 1.
            image: (N, K, H, W), overwritten; 0 where the canvas does not show a pixel.
        """
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
        """Smooth pictures: out = [base +] B u, B = share·I + (1 − share)·G, which is symmetric.

        G runs along the columns and rows of every plane: Σ_k taps[|k|]·u[n + k], the lines mirrored
        at their ends, which are repeated.

        Args:
            image: u, (N, K, H, W).
            taps: (r + 1,) of the middle and of both neighbours at distance 1 to r; r of any size.
            out: (N, K, H, W), overwritten.
            share: of the picture itself, from 0 to 1.
            base: (N, K, H, W); None: 0.
        """
        _core.smooth(image, taps, out, share, base, self.threads)

    def total_variation(
        self,
        image: Float32,
        corner: float,
        weights: Float64,
        gradient: Float32,
        losses: Float64,
    ) -> None:
        """Add the gradient of the total variation, rounded where it is 0.

        losses[n] = weights[n]·Σ (√(corner² + right² + below²) − corner), with right = x[i,j+1] −
        x[i,j] and below = x[i+1,j] − x[i,j]; at an edge, 0.

        Args:
            image: (N, 3, H, W).
            corner: above 0: differences well below it count by their squares, others by themselves.
            weights: (N,) float64.
            gradient: (N, 3, H, W), added to.
            losses: (N,), overwritten.
        """
        _core.total_variation(image, corner, weights, gradient, losses, self.threads)

    def range_penalty(
        self, image: Float32, weights: Float64, gradient: Float32, losses: Float64
    ) -> None:
        """Add the gradient of the penalty on pixels outside [0, 1].

        losses[n] = weights[n]·Σ (x − clamp(x, 0, 1))².

        Args:
            image: (N, 3, H, W).
            weights: (N,) float64.
            gradient: (N, 3, H, W), added to.
            losses: (N,), overwritten.
        """
        _core.range_penalty(image, weights, gradient, losses, self.threads)

    def temporal_loss(
        self,
        image: Float32,
        weights: Float64,
        gradient: Float32,
        losses: Float64,
        *,
        anchor: Float32,
        pixel_weights: Float32,
    ) -> None:
        """Add the gradient of the temporal loss: squared differences from what shall be kept.

        losses[n] = weights[n]·Σ m (x − anchor)²; Ruder et al. 2016, section 4.2.

        Args:
            image: (N, 3, H, W).
            weights: (N,) float64.
            gradient: (N, 3, H, W), added to.
            losses: (N,), overwritten.
            anchor: (N, 3, H, W), finite where m is 0, too.
            pixel_weights: m ≥ 0, (N, H, W).
        """
        _core.temporal_loss(image, anchor, pixel_weights, weights, gradient, losses, self.threads)

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
        """Store the pair s = x − x_prev, y = gradient − gradient_prev and take all dot products.

        One pass over memory. s and y are rounded to bfloat16 (nearest, ties to even), and the dot
        products are those of the rounded vectors: what the vector-free recursion of Chen et al.
        2014 needs. Then x_prev ← x and gradient_prev ← gradient.

        Args:
            x: (D,).
            x_prev: (D,), overwritten.
            gradient: (D,), at ``x``.
            gradient_prev: (D,), overwritten.
            history: (2m, D) uint16, the bits of bfloat16: s of slot i in row i, y in row m + i.
            slot: where the pair goes, from 0 to count − 1.
            count: slots 0 to count − 1 hold pairs, the new one included.
            dots: (3, 2m + 1) float64, overwritten: row 0 is s, row 1 y, row 2 the gradient; columns
                are the rows of ``history``, then the gradient. Empty slots have 0.
        """
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
        """Move: x = x_prev + Σ coefficients[i]·history[i] + gradient_coefficient·gradient.

        Args:
            history: (2m, D) uint16, as in ``lbfgs_update``.
            coefficients: (2m,) float64; rows whose coefficient is 0 are not read.
            gradient: (D,).
            x_prev: (D,).
            x: (D,), overwritten.
            gradient_coefficient: factor of ``gradient``.
        """
        _core.lbfgs_direction(
            history, coefficients, gradient, x_prev, x, gradient_coefficient, self.threads
        )

    def retract(self, x: Float32, x_prev: Float32, ratio: float) -> None:
        """Shorten the step taken: x = x_prev + ratio·(x − x_prev).

        Args:
            x: (D,), overwritten.
            x_prev: (D,).
            ratio: 0 returns to ``x_prev``, 1 stays.
        """
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
        """Take one step of Adam and clamp; Kingma & Ba 2015, algorithm 1.

        Args:
            x: (D,), updated, then clamped to [low, high].
            gradient: (D,), at ``x``.
            m: (D,), first moment, updated.
            v: (D,), second moment, updated.
            count: t of the paper: 1 for the first step.
            learning_rate: α of the paper.
            beta1: decay of the first moment, in [0, 1).
            beta2: decay of the second moment, in [0, 1).
            epsilon: added to the root of the second moment.
            low: least value of x.
            high: greatest value of x.

        Returns:
            gradient·gradient; not finite where the gradient is not.
        """
        # The bias corrections of algorithm 1, moved from the moments to the step.
        step = learning_rate / (1 - beta1**count)
        root_scale = 1 / math.sqrt(1 - beta2**count)
        squares: float = _core.adam_update(
            x, gradient, m, v, beta1, beta2, step, root_scale, epsilon, low, high, self.threads
        )
        return squares

    def clamp(self, x: Float32, low: float, high: float) -> None:
        """Clamp ``x``, of any shape, to [low, high] in place; a NaN stays a NaN."""
        _core.clamp(x, low, high, self.threads)
