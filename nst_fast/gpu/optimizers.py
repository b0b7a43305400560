"""Adam and L-BFGS of N pictures on a GPU, by ``csrc/steps.cu`` and ``csrc/lbfgs.cu``.

The algorithms are those of ``nst_fast.optimizers``, but what changes from step to step lives
in device memory: a step is a row of launches with constant arguments that never waits for the host
and can be recorded in a CUDA graph. Each picture has its own state; none depends on another.

A provider that computes in float16 has its gradient multiplied by a loss scale, a power of two for
each picture. Where that gradient does not fit, the picture skips the step and its scale is divided
by 4; after 200 evaluations that fit it doubles again, up to the one it began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nst_fast.device import ADDRESS, DeviceArray, Launcher, check_array, describe
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.gpu.picture import THREADS, balanced_blocks
from nst_fast.host import Float64

CHUNK = 8 * THREADS  # numbers that a block passes over at a time, as in steps.cu
MOST_BLOCKS = 512  # a picture: more would make their sums, one block's work, the longer part
MOST_PAIRS = 100  # of steps.cu
LBFGS_STATE, ADAM_STATE = 128, 16  # bytes of LbfgsState and AdamState
PLAN_THREADS = 512
WARP = 32

# Watch and Adam of steps.cu, Lbfgs of lbfgs.cu.
WATCH = np.dtype(
    [
        *((name, ADDRESS) for name in ("terms", "loss_scale", "first_scale", "overflow")),
        *((name, ADDRESS) for name in ("log", "progress")),
        *((name, np.int32) for name in ("arrays", "capacity", "scaled")),
    ],
    align=True,
)
ADAM = np.dtype(
    [
        ("watch", WATCH),
        *((name, ADDRESS) for name in ("x", "gradient", "first", "second", "states")),
        ("size", np.int64),
        *((name, np.float64) for name in ("learning_rate", "beta1", "beta2")),
        *((name, np.float32) for name in ("epsilon", "low", "high")),
    ],
    align=True,
)
LBFGS = np.dtype(
    [
        ("watch", WATCH),
        *((name, ADDRESS) for name in ("x", "x_prev", "gradient", "gradient_prev", "history")),
        *((name, ADDRESS) for name in ("states", "products", "coefficients", "sums")),
        ("size", np.int64),
        *((name, np.int32) for name in ("memory", "blocks")),
        *((name, np.float64) for name in ("first_step", "max_step", "noise")),
    ],
    align=True,
)

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Evaluations:
    """What happened from the last ``read`` to the last ``mark``.

    Attributes:
        terms: (E, N, K) float64, the terms of every evaluation in order, K those of all arrays
            together; the newest where there were more than the log holds.
        failed: (N,) int32, the evaluation, counted from 1, at which loss or gradient was not finite
            and could not be mended; 0 for none. The picture stays at its last accepted point.
        skipped: (N,) int32, evaluations so far whose gradient did not fit into float16.
    """

    terms: Float64
    failed: Int32
    skipped: Int32


class DeviceOptimizer(Protocol):
    """Moves N pictures x, the array given at construction, in place.

    The caller enqueues an evaluation of terms and gradient at x, then ``step``, again and again.

    Attributes:
        best: (N, D) float32, the last accepted points; ``x`` itself where none is refused.
        arrays: by name, all but x that the next steps depend on.
    """

    best: DeviceArray
    arrays: dict[str, DeviceArray]

    def step(self) -> None:
        """Enqueue one step; does not wait, allocates nothing."""

    def mark(self) -> None:
        """Enqueue that what happened so far is copied to the host."""

    def read(self) -> Evaluations:
        """Wait for the last ``mark`` alone, and report what happened until then."""

    def go_on(self) -> int:
        """Take note that ``arrays`` are another run's now; how many evaluations it made."""


