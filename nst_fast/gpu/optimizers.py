"""Adam, L-BFGS and smoothing of N pictures on a GPU, by ``csrc/steps.cu`` and ``csrc/lbfgs.cu``.

The algorithms are those of ``adam.py`` and ``lbfgs.py``, but what changes from step to step lives
in device memory: a step is a row of launches with constant arguments that never waits for the host
and can be recorded in a CUDA graph. Each picture has its own state; none depends on another.

A provider that computes in float16 has its gradient multiplied by a loss scale, a power of two for
each picture. Where that gradient does not fit, the picture skips the step and its scale is divided
by 4; after 200 evaluations that fit it doubles again, up to the one it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nst_fast.device import DeviceArray, Launcher, check_array
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.gpu.picture import THREADS, balanced_blocks
from nst_fast.host import Float32, Float64

CHUNK = 8 * THREADS  # numbers that a block passes over at a time, as in steps.cu
MOST_BLOCKS = 512  # a picture: more would make their sums, one block's work, the longer part
MOST_PAIRS = 100  # of steps.cu
LBFGS_STATE, ADAM_STATE = 128, 16  # bytes of LbfgsState and AdamState
PLAN_THREADS = 512
SMOOTH_ROWS = 32  # of a block, as in steps.cu
WARP = 32

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Evaluations:
    """What happened since the last ``read``.

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
    """

    best: DeviceArray

    def step(self) -> None:
        """Enqueue one step; does not wait, allocates nothing."""

    def read(self) -> Evaluations:
        """Wait for what was enqueued, and report it."""


class _Base:
    """What both optimisers share: pictures, terms, loss scale and log."""

    def __init__(
        self,
        launcher: Launcher,
        x: DeviceArray,
        gradient: DeviceArray,
        *,
        terms: Sequence[DeviceArray],
        scale: DeviceArray,
        overflow: DeviceArray,
        scaled: bool,
        log: int,
    ) -> None:
        n, size = _check_pictures(x, gradient)
        for index, array in enumerate(terms):
            check_array(f"terms[{index}]", array, (n, array.shape[-1]), np.float64)
        check_array("scale", scale, (n,), np.float32)
        check_array("overflow", overflow, (n,), np.int32)
        if log < 1:
            raise SettingsError(f"log must be at least 1, not {log}")
        columns = sum(array.shape[1] for array in terms)
        self._launcher = launcher
        self._terms = tuple(terms)  # kept: the kernels know but their addresses
        self._read = 0  # evaluations that the host knows
        self._log = launcher.zeros((n, log, columns), np.float64)
        self._progress = launcher.zeros((n, 4), np.int32)
        places = [(launcher.address(array), array.shape[1]) for array in terms]
        table = launcher.zeros((len(terms), 2), np.uint64)
        launcher.upload(np.array(places, np.uint64), table)
        self._chunks = -(-size // CHUNK)
        self._every = (self._chunks, 1, n)
        self._size = np.int64(size)
        self._watch: tuple[Any, ...] = (
            *(table, np.int32(len(terms)), np.int32(scaled), scale),
            *(launcher.zeros((n,)), overflow, self._log, np.int32(log), self._progress),
        )

    def read(self) -> Evaluations:
        """Wait, and report; see ``DeviceOptimizer.read``."""
        progress = self._launcher.download(self._progress)
        log = self._launcher.download(self._log)
        done, capacity = int(progress[0, 0]), log.shape[1]
        fresh = range(max(self._read, done - capacity), done)
        self._read = done
        terms = log[:, [evaluation % capacity for evaluation in fresh]].swapaxes(0, 1)
        return Evaluations(terms, progress[:, 1].copy(), progress[:, 2].copy())

    def _one_each(self, kernel: str, threads: int, *arguments: Any) -> None:
        """Launch one block a picture."""
        self._launcher.launch(kernel, (1, 1, self._every[2]), threads, arguments)

    def _over_all(self, kernel: str, *arguments: Any) -> None:
        """Launch a pass over all pictures."""
        self._launcher.launch(kernel, self._every, THREADS, arguments)


class DeviceLbfgs(_Base):
    """``DeviceOptimizer`` by the algorithm of ``Lbfgs``; four launches a step."""

    def __init__(
        self,
        launcher: Launcher,
        x: DeviceArray,
        gradient: DeviceArray,
        *,
        terms: Sequence[DeviceArray],
        scale: DeviceArray,
        overflow: DeviceArray,
        scaled: bool,
        log: int,
        history: int = 10,
        first_step: float = 0.02,
        max_step: float = 0.1,
        noise: float = 1e-3,
    ) -> None:
        """Allocate the history, and enqueue a copy of x.

        Args:
            launcher: where the arrays are; all come from its ``zeros``.
            x: (N, D) float32, moved in place by every step.
            gradient: (N, D) float32, at x.
            terms: arrays (N, K) float64 whose sum is the loss at x.
            scale: (N,) float32, the loss scale.
            overflow: (N,) int32, 1 where the gradient at x is of no use.
            scaled: whether a smaller loss scale can mend that, as it can in float16.
            log: evaluations whose terms are kept until ``read``.
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
        super().__init__(
            launcher,
            x,
            gradient,
            terms=terms,
            scale=scale,
            overflow=overflow,
            scaled=scaled,
            log=log,
        )
        self.best = launcher.zeros(x.shape)
        launcher.copy(x, self.best)
        n, size = x.shape
        width = 2 * history + 1
        blocks = balanced_blocks(self._chunks, MOST_BLOCKS)
        pairs = launcher.zeros((n, 2 * history, size), np.uint16)
        states = launcher.zeros((n, LBFGS_STATE), np.uint8)
        products = launcher.zeros((n, width, width), np.float64)
        coefficients = launcher.zeros((n, width))
        sums = launcher.zeros((n, 6 * history + 1, blocks), np.float64)
        gradient_prev = launcher.zeros(x.shape)
        shape = (np.int32(history), self._size)
        self._judge = (
            *(*self._watch, states, products, coefficients, *shape),
            *(np.float64(first_step), np.float64(noise)),
        )
        self._update_grid = (blocks, 1, n)
        self._update = (x, self.best, gradient, gradient_prev, pairs, states, sums, *shape)
        self._plan = (
            *(sums, np.int32(blocks), self._progress, states, products, coefficients),
            *(*shape, np.float64(max_step)),
        )
        self._move = (x, self.best, gradient_prev, pairs, coefficients, states, *shape)

    def step(self) -> None:
        """Enqueue one step; see ``DeviceOptimizer.step``."""
        self._one_each("lbfgs_judge", WARP, *self._judge)
        self._launcher.launch("lbfgs_update", self._update_grid, THREADS, self._update)
        self._one_each("lbfgs_plan", PLAN_THREADS, *self._plan)
        self._over_all("lbfgs_move", *self._move)


