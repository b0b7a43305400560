"""Optimisers over preallocated state: ask and tell, one evaluation per call."""

from __future__ import annotations

from typing import Protocol

from nst_fast.host import Float32
from nst_fast.optimizers.adam import Adam
from nst_fast.optimizers.lbfgs import Lbfgs
from nst_fast.state import Arrays, State

__all__ = ["Adam", "Lbfgs", "Optimizer"]


class Optimizer(Protocol):
    """Moves one picture x, the array given at construction, in place.

    The caller evaluates the loss and its gradient at x and hands them to ``step``, again and again.

    Attributes:
        best: (D,) float32, the last accepted point, which is the result; ``x`` itself where none is
            refused.
    """

    best: Float32

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

    def state(self) -> Arrays:
        """All but x that the next steps depend on; arrays of its own, to be left as they are."""

    def restore(self, state: State) -> None:
        """Go on from a state of the same kind; raises StateError where it does not fit."""