@dataclass(frozen=True)
class Watched:
    """N pictures and what an evaluation says of them; the arrays come from a launcher's ``zeros``.

    Attributes:
        x: (N, D) float32, moved in place by every step.
        gradient: (N, D) float32, at x.
        terms: arrays (N, K) float64 whose sum is the loss at x.
        loss_scale: (N,) float32, what the provider multiplies the gradient by.
        overflow: (N,) int32, 1 where the gradient at x is of no use.
        scaled: whether a smaller loss scale can mend that, as it can in float16.
        log: evaluations whose terms are kept until ``mark``.
    """

    x: DeviceArray
    gradient: DeviceArray
    terms: Sequence[DeviceArray]
    loss_scale: DeviceArray
    overflow: DeviceArray
    scaled: bool
    log: int

    def check(self) -> None:
        """Refuse what does not fit.

        Raises:
            ShapeError: arrays do not fit each other.
            SettingsError: ``log`` is below 1.
        """
        shape = tuple(self.x.shape)
        if len(shape) != 2 or 0 in shape:
            raise ShapeError(f"x: needs shape (N, D), none of them 0, not {shape}")
        check_array("x", self.x, shape, np.float32)
        check_array("gradient", self.gradient, shape, np.float32)
        for index, array in enumerate(self.terms):
            check_array(f"terms[{index}]", array, (shape[0], array.shape[-1]), np.float64)
        check_array("loss_scale", self.loss_scale, shape[:1], np.float32)
        check_array("overflow", self.overflow, shape[:1], np.int32)
        if self.log < 1:
            raise SettingsError(f"log must be at least 1, not {self.log}")


