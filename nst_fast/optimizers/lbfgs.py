"""L-BFGS, one evaluation a step, history in bfloat16.

The two-loop recursion (Nocedal & Wright 2006, algorithm 7.4) runs on coefficients instead of
vectors (Chen et al. 2014, "Large-scale L-BFGS using MapReduce"): the basis is the pairs s, y and
the gradient, their (2m+1)² dot products are kept in float64, and each step costs two passes over
memory.
"""

from __future__ import annotations

import math

import numpy as np

from nst_fast.errors import NonFiniteError
from nst_fast.host import Float32, Float64
from nst_fast.kernels import Kernels
from nst_fast.state import Arrays, State

SUFFICIENT_DECREASE = 1e-4  # c1 of Armijo's rule, Nocedal & Wright equation 3.4
LEAST_CURVATURE = 1e-4  # s·y / (‖s‖‖y‖) of a pair worth keeping; noise alone gives about 1/√D
BACKTRACKS = 4  # refused points before the history is dropped
SHORTEN = (0.1, 0.5)  # bounds of one backtrack, Nocedal & Wright section 3.5


class Lbfgs:
    """``Optimizer`` with limited memory, for losses and gradients with bfloat16 noise.

    A point is accepted if Armijo's rule holds, or if its loss is within ``noise`` of the best
    accepted one: as the best never rises, the loss cannot drift. A refused point is backtracked,
    and x stays within reach of the last accepted point whatever the loss does.
    """

    def __init__(
        self,
        x: Float32,
        kernels: Kernels,
        *,
        history: int = 10,
        first_step: float = 0.02,
        max_step: float = 0.1,
        noise: float = 1e-3,
    ) -> None:
        """Allocate the history.

        Args:
            x: (D,) float32, moved in place by every step.
            kernels: of the device that holds ``x``.
            history: pairs remembered, m.
            first_step: length of a step along the gradient alone, as root mean square over x.
            max_step: greatest length of any step, likewise.
            noise: relative error of the loss that is not taken for an increase.
        """
        self._x = x
        self._kernels = kernels
        self.best = kernels.zeros(x.shape)  # x_prev: the last accepted point
        self.best[:] = x
        self._gradient_prev = kernels.zeros(x.shape)
        self._history = kernels.zeros((2 * history, x.size), np.uint16)
        self._memory = history
        self._first_step, self._max_step, self._noise = first_step, max_step, noise

        self._dots = np.zeros((3, 2 * history + 1))
        self._products = np.zeros((2 * history + 1, 2 * history + 1))  # of s..., y..., gradient
        self._slots: list[int] = []  # that hold pairs, oldest first
        self._filled = 0  # slots ever written

        self._evaluations = 0
        self._backtracks = 0
        self._loss = math.inf  # at x_prev
        self._least = math.inf
        self._slope = 0.0  # gradient(x_prev)·(x − x_prev)
        self._length = 0.0  # of x − x_prev, root mean square
        self._radius = first_step  # of the next step along the gradient

    def step(self, loss: float, gradient: Float32) -> bool:
        """Judge the trial point and move x to the next; see ``Optimizer.step``."""
        self._evaluations += 1
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is not finite at evaluation {self._evaluations}")
        if not self._acceptable(loss):
            self._retreat(loss)
            return False
        self._store_pair(gradient)
        self._loss, self._least = loss, min(self._least, loss)
        self._backtracks = 0
        self._radius = min(2 * self._radius, self._first_step)
        self._advance()
        return True

    def state(self) -> Arrays:
        """The history as it is stored, and where the line search is; see ``Optimizer.state``."""
        slots = np.array(self._slots + [-1] * (self._memory - len(self._slots)))
        return {
            "accepted": self.best,
            "gradient": self._gradient_prev,
            "history": self._history,
            "products": self._products,
            "slots": slots,
            "counts": np.array([self._filled, self._evaluations, self._backtracks]),
            "search": np.array([self._loss, self._least, self._slope, self._length, self._radius]),
        }

    def restore(self, state: State) -> None:
        """Go on from a state; see ``Optimizer.restore``."""
        here = self.state()
        state.into(here)
        self._slots = [slot for slot in here["slots"].tolist() if slot >= 0]
        self._filled, self._evaluations, self._backtracks = here["counts"].tolist()
        self._loss, self._least, self._slope, self._length, self._radius = here["search"].tolist()

    def _acceptable(self, loss: float) -> bool:
        enough = self._loss + SUFFICIENT_DECREASE * self._slope
        return loss <= max(enough, self._least + self._noise * abs(self._least))

    def _store_pair(self, gradient: Float32) -> None:
        """Take the dot products of the new pair and gradient; keep the pair if it is curved."""
        m, first = self._memory, self._evaluations == 1
        slot = self._free_slot()
        self._filled = max(self._filled, slot + 1)
        self._kernels.lbfgs_update(
            self._x,
            self.best,
            gradient,
            self._gradient_prev,
            self._history,
            slot=slot,
            count=self._filled,
            dots=self._dots,
        )
        for index, row in zip((slot, m + slot, 2 * m), self._dots, strict=True):
            self._products[index, :] = self._products[:, index] = row
        squares = self._products[2 * m, 2 * m]
        if not math.isfinite(squares):
            raise NonFiniteError(f"the gradient is not finite at evaluation {self._evaluations}")
        ss, sy, yy = (self._products[i, j] for i, j in _corners(slot, m))
        if not first and sy > LEAST_CURVATURE * math.sqrt(ss * yy):
            self._slots.append(slot)

    def _free_slot(self) -> int:
        """Return a slot that holds no pair, dropping the oldest where all do."""
        if len(self._slots) == self._memory:
            return self._slots.pop(0)
        return next(slot for slot in range(self._memory) if slot not in self._slots)

    def _advance(self) -> None:
        """Step from the accepted point along −Hg, or along the gradient alone."""
        coefficients = self._two_loop()
        slope = float(coefficients @ self._products[-1])
        if not self._slots or not slope < 0:
            self._steepest(self._radius)
            return
        self._move(coefficients, self._max_step)

    def _two_loop(self) -> Float64:
        """Return −Hg as coefficients of the basis: algorithm 7.4 on the dot products."""
        m, products = self._memory, self._products
        coefficients = np.zeros(2 * m + 1)
        coefficients[-1] = -1.0
        alphas: dict[int, float] = {}
        for slot in reversed(self._slots):
            alphas[slot] = float(coefficients @ products[slot]) / products[slot, m + slot]
            coefficients[m + slot] -= alphas[slot]
        if self._slots:
            ss, sy, yy = (products[i, j] for i, j in _corners(self._slots[-1], m))
            # H₀ = γI, equation 7.20 over the root of the cosine between s and y: y·y holds all of
            # the gradient's noise, which would shorten every step.
            coefficients *= sy / yy / math.sqrt(sy / math.sqrt(ss * yy))
        for slot in self._slots:
            beta = float(coefficients @ products[m + slot]) / products[slot, m + slot]
            coefficients[slot] += alphas[slot] - beta
        return coefficients

    def _steepest(self, length: float) -> None:
        """Drop the history and step along the gradient, ``length`` far (root mean square)."""
        self._slots.clear()
        coefficients = np.zeros(2 * self._memory + 1)
        rms = math.sqrt(self._products[-1, -1] / self._x.size)
        coefficients[-1] = -length / rms if rms > 0 else 0.0
        self._move(coefficients, length)

    def _move(self, coefficients: Float64, longest: float) -> None:
        """Set x to x_prev plus the combination of the basis, shortened to ``longest``."""
        square = float(coefficients @ self._products @ coefficients)
        length = math.sqrt(max(square, 0.0) / self._x.size)
        if length > longest:
            coefficients = coefficients * (longest / length)
            length = longest
        self._slope = float(coefficients @ self._products[-1])
        self._length = length
        self._kernels.lbfgs_direction(
            self._history,
            coefficients[:-1],
            self._gradient_prev,
            self.best,
            self._x,
            gradient_coefficient=float(coefficients[-1]),
        )

    def _retreat(self, loss: float) -> None:
        """Shorten the step to the minimum of the parabola, or give the history up."""
        self._backtracks += 1
        curvature = loss - self._loss - self._slope  # above 0: the point was refused
        ratio = float(np.clip(-self._slope / (2 * curvature), *SHORTEN))
        if self._backtracks > BACKTRACKS:
            self._backtracks = 0
            # Where the gradient's own step failed, go on from its length.
            self._radius = 0.1 * self._radius if self._slots else ratio * self._length
            self._steepest(self._radius)
            return
        self._length *= ratio
        self._slope *= ratio
        self._kernels.retract(self._x, self.best, ratio)


def _corners(slot: int, memory: int) -> tuple[tuple[int, int], ...]:
    """Return where the dot products s·s, s·y and y·y of a slot are."""
    s, y = slot, memory + slot
    return (s, s), (s, y), (y, y)
