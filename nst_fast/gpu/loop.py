"""The optimisation loop on a GPU: steps are enqueued, several at a time."""

from __future__ import annotations

from collections.abc import Callable

from nst_fast.averaging import Average
from nst_fast.backend import Backend
from nst_fast.config import StyleSettings
from nst_fast.errors import NonFiniteError
from nst_fast.gpu.optimizers import DeviceAdam, DeviceLbfgs, DeviceOptimizer, Watched
from nst_fast.gpu.plan import DevicePlan
from nst_fast.gpu.smoothing import DeviceSmoothing
from nst_fast.host import Float32, Float64
from nst_fast.smoothing import Pixels, Variable, variable_arrays
from nst_fast.state import Arrays, State

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
        self._variable: Variable = (
            DeviceSmoothing(launcher, plan.image, plan.gradient, settings.smoothing)
            if settings.smoothing > 0
            else Pixels(plan.image, plan.gradient)
        )
        n = plan.image.shape[0]
        watched = Watched(
            x=self._variable.z.reshape(n, -1),
            gradient=self._variable.gradient.reshape(n, -1),
            terms=plan.terms,
            loss_scale=plan.loss_scale,
            overflow=plan.overflow,
            scaled=plan.scaled,
            log=REPORT_EVERY,
        )
        low, high = self._variable.bounds
        self._optimizer: DeviceOptimizer = (
            DeviceAdam(launcher, watched, learning_rate=settings.learning_rate, low=low, high=high)
            if settings.optimizer == "adam"
            else DeviceLbfgs(launcher, watched, history=settings.history)
        )
        self._average = (
            Average(watched.x, settings.average, launcher) if settings.average > 1 else None
        )
        self._finish = launcher.capture(_finishing(plan, self._optimizer, self._variable))
        self._taken = 0  # evaluations

    def advance(self, most: int) -> list[Float64]:
        """Take up to ``REPORT_EVERY`` steps; see ``Loop.advance``."""
        for _ in range(min(most, REPORT_EVERY)):
            self._plan.evaluate_taps()
            self._finish()
            if self._average is not None:
                self._average.add(self._optimizer.best)
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
        found = self._optimizer.best if self._average is None else self._average.mean
        best: Float32 = self._launcher.download(
            self._variable.place(found.reshape(self._plan.image.shape))
        )
        self._variable.place()
        return best

    def state(self) -> Arrays:
        """Copy the arrays to the host; see ``Loop.state``."""
        own = variable_arrays(self._variable) | self._optimizer.arrays
        average = {} if self._average is None else self._average.state()
        return {**{name: self._launcher.download(own[name]) for name in own}, **average}

    def restore(self, state: State) -> None:
        """Go on from a state; see ``Loop.restore``."""
        state.into(variable_arrays(self._variable) | self._optimizer.arrays, self._launcher)
        if self._average is not None:
            self._average.restore(state)
        self._taken = self._optimizer.go_on()
        self._variable.place()


def _finishing(
    plan: DevicePlan, optimizer: DeviceOptimizer, variable: Variable
) -> Callable[[], None]:
    """What ends a step, from the provider's gradient to the next picture.

    It does not know the loop: that would be a cycle, and keep the GPU's memory until the next
    collection.
    """

    def finish() -> None:
        plan.evaluate_picture()
        variable.pull_back()
        optimizer.step()
        variable.place()

    return finish
