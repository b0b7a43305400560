"""The optimisation loop on a GPU: steps are enqueued ahead of what the host knows."""

from __future__ import annotations

from collections.abc import Callable

from nst_fast.averaging import Average
from nst_fast.backend import Backend
from nst_fast.config import StyleSettings
from nst_fast.device import DeviceArray
from nst_fast.errors import NonFiniteError
from nst_fast.gpu.optimizers import DeviceAdam, DeviceLbfgs, DeviceOptimizer, Watched
from nst_fast.gpu.plan import DevicePlan
from nst_fast.gpu.smoothing import DeviceSmoothing
from nst_fast.host import Float32, Float64
from nst_fast.smoothing import Pixels, Variable, variable_arrays
from nst_fast.state import Arrays, State

REPORT_EVERY = 10  # steps whose terms are read together; a GPU is at most twice as many ahead


class DeviceLoop:
    """``Loop`` on a GPU, which never waits for the host: steps are enqueued, many at a time.

    Before the host waits for the terms of some steps, it enqueues the next ones. What it then looks
    at, between two calls of :meth:`advance`, is a copy of the images made right behind the steps
    that were told; the next ones, which may have run by then, are told of by the next call, or
    never happened where none follows.
    """

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
        self._told: DeviceArray = launcher.zeros(watched.x.shape)  # z behind the steps told of
        self._keep()
        self._taken = 0  # evaluations that were told
        self._ahead = 0  # steps that are enqueued beyond them
        self._failure = ""

    def advance(self, most: int, beyond: int = 0) -> list[Float64]:
        """Take up to ``REPORT_EVERY`` steps, and enqueue as many; see ``Loop.advance``."""
        if not self._failure:
            if not self._ahead:
                self._enqueue(min(most, REPORT_EVERY))
            count = self._mark()
            self._enqueue(min(most - count or beyond, REPORT_EVERY))
            terms = self._tell(count)
            if terms:
                return terms
        raise NonFiniteError(self._failure)

    def settle(self) -> list[Float64]:
        """Wait for the steps that are enqueued; see ``Loop.settle``."""
        return self._tell(self._mark()) if self._ahead else []

    def best(self) -> Float32:
        """Copy the images at the last accepted point to the host; see ``Loop.best``."""
        best: Float32 = self._launcher.download(
            self._variable.place(self._told.reshape(self._plan.image.shape))
        )
        self._variable.place()
        return best

    def state(self) -> Arrays:
        """Copy the arrays to the host; see ``Loop.state``."""
        assert not self._ahead, "of steps that nobody was told of"
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
        self._keep()

    def _enqueue(self, steps: int) -> None:
        for _ in range(steps):
            self._plan.evaluate_taps()
            self._finish()
            if self._average is not None:
                self._average.add(self._optimizer.best)
        self._ahead += steps

    def _mark(self) -> int:
        """Keep what the steps that are enqueued lead to, for the host; how many they are."""
        self._keep()
        self._optimizer.mark()
        count, self._ahead = self._ahead, 0
        return count

    def _keep(self) -> None:
        best = self._optimizer.best if self._average is None else self._average.mean
        self._launcher.copy(best, self._told)

    def _tell(self, count: int) -> list[Float64]:
        """Wait for the last mark; the terms of its steps, up to the first that failed."""
        found = self._optimizer.read()
        failed = found.failed[found.failed > 0]
        if failed.size:
            count = int(failed.min()) - 1 - self._taken
            self._ahead = 0
            self._failure = f"the loss or the gradient is not finite at evaluation {failed.min()}"
        self._taken += count
        return list(found.terms[:count])


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
