"""The optimisation loop on a GPU: steps are enqueued, several at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nst_fast.backend import Backend
from nst_fast.config import StyleSettings
from nst_fast.device import DeviceArray
from nst_fast.errors import NonFiniteError
from nst_fast.gpu.optimizers import DeviceAdam, DeviceLbfgs, DeviceOptimizer, DeviceSmoothing
from nst_fast.gpu.plan import DevicePlan
from nst_fast.host import Float32, Float64
from nst_fast.smoothing import SHARE, taps

REPORT_EVERY = 10  # steps that a GPU is ahead of the host, at most


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
