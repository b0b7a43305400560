"""What an optimiser moves: a smoothed picture, x = x₀ + B z, or its pixels.

    B = ¼·I + ¾·G

It sees z and the gradient Bᵀ ∂L/∂x. G is a Gaussian along columns and rows, the picture mirrored at
its borders: B is symmetric, and leaves a constant as it is. The change of variables makes smooth
changes the cheap ones for L-BFGS. Ripples of the highest frequencies, which style statistics hardly
see, no longer grow as fast as strokes do, and likeness survives; what is left of I lets fine detail
through.

It has to be a Gaussian: no other filter along columns and rows treats all directions alike, and one
that damps diagonals more leaves a weave of horizontal and vertical lines.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from nst_fast.device import DeviceArray
from nst_fast.host import Float32
from nst_fast.kernels import Kernels

SHARE = 0.25  # of I in B
REACH = 3.0  # standard deviations that the taps go


def taps(corner: float) -> Float32:
    """Of G; see ``gaussian``.

    ``corner`` is the frequency, in cycles a pixel and above 0, at which a step's effect B² falls to
    a half: SHARE + (1 − SHARE)·exp(−(2π·corner·σ)²/2) = √½.
    """
    left = (math.sqrt(0.5) - SHARE) / (1.0 - SHARE)
    return gaussian(math.sqrt(-2.0 * math.log(left)) / (2.0 * math.pi * corner))


def gaussian(sigma: float) -> Float32:
    """Taps of one of ``sigma`` pixels, above 0, along a line, (r + 1,).

    The middle, then both neighbours at distance 1 to r; in all they sum to 1.
    """
    distances = np.arange(math.ceil(REACH * sigma) + 1)
    weights = np.exp(-0.5 * (distances / sigma) ** 2)
    weights /= weights[0] + 2.0 * weights[1:].sum()
    found: Float32 = weights.astype(np.float32)
    return found


class Variable(Protocol):
    """What an optimiser moves: z, of which pictures x, (N, 3, H, W) float32, are made.

    Attributes:
        z: like x, moved in place.
        start: like x, x₀; None where z is x.
        gradient: like x, at z, after :meth:`pull_back`.
        bounds: least and greatest value of z.
    """

    z: DeviceArray
    start: DeviceArray | None
    gradient: DeviceArray
    bounds: tuple[float, float]

    def place(self, z: DeviceArray | None = None) -> DeviceArray:
        """Make x of ``z``, the one that is moved by default, and return it."""

    def pull_back(self) -> None:
        """From the gradient at x, the one at z."""


def variable_arrays(variable: Variable) -> dict[str, DeviceArray]:
    """What a variable goes on from, by name."""
    start = {} if variable.start is None else {"start": variable.start}
    return {"z": variable.z} | start


class Pixels:
    """``Variable`` of which z is x: each pixel is moved alone."""

    bounds = (0.0, 1.0)
    start: DeviceArray | None = None

    def __init__(self, x: DeviceArray, gradient: DeviceArray) -> None:
        """Move ``x``, whose gradient it is; both (N, 3, H, W) float32."""
        self.z, self.gradient = x, gradient

    def place(self, z: DeviceArray | None = None) -> DeviceArray:
        """Return z, which is the picture; see ``Variable.place``."""
        return self.z if z is None else z

    def pull_back(self) -> None:
        """Leave the gradient; see ``Variable.pull_back``."""


class Smoothing:
    """``Variable`` of x = x₀ + B z on the CPU.

    Attributes:
        z: (N, 3, H, W) float32, 0 at first: what an optimiser moves.
        start: (N, 3, H, W) float32, x₀.
        gradient: (N, 3, H, W) float32, at z: overwritten by :meth:`pull_back`.
        bounds: none.
    """

    bounds = (-np.inf, np.inf)

    def __init__(self, x: Float32, gradient: Float32, corner: float, kernels: Kernels) -> None:
        """Start at ``x``, (N, 3, H, W), which :meth:`place` overwrites; ``gradient`` is at x."""
        self.z: Float32 = kernels.zeros(x.shape)
        self.gradient: Float32 = kernels.zeros(x.shape)
        self.start: DeviceArray | None = x.copy()
        self._x, self._gradient = x, gradient
        self._taps, self._kernels = taps(corner), kernels

    def place(self, z: Float32 | None = None) -> Float32:
        """Write x = x₀ + B z; see ``Variable.place``."""
        moved = self.z if z is None else z
        self._kernels.smooth(moved, self._taps, self._x, share=SHARE, base=self.start)
        return self._x

    def pull_back(self) -> None:
        """Write Bᵀ ∂L/∂x; see ``Variable.pull_back``."""
        self._kernels.smooth(self._gradient, self._taps, self.gradient, share=SHARE)
