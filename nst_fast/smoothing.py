"""The optimiser moves a smoothed picture: x = x₀ + B z, and sees z and the gradient Bᵀ ∂L/∂x.

    B = ¼·I + ¾·G

where G is a Gaussian along columns and rows, the picture mirrored at its borders: B is symmetric,
and leaves a constant as it is. The change of variables makes smooth changes the cheap ones for
L-BFGS. Ripples of the highest frequencies, which style statistics hardly see, no longer grow as
fast as strokes do, and likeness survives; what is left of I lets fine detail through.

It has to be a Gaussian: no other filter along columns and rows treats all directions alike, and one
that damps diagonals more leaves a weave of horizontal and vertical lines.
"""

from __future__ import annotations

import math

import numpy as np

from nst_fast.host import Float32
from nst_fast.kernels import Kernels

SHARE = 0.25  # of I in B
REACH = 3.0  # standard deviations that the taps go


def taps(corner: float) -> Float32:
    """Of G, (r + 1,): the middle, then both neighbours at distance 1 to r; in all they sum to 1.

    ``corner`` is the frequency, in cycles a pixel and above 0, at which a step's effect B² falls to
    a half: SHARE + (1 − SHARE)·exp(−(2π·corner·σ)²/2) = √½.
    """
    left = (math.sqrt(0.5) - SHARE) / (1.0 - SHARE)
    sigma = math.sqrt(-2.0 * math.log(left)) / (2.0 * math.pi * corner)
    distances = np.arange(math.ceil(REACH * sigma) + 1)
    weights = np.exp(-0.5 * (distances / sigma) ** 2)
    weights /= weights[0] + 2.0 * weights[1:].sum()
    found: Float32 = weights.astype(np.float32)
    return found


class Smoothing:
    """x and z of pictures on the CPU.

    Attributes:
        z: (N, 3, H, W) float32, 0 at first: what an optimiser moves.
        gradient: (N, 3, H, W) float32, at z: overwritten by :meth:`pull_back`.
    """

    def __init__(self, x: Float32, corner: float, kernels: Kernels) -> None:
        """Start at ``x``, (N, 3, H, W), which :meth:`place` overwrites."""
        self.z: Float32 = kernels.zeros(x.shape)
        self.gradient: Float32 = kernels.zeros(x.shape)
        self._x, self._start = x, x.copy()
        self._taps, self._kernels = taps(corner), kernels

    def place(self) -> None:
        """Write x = x₀ + B z."""
        self._kernels.smooth(self.z, self._taps, self._x, share=SHARE, base=self._start)

    def pull_back(self, gradient: Float32) -> None:
        """From the gradient at x, the one at z."""
        self._kernels.smooth(gradient, self._taps, self.gradient, share=SHARE)
