"""The optimisation loop of one Plan: evaluate, move, again; on the CPU or on a GPU."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nst_fast.averaging import Average
from nst_fast.backend import Backend
from nst_fast.config import StyleSettings
from nst_fast.gpu.loop import DeviceLoop
from nst_fast.gpu.plan import DevicePlan
from nst_fast.host import Float32, Float64
from nst_fast.kernels import Kernels
from nst_fast.optimizers import Adam, Lbfgs, Optimizer
from nst_fast.plan import AnyPlan, Plan
from nst_fast.smoothing import Pixels, Smoothing, Variable, variable_arrays
from nst_fast.state import HOST, Arrays, State


class Loop(Protocol):
    """Optimises the N images of a Plan, from those given at construction."""

    def advance(self, most: int, beyond: int = 0) -> list[Float64]:
        """Take at least one step, at most ``most``.

        Args:
            most: steps to tell of.
            beyond: steps behind them that may be under way when this returns. They are told of by
                the next calls, which ask for no fewer; where none follows, they never happened.

        Returns:
            The weighted terms (N, K) of each evaluation, in order.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN at the first of these steps.
        """

    def settle(self) -> list[Float64]:
        """Wait for the steps that are under way; their terms, as of :meth:`advance`."""

    def best(self) -> Float32:
        """A copy of the images at the last accepted point, (N, 3, H, W); does not disturb.

        It is that of the steps told of, whatever is under way. Where the settings ask for an
        average, at the mean of those points.
        """

    def state(self) -> Arrays:
        """All that the next steps depend on; to be used, and left as it is, before the next one.

        No step may be under way: see :meth:`settle`.
        """

    def restore(self, state: State) -> None:
        """Go on from a state of the same images and settings.

        Raises:
            StateError: it does not fit.
        """


def make_loop(plan: AnyPlan, settings: StyleSettings, backend: Backend, image: Float32) -> Loop:
    """Start a loop at an image (N, 3, H, W)."""
    if isinstance(plan, DevicePlan):
        return DeviceLoop(plan, settings, backend, image)
    return HostLoop(plan, settings, backend.kernels, image)


class HostLoop:
    """``Loop`` on numpy arrays, of one picture."""

    def __init__(
        self, plan: Plan, settings: StyleSettings, kernels: Kernels, image: Float32
    ) -> None:
        """Copy the image in and allocate the optimiser's state."""
        self._plan = plan
        np.copyto(plan.image, image)
        self._variable: Variable = (
            Smoothing(plan.image, plan.gradient, settings.smoothing, kernels)
            if settings.smoothing > 0
            else Pixels(plan.image, plan.gradient)
        )
        z, (low, high) = self._variable.z.reshape(-1), self._variable.bounds
        self._optimizer: Optimizer = (
            Adam(z, kernels, learning_rate=settings.learning_rate, low=low, high=high)
            if settings.optimizer == "adam"
            else Lbfgs(z, kernels, history=settings.history)
        )
        self._average = Average(z, settings.average, HOST) if settings.average > 1 else None

    def advance(self, most: int, beyond: int = 0) -> list[Float64]:
        """Take one step; see ``Loop.advance``."""
        loss = float(self._plan.value_and_grad()[0])
        self._variable.pull_back()
        self._optimizer.step(loss, self._variable.gradient.reshape(-1))
        self._variable.place()
        if self._average is not None:
            self._average.add(self._optimizer.best)
        return [self._plan.terms.copy()]

    def settle(self) -> list[Float64]:
        """Nothing is under way; see ``Loop.settle``."""
        return []

    def best(self) -> Float32:
        """Copy the images at the last accepted point; see ``Loop.best``."""
        found = self._optimizer.best if self._average is None else self._average.mean
        try:
            best: Float32 = self._variable.place(found.reshape(self._plan.image.shape)).copy()
            return best
        finally:
            self._variable.place()

    def state(self) -> Arrays:
        """The arrays themselves, not copies; see ``Loop.state``."""
        average = {} if self._average is None else self._average.state()
        return {**variable_arrays(self._variable), **self._optimizer.state(), **average}

    def restore(self, state: State) -> None:
        """Go on from a state; see ``Loop.restore``."""
        state.into(variable_arrays(self._variable))
        self._optimizer.restore(state)
        if self._average is not None:
            self._average.restore(state)
        self._variable.place()