class DeviceAdam(_Base):
    """``DeviceOptimizer`` by the algorithm of ``Adam``, which accepts every point; two launches."""

    def __init__(
        self,
        launcher: Launcher,
        x: DeviceArray,
        gradient: DeviceArray,
        *,
        terms: Sequence[DeviceArray],
        scale: DeviceArray,
        overflow: DeviceArray,
        scaled: bool,
        log: int,
        learning_rate: float = 0.02,
        beta1: float = 0.9,
        beta2: float = 0.99,
        epsilon: float = 1e-8,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        """Allocate the moments.

        Args:
            launcher: as for ``DeviceLbfgs``; so are all up to ``log``.
            x: (N, D) float32.
            gradient: (N, D) float32.
            terms: arrays (N, K) float64.
            scale: (N,) float32.
            overflow: (N,) int32.
            scaled: as there.
            log: evaluations whose terms are kept.
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
        super().__init__(
            launcher,
            x,
            gradient,
            terms=terms,
            scale=scale,
            overflow=overflow,
            scaled=scaled,
            log=log,
        )
        self.best = x
        states = launcher.zeros((x.shape[0], ADAM_STATE), np.uint8)
        moments = (launcher.zeros(x.shape), launcher.zeros(x.shape))
        betas = (np.float64(beta1), np.float64(beta2))
        self._judge = (*self._watch, states, np.float64(learning_rate), *betas)
        options = tuple(map(np.float32, (beta1, beta2, epsilon, low, high)))
        self._move = (x, gradient, *moments, states, *options, self._size)

    def step(self) -> None:
        """Enqueue one step; see ``DeviceOptimizer.step``."""
        self._one_each("adam_judge", WARP, *self._judge)
        self._over_all("adam_move", *self._move)


class DeviceSmoothing:
    """x = x₀ + B z, and Bᵀ, of N pictures on a GPU: what lets an optimiser move a smoothed picture.

    B = share·I + (1 − share)·G, where G is a filter along rows and columns of every plane, mirrored
    at its ends, which are repeated: it is symmetric.
    """

    def __init__(
        self, launcher: Launcher, start: DeviceArray, taps: Float32, *, share: float
    ) -> None:
        """Allocate a plane for each of the pictures'.

        Args:
            launcher: where the arrays are.
            start: x₀, (N, C, H, W) float32; must not change.
            taps: of G, (r + 1,): the middle, then both neighbours at distance 1 to r.
            share: of I, from 0 to 1.
        """
        n, channels, height, width = start.shape
        self._launcher, self._start, self._share = launcher, start, np.float32(share)
        self._between = launcher.zeros(start.shape)
        uploaded = launcher.zeros(taps.shape)
        launcher.upload(taps, uploaded)
        self._taps = uploaded, np.int32(taps.size - 1)
        self._sizes = np.int32(height), np.int32(width)
        self._grid = -(-width // WARP), -(-height // SMOOTH_ROWS), n * channels

    def place(self, z: DeviceArray, x: DeviceArray) -> None:
        """Enqueue x = x₀ + B z; of the size of x₀, and not the same."""
        self._smooth(z, x, add_start=True)

    def pull_back(self, gradient: DeviceArray) -> None:
        """Enqueue: the gradient at x becomes the one at z, in place."""
        self._smooth(gradient, gradient, add_start=False)

    def _smooth(self, image: DeviceArray, out: DeviceArray, *, add_start: bool) -> None:
        rows = [image, self._between, *self._taps, *self._sizes]
        self._launcher.launch("smooth_rows", self._grid, THREADS, rows)
        numbers = self._share, np.int32(add_start)
        columns = [self._between, image, self._start, out, *self._taps, *numbers, *self._sizes]
        self._launcher.launch("smooth_columns", self._grid, THREADS, columns)


def _check_pictures(x: DeviceArray, gradient: DeviceArray) -> tuple[int, int]:
    """N and D of pictures; refuse what does not fit."""
    shape = tuple(x.shape)
    if len(shape) != 2 or 0 in shape:
        raise ShapeError(f"x: needs shape (N, D), none of them 0, not {shape}")
    check_array("x", x, shape, np.float32)
    check_array("gradient", gradient, shape, np.float32)
    n, size = shape
    return n, size
