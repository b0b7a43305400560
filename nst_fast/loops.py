"""The optimisation loop of one Plan: evaluate, move, again; on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from nst_fast.config import StyleSettings
from nst_fast.cuda import DeviceArray
from nst_fast.device import Float32, Float64
from nst_fast.device_plan import DevicePlan
from nst_fast.errors import NonFiniteError
from nst_fast.kernels import Kernels
from nst_fast.optimizers import Adam, Lbfgs, Optimizer
from nst_fast.optimizers.on_device import (
    DeviceAdam,
    DeviceLbfgs,
    DeviceOptimizer,
    DeviceSmoothing,
)
from nst_fast.plan import Backend, Plan
from nst_fast.smoothing import SHARE, Smoothing, taps

REPORT_EVERY = 10  # steps that a GPU is ahead of the host, at most


class Loop(Protocol):
    """Optimises the N images of a Plan, from those given at construction."""

    def advance(self, most: int) -> list[Float64]:
        """Take at least one step, at most ``most``.

        Returns:
            The weighted terms (N, K) of each evaluation, in order.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN at the first of these steps.
        """

    def best(self) -> Float32:
        """A copy of the images at the last accepted point, (N, 3, H, W); does not disturb."""


def make_loop(
    plan: Plan | DevicePlan, settings: StyleSettings, backend: Backend, image: Float32
) -> Loop:
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
        self._smoothing: Smoothing | None = None
        moved, bounds = plan.image, (0.0, 1.0)
        if settings.smoothing > 0:
            self._smoothing = Smoothing(plan.image, settings.smoothing, kernels)
            moved, bounds = self._smoothing.z, (-np.inf, np.inf)
        self._moved = moved
        x = moved.reshape(-1)
        self._optimizer: Optimizer = (
            Adam(x, kernels, learning_rate=settings.learning_rate, low=bounds[0], high=bounds[1])
            if settings.optimizer == "adam"
            else Lbfgs(x, kernels, history=settings.history)
        )

    def advance(self, most: int) -> list[Float64]:
        """Take one step; see ``Loop.advance``."""
        loss = float(self._plan.value_and_grad()[0])
        gradient = self._plan.gradient
        if self._smoothing is not None:
            self._smoothing.pull_back(gradient)
            gradient = self._smoothing.gradient
        self._optimizer.step(loss, gradient.reshape(-1))
        if self._smoothing is not None:
            self._smoothing.place()
        return [self._plan.terms.copy()]

    def best(self) -> Float32:
        """Copy the images at the last accepted point; see ``Loop.best``."""
        trial = self._moved.copy()
        try:
            self._optimizer.settle()
            if self._smoothing is not None:
                self._smoothing.place()
            return self._plan.image.copy()
        finally:
            np.copyto(self._moved, trial)
            if self._smoothing is not None:
                self._smoothing.place()


class DeviceLoop:
    """``Loop`` on a GPU: steps are enqueued, several at a time, and their terms read together."""

    def __init__(
        self, plan: DevicePlan, settings: StyleSettings, backend: Backend, image: Float32
    ) -> None:
        """Copy the image in, find a loss scale that fits, and record the step's kernels."""
        assert backend.launcher is not None
        self._launcher = launcher = backend.launcher
        self._plan = plan
        plan.set_image(image)
        plan.settle_scale()
        self._moved, self._smoothing = plan.image, None
        bounds = (0.0, 1.0)
        if settings.smoothing > 0:
            start, self._moved = (launcher.zeros(image.shape) for _ in range(2))
            launcher.copy(plan.image, start)
            self._smoothing = DeviceSmoothing(
                launcher, start, taps(settings.smoothing), share=SHARE
            )
            bounds = (-np.inf, np.inf)
        n = plan.image.shape[0]
        flat = [array.reshape(n, -1) for array in (self._moved, plan.gradient)]
        state = {"terms": plan.terms, "scale": plan.scale, "overflow": plan.overflow}
        state |= {"scaled": plan.scaled, "log": REPORT_EVERY}
        self._optimizer: DeviceOptimizer = (
            DeviceAdam(
                launcher,
                *flat,
                **state,
                learning_rate=settings.learning_rate,
                low=bounds[0],
                high=bounds[1],
            )
            if settings.optimizer == "adam"
            else DeviceLbfgs(launcher, *flat, **state, history=settings.history)
        )
        self._finish = launcher.capture(
            _finishing(plan, self._optimizer, self._moved, self._smoothing)
        )
        self._taken = 0  # evaluations

    def advance(self, most: int) -> list[Float64]:
        """Take up to ``REPORT_EVERY`` steps; see ``Loop.advance``."""
        for _ in range(min(most, REPORT_EVERY)):
            self._plan.evaluate_taps()
            self._finish()
        found = self._optimizer.read()
        failed = found.failed[found.failed > 0]
        good = len(found.terms)
        if failed.size:
            good = int(failed.min()) - 1 - self._taken
        if good <= 0:
            raise NonFiniteError(
                f"the loss or the gradient is not finite at evaluation {failed.min()}"
            )
        self._taken += good
        return list(found.terms[:good])

    def best(self) -> Float32:
        """Copy the images at the last accepted point to the host; see ``Loop.best``."""
        if self._smoothing is None:
            best: Float32 = self._launcher.download(self._optimizer.best)
            return best.reshape(self._plan.image.shape)
        self._smoothing.place(self._optimizer.best, self._plan.image)
        best = self._launcher.download(self._plan.image)
        self._smoothing.place(self._moved, self._plan.image)
        return best


def _finishing(
    plan: DevicePlan,
    optimizer: DeviceOptimizer,
    moved: DeviceArray,
    smoothing: DeviceSmoothing | None,
) -> Callable[[], None]:
    """What ends a step, from the provider's gradient to the next picture.

    It does not know the loop: that would be a cycle, and keep the GPU's memory until the next
    collection.
    """

    def finish() -> None:
        plan.evaluate_picture()
        if smoothing is not None:
            smoothing.pull_back(plan.gradient)
        optimizer.step()
        if smoothing is not None:
            smoothing.place(moved, plan.image)

    return finish
