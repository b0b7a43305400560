"""Optimisers over preallocated state: ask and tell, one evaluation per call."""

from __future__ import annotations

from typing import Protocol

from nst_fast.host import Float32
from nst_fast.optimizers.adam import Adam
from nst_fast.optimizers.lbfgs import Lbfgs

__all__ = ["Adam", "Lbfgs", "Optimizer"]


class Optimizer(Protocol):
    """Moves one picture x, the array given at construction, in place.

    The caller evaluates the loss and its gradient at x and hands them to ``step``, again and again,
    and calls ``settle`` before it uses x as the result.
    """

    def step(self, loss: float, gradient: Float32) -> bool:
        """Take the loss and gradient at the current x and move x to the next trial point.

        Args:
            loss: at x.
            gradient: (D,) float32, at x; not kept, not modified.

        Returns:
            Whether the point just evaluated was accepted.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; the message names the
                evaluation.
        """

    def settle(self) -> None:
        """Leave x where the result is: at the last accepted point, where points can be refused."""
