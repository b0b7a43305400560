"""The optimisation loop of one Plan: evaluate, move, again; on the CPU or on a GPU."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nst_fast.config import StyleSettings
from nst_fast.device import Float32, Float64
from nst_fast.device_plan import DevicePlan
from nst_fast.errors import NonFiniteError
from nst_fast.kernels import Kernels
from nst_fast.optimizers import Adam, Lbfgs, Optimizer
from nst_fast.optimizers.on_device import DeviceAdam, DeviceLbfgs
from nst_fast.plan import Backend, Plan

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
        np.copyto(plan.image, image)
        self._plan = plan
        x = plan.image.reshape(-1)
        self._optimizer: Optimizer = (
            Adam(x, kernels, learning_rate=settings.learning_rate)
            if settings.optimizer == "adam"
            else Lbfgs(x, kernels, history=settings.history)
        )

    def advance(self, most: int) -> list[Float64]:
        """Take one step; see ``Loop.advance``."""
        loss = float(self._plan.value_and_grad()[0])
        self._optimizer.step(loss, self._plan.gradient.reshape(-1))
        return [self._plan.terms.copy()]

    def best(self) -> Float32:
        """Copy the images at the last accepted point; see ``Loop.best``."""
        image = self._plan.image
        trial = image.copy()
        try:
            self._optimizer.settle()
            return image.copy()
        finally:
            np.copyto(image, trial)


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
        n = plan.image.shape[0]
        flat = [array.reshape(n, -1) for array in (plan.image, plan.gradient)]
        arrays = (launcher, flat[0], plan.parts, flat[1])
        state = {"terms": plan.terms, "scale": plan.scale, "overflow": plan.overflow}
        self._optimizer = optimizer = (
            DeviceAdam(*arrays, **state, log=REPORT_EVERY, learning_rate=settings.learning_rate)
            if settings.optimizer == "adam"
            else DeviceLbfgs(*arrays, **state, log=REPORT_EVERY, history=settings.history)
        )

        # Of self it would be a cycle, and keep the GPU's memory until the next collection.
        def finish() -> None:
            plan.evaluate_picture()
            optimizer.step()

        self._finish = launcher.capture(finish)
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
        best: Float32 = self._launcher.download(self._optimizer.best)
        return best.reshape(self._plan.image.shape)
