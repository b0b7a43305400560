"""Smoothing of N pictures on a GPU, by ``csrc/steps.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_fast.device import ADDRESS, DeviceArray, Launcher, describe
from nst_fast.gpu.picture import THREADS
from nst_fast.smoothing import SHARE, taps

SIDE = 32  # rows and columns of a block, as in steps.cu
MOST_RADIUS = 48  # of steps.cu

# Smoothing of steps.cu.
SMOOTHING = np.dtype(
    [
        *((name, ADDRESS) for name in ("image", "start", "out", "taps")),
        *((name, np.int32) for name in ("radius", "height", "width")),
        ("share", np.float32),
    ],
    align=True,
)


class DeviceSmoothing:
    """``Variable`` of x = x₀ + B z on a GPU.

    Attributes:
        z: (N, 3, H, W) float32, 0 at first: what an optimiser moves.
        start: (N, 3, H, W) float32, x₀.
        gradient: (N, 3, H, W) float32, at z: overwritten by :meth:`pull_back`.
        bounds: none.
    """

    bounds = (-np.inf, np.inf)

    def __init__(
        self, launcher: Launcher, x: DeviceArray, gradient: DeviceArray, corner: float
    ) -> None:
        """Start at ``x``, (N, 3, H, W) float32, which :meth:`place` overwrites.

        Args:
            launcher: where the arrays are.
            x: the pictures.
            gradient: like x, at x.
            corner: as for ``taps``; one whose radius is above ``MOST_RADIUS`` is no setting.
        """
        g = taps(corner)
        assert g.size - 1 <= MOST_RADIUS
        self._launcher, self._x = launcher, x
        self.z = launcher.zeros(x.shape)
        self.gradient = launcher.zeros(x.shape)
        self.start = launcher.zeros(x.shape)
        launcher.copy(x, self.start)
        n, channels, height, width = x.shape
        self._values = {
            "start": self.start,
            "taps": launcher.put(g),
            "radius": g.size - 1,
            "height": height,
            "width": width,
            "share": SHARE,
        }
        self._grid = -(-width // SIDE), -(-height // SIDE), n * channels
        self._place = self._describe(image=self.z, out=x)
        self._held = gradient
        self._pull_back = self._describe(image=gradient, out=self.gradient, start=None)

    def place(self, z: DeviceArray | None = None) -> DeviceArray:
        """Enqueue x = x₀ + B z; see ``Variable.place``."""
        self._smooth(self._place if z is None else self._describe(image=z, out=self._x))
        return self._x

    def pull_back(self) -> None:
        """Enqueue: the gradient at x becomes the one at z."""
        self._smooth(self._pull_back)

    def _describe(self, **values: DeviceArray | None) -> NDArray[Any]:
        return describe(self._launcher, SMOOTHING, self._values | values)

    def _smooth(self, smoothing: NDArray[Any]) -> None:
        self._launcher.launch("smooth", self._grid, THREADS, [smoothing])