class _Base:
    """What both optimisers share: pictures, terms, loss scale and log."""

    def __init__(self, launcher: Launcher, watched: Watched) -> None:
        watched.check()
        n, size = watched.x.shape
        columns = sum(array.shape[1] for array in watched.terms)
        places = [(launcher.address(array), array.shape[1]) for array in watched.terms]
        self._launcher = launcher
        self._read = 0  # evaluations that the host knows
        self._log = launcher.zeros((n, watched.log, columns), np.float64)
        self._progress = launcher.zeros((n, 4), np.int32)
        first_scale = launcher.zeros((n,))
        self.arrays = {
            "progress": self._progress,
            "loss_scale": watched.loss_scale,
            "first_scale": first_scale,
        }
        self._grid = -(-size // CHUNK), 1, n
        self._watch = {
            "terms": launcher.put(np.array(places, np.uint64)),
            "loss_scale": watched.loss_scale,
            "first_scale": first_scale,
            "overflow": watched.overflow,
            "log": self._log,
            "progress": self._progress,
            "arrays": len(watched.terms),
            "capacity": watched.log,
            "scaled": watched.scaled,
        }
        self._held: list[object] = [watched, self._watch]
        self._copies = launcher.mirror(self._progress), launcher.mirror(self._log)

    def _describe(self, layout: np.dtype[Any], values: Mapping[str, Any]) -> NDArray[Any]:
        """The argument of all kernels; its arrays are kept."""
        self._held.append(values)
        watch = describe(self._launcher, WATCH, self._watch)
        return describe(self._launcher, layout, {"watch": watch, **values})

    def mark(self) -> None:
        """Enqueue copies of the log; see ``DeviceOptimizer.mark``."""
        for copy in self._copies:
            copy.enqueue()

    def read(self) -> Evaluations:
        """Wait, and report; see ``DeviceOptimizer.read``."""
        progress, log = (copy.wait() for copy in self._copies)
        done, capacity = int(progress[0, 0]), log.shape[1]
        fresh = range(max(self._read, done - capacity), done)
        self._read = done
        terms = log[:, [evaluation % capacity for evaluation in fresh]].swapaxes(0, 1)
        return Evaluations(terms, progress[:, 1].copy(), progress[:, 2].copy())

    def go_on(self) -> int:
        """Count from where the other run was; see ``DeviceOptimizer.go_on``."""
        self._read = int(self._launcher.download(self._progress)[0, 0])
        return self._read


class DeviceLbfgs(_Base):
    """``DeviceOptimizer`` by the algorithm of ``Lbfgs``; four launches a step."""

    def __init__(
        self,
        launcher: Launcher,
        watched: Watched,
        *,
        history: int = 10,
        first_step: float = 0.02,
        max_step: float = 0.1,
        noise: float = 1e-3,
    ) -> None:
        """Allocate the history, and enqueue a copy of x.

        Args:
            launcher: where the arrays are.
            watched: the pictures.
            history: pairs remembered, m, at most 100.
            first_step: length of a step along the gradient alone, as root mean square over x.
            max_step: greatest length of any step, likewise.
            noise: relative error of the loss that is not taken for an increase.

        Raises:
            ShapeError: arrays do not fit each other.
            SettingsError: ``history`` or ``log`` is out of range.
        """
        if not 1 <= history <= MOST_PAIRS:
            raise SettingsError(f"history must be from 1 to {MOST_PAIRS}, not {history}")
        super().__init__(launcher, watched)
        x = watched.x
        n, size = x.shape
        self.best = launcher.zeros(x.shape)
        launcher.copy(x, self.best)
        width = 2 * history + 1
        chunks = self._grid[0]
        blocks = balanced_blocks(chunks, MOST_BLOCKS)
        self._update_grid = blocks, 1, n
        lasting = {
            "x_prev": self.best,
            "gradient_prev": launcher.zeros(x.shape),
            "history": launcher.zeros((n, 2 * history, size), np.uint16),
            "states": launcher.zeros((n, LBFGS_STATE), np.uint8),
            "products": launcher.zeros((n, width, width), np.float64),
        }
        self.arrays |= lasting
        self._run = self._describe(
            LBFGS,
            {
                **lasting,
                "x": x,
                "gradient": watched.gradient,
                "coefficients": launcher.zeros((n, width)),
                "sums": launcher.zeros((n, 6 * history + 1, blocks), np.float64),
                "size": size,
                "memory": history,
                "blocks": blocks,
                "first_step": first_step,
                "max_step": max_step,
                "noise": noise,
            },
        )

    def step(self) -> None:
        """Enqueue one step; see ``DeviceOptimizer.step``."""
        each, run, launch = (1, 1, self._grid[2]), [self._run], self._launcher.launch
        launch("lbfgs_judge", each, WARP, run)
        launch("lbfgs_update", self._update_grid, THREADS, run)
        launch("lbfgs_plan", each, PLAN_THREADS, run)
        launch("lbfgs_move", self._grid, THREADS, run)


class DeviceAdam(_Base):
    """``DeviceOptimizer`` by the algorithm of ``Adam``, which accepts every point; two launches."""

    def __init__(
        self,
        launcher: Launcher,
        watched: Watched,
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
            launcher: where the arrays are.
            watched: the pictures.
            learning_rate: step in the units of x.
            beta1: decay of the first moment, in [0, 1).
            beta2: decay of the second moment, in [0, 1).
            epsilon: added to the root of the second moment.
            low: least value of x.
            high: greatest value of x.

        Raises:
            ShapeError: arrays do not fit each other.
            SettingsError: ``log`` is below 1.
        """
        super().__init__(launcher, watched)
        self.best = x = watched.x
        n, size = x.shape
        lasting = {
            "first": launcher.zeros(x.shape),
            "second": launcher.zeros(x.shape),
            "states": launcher.zeros((n, ADAM_STATE), np.uint8),
        }
        self.arrays |= lasting
        self._run = self._describe(
            ADAM,
            {
                **lasting,
                "x": x,
                "gradient": watched.gradient,
                "size": size,
                "learning_rate": learning_rate,
                "beta1": beta1,
                "beta2": beta2,
                "epsilon": epsilon,
                "low": low,
                "high": high,
            },
        )

    def step(self) -> None:
        """Enqueue one step; see ``DeviceOptimizer.step``."""
        self._launcher.launch("adam_judge", (1, 1, self._grid[2]), WARP, [self._run])
        self._launcher.launch("adam_move", self._grid, THREADS, [self._run])
