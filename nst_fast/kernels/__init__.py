"""Kernels for features, pictures and optimisers: the CPU's behind a protocol, a GPU's beside them.

A GPU's (``taps``, ``picture``) are objects that keep their arrays and enqueue, so that a step waits
for nothing; their optimisers are in ``nst_fast.gpu.optimizers``.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from nst_fast.errors import NstError

Array = NDArray[Any]


class Kernels(Protocol):
    """The kernels of the CPU.

    N images, C channels, P = H·W pixels, D elements of a picture. Arrays are numpy's,
    C-contiguous float32, scales, factors and losses (N,) float64, unless said otherwise. Arrays
    that are written must not overlap any other argument, unless said otherwise. All methods raise
    ShapeError where an array does not fit; the message gives both shapes. The same call gives the
    same bits, for any number of threads. NaN and infinity propagate.
    """

    def zeros(self, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
        """Allocate a zeroed, aligned array."""

    def moments(
        self,
        features: Array,
        scales: Array,
        out: Array,
        *,
        pixel_weights: Array | None = None,
        accumulate: bool = False,
    ) -> None:
        """Write each image's moments: Gram matrix, sums and number of pixels in one matrix.

        M[n] = [M[n] +] scales[n]·Σ_p m_p f~_p f~_pᵀ with f~ = [f; 1], exactly symmetric. Its last
        row and column hold scales·Σ m f, its corner scales·Σ m.

        Args:
            features: (N, C, P).
            scales: (N,).
            out: (N, C + 1, C + 1), overwritten, or added to if ``accumulate``.
            pixel_weights: m ≥ 0, (N, P) or (P,) for all images; None: all 1.
            accumulate: add to what ``out`` holds; of that only the upper triangle is read.
        """

    def pull_back(
        self,
        features: Array,
        derivative: Array,
        out: Array,
        *,
        pixel_weights: Array | None = None,
        content: Array | None = None,
        content_factors: Array | None = None,
        content_losses: Array | None = None,
    ) -> None:
        """Write the gradient at the features: of a function of the moments, and of the content.

        out = (A F + b 1ᵀ) diag(m) + 2·c[n]·m∘(F − content).

        Args:
            features: (N, C, P).
            derivative: [A b], (N, C, C + 1), A symmetric: 2·scales[n] times the first C rows of
                the function's symmetric derivative at the moments.
            out: (N, C, P), overwritten.
            pixel_weights: m, those of the moments.
            content: (N, C, P); None: no content term.
            content_factors: c, (N,); with ``content`` only.
            content_losses: (N,), overwritten by c[n]·Σ m (F − content)²; with ``content`` only.
        """

    def content_pull_back(
        self,
        features: Array,
        content: Array,
        factors: Array,
        out: Array,
        losses: Array,
        *,
        pixel_weights: Array | None = None,
    ) -> None:
        """Write the gradient of the content term alone: out = 2·c[n]·m∘(F − content).

        Args:
            features: (N, C, P).
            content: (N, C, P).
            factors: c, (N,).
            out: (N, C, P), overwritten.
            losses: (N,), overwritten by c[n]·Σ m (F − content)².
            pixel_weights: m ≥ 0, (N, P) or (P,) for all images; None: all 1.
        """

    def extend(self, image: Array, rows: Array, columns: Array, canvas: Array) -> None:
        """Show pictures on a larger canvas: canvas[i, j] = image[rows[i], columns[j]].

        Any tables do; those of a mirrored margin, long runs that count up by 1, are copied fast.

        Args:
            image: (N, K, H, W).
            rows: (H',) int32, from 0 to H − 1.
            columns: (W',) int32, from 0 to W − 1.
            canvas: (N, K, H', W'), overwritten.
        """

    def fold(self, canvas: Array, rows: Array, columns: Array, image: Array) -> None:
        """Add every value of a canvas to the pixel it shows: the adjoint of ``extend``.

        Args:
            canvas: (N, K, H', W').
            rows: (H',) int32, from 0 to H − 1.
            columns: (W',) int32, from 0 to W − 1.
            image: (N, K, H, W), overwritten; 0 where the canvas does not show a pixel.
        """

    def smooth(
        self, image: Array, taps: Array, out: Array, *, share: float, base: Array | None = None
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

    def total_variation(self, image: Array, weights: Array, gradient: Array, losses: Array) -> None:
        """Add the gradient of the total variation: squared differences of neighbouring pixels.

        losses[n] = weights[n]·(Σ(x[i,j+1] − x[i,j])² + Σ(x[i+1,j] − x[i,j])²).

        Args:
            image: (N, 3, H, W).
            weights: (N,) float64.
            gradient: (N, 3, H, W), added to.
            losses: (N,), overwritten.
        """

    def range_penalty(self, image: Array, weights: Array, gradient: Array, losses: Array) -> None:
        """Add the gradient of the penalty on pixels outside [0, 1].

        losses[n] = weights[n]·Σ (x − clamp(x, 0, 1))².

        Args:
            image: (N, 3, H, W).
            weights: (N,) float64.
            gradient: (N, 3, H, W), added to.
            losses: (N,), overwritten.
        """

    def lbfgs_update(
        self,
        x: Array,
        x_prev: Array,
        gradient: Array,
        gradient_prev: Array,
        history: Array,
        *,
        slot: int,
        count: int,
        dots: Array,
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

    def lbfgs_direction(
        self,
        history: Array,
        coefficients: Array,
        gradient: Array,
        x_prev: Array,
        x: Array,
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

    def retract(self, x: Array, x_prev: Array, ratio: float) -> None:
        """Shorten the step taken: x = x_prev + ratio·(x − x_prev).

        Args:
            x: (D,), overwritten.
            x_prev: (D,).
            ratio: 0 returns to ``x_prev``, 1 stays.
        """

    def adam_update(
        self,
        x: Array,
        gradient: Array,
        m: Array,
        v: Array,
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

    def clamp(self, x: Array, low: float, high: float) -> None:
        """Clamp ``x``, of any shape, to [low, high] in place; a NaN stays a NaN."""


def cpu_kernels(threads: int) -> Kernels:
    """Return the CPU's kernels, running on the given number of threads.

    Raises:
        NstError: the compiled module is missing.
        SettingsError: ``threads`` is not a whole number above 0.
    """
    try:
        from nst_fast.kernels.cpu import CpuKernels
    except ImportError as error:
        raise NstError(
            f"the compiled module nst_fast._core is missing ({error}): "
            "build it with 'pip install -e .'"
        ) from error
    return CpuKernels(threads)
