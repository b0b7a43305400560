"""Adam: Kingma & Ba 2015, algorithm 1, with x clamped to a range."""

from __future__ import annotations

import math

import numpy as np

from nst_fast.errors import NonFiniteError
from nst_fast.host import Float32
from nst_fast.kernels import Kernels
from nst_fast.state import Arrays, State


class Adam:
    """``Optimizer`` that accepts every point."""

    def __init__(
        self,
        x: Float32,
        kernels: Kernels,
        *,
        learning_rate: float = 0.02,
        beta1: float = 0.9,
        beta2: float = 0.99,
        epsilon: float = 1e-8,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        """Allocate the moments.

        Args:
            x: (D,) float32, moved in place by every step.
            kernels: of the device that holds ``x``.
            learning_rate: step in the units of x.
            beta1: decay of the first moment, in [0, 1).
            beta2: decay of the second moment, in [0, 1).
            epsilon: added to the root of the second moment.
            low: least value of x.
            high: greatest value of x.
        """
        self.best = self._x = x
        self._kernels = kernels
        self._first = kernels.zeros(x.shape)
        self._second = kernels.zeros(x.shape)
        self._learning_rate = learning_rate
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._low, self._high = low, high
        self._evaluations = 0

    def step(self, loss: float, gradient: Float32) -> bool:
        """Move x by one step of Adam; see ``Optimizer.step``."""
        self._evaluations += 1
        # Before the update: x would not survive it.
        for what, value in (("loss", loss), ("gradient", float(gradient @ gradient))):
            if not math.isfinite(value):
                raise NonFiniteError(f"the {what} is not finite at evaluation {self._evaluations}")
        self._kernels.adam_update(
            self._x,
            gradient,
            self._first,
            self._second,
            count=self._evaluations,
            learning_rate=self._learning_rate,
            beta1=self._beta1,
            beta2=self._beta2,
            epsilon=self._epsilon,
            low=self._low,
            high=self._high,
        )
        return True

    def state(self) -> Arrays:
        """The moments, and how many steps they are from; see ``Optimizer.state``."""
        counts = np.array([self._evaluations])
        return {"first": self._first, "second": self._second, "counts": counts}

    def restore(self, state: State) -> None:
        """Go on from a state; see ``Optimizer.restore``."""
        here = self.state()
        state.into(here)
        (self._evaluations,) = here["counts"].tolist()
