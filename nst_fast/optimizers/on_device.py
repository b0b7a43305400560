"""Adam and L-BFGS of N pictures side by side on a GPU, by the kernels of ``csrc/steps.cu``.

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

from nst_fast.cuda import DeviceArray, Launcher, check_array
from nst_fast.device import Float64
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.kernels.picture import NUMBERS, THREADS, balanced_blocks

CHUNK = 8 * THREADS  # numbers that a block passes over at a time, as in steps.cu
MOST_BLOCKS = 512  # a picture: more would make their sums, one block's work, the longer part
MOST_PAIRS = 100  # of steps.cu
LBFGS_STATE, ADAM_STATE = 128, 16  # bytes of LbfgsState and AdamState
PLAN_THREADS = 512
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


@dataclass(frozen=True)
class ImageParts:
    """What a provider of 16 bits reads of x, kept beside it.

    Attributes:
        values: 2·D for each picture, (N, …), float16 or uint16 (the bits of bfloat16), rewritten
            with every move: x − mean rounded, then what the rounding left over. One number has too
            few bits: an edge is a small difference of large values.
        mean: (C,) float32, of each of x's C channels, which are D/C numbers each.
    """

    values: DeviceArray
    mean: DeviceArray


class DeviceOptimizer(Protocol):
    """Moves N pictures x, the array given at construction, in place.

    The caller enqueues an evaluation of terms and gradient at x, then ``step``, again and again,
    and ``settle`` before it uses x as the result.

    Attributes:
        best: (N, D) float32, the last accepted points; ``x`` itself where none is refused.
    """

    best: DeviceArray

    def step(self) -> None:
        """Enqueue one step; does not wait, allocates nothing."""

    def settle(self) -> None:
        """Enqueue: x and its parts go to the last accepted points."""

    def read(self) -> Evaluations:
        """Wait for what was enqueued, and report it."""


class _Base:
    """What both optimisers share: pictures, terms, loss scale and log."""

    def __init__(
        self,
        launcher: Launcher,
        x: DeviceArray,
        parts: ImageParts | None,
        best: DeviceArray,
        *,
        terms: Sequence[DeviceArray],
        scale: DeviceArray,
        overflow: DeviceArray,
        log: int,
    ) -> None:
        n, size = x.shape
        for index, array in enumerate(terms):
            check_array(f"terms[{index}]", array, (n, array.shape[-1]), np.float64)
        check_array("scale", scale, (n,), np.float32)
        check_array("overflow", overflow, (n,), np.int32)
        if log < 1:
            raise SettingsError(f"log must be at least 1, not {log}")
        columns = sum(array.shape[1] for array in terms)
        self.best = best
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
        self._x = x
        self._parts = (
            (launcher.zeros((1,), np.uint16), np.int32(0), launcher.zeros((1,)), np.int64(1))
            if parts is None
            else (
                *(parts.values, np.int32(NUMBERS[parts.values.dtype])),
                *(parts.mean, np.int64(size // parts.mean.size)),
            )
        )
        # Only float16 overflows where float32 would not.
        scaled = parts is not None and parts.values.dtype == np.float16
        self._watch: tuple[Any, ...] = (
            *(table, np.int32(len(terms)), np.int32(scaled), scale),
            *(launcher.zeros((n,)), overflow, self._log, np.int32(log), self._progress),
        )
        self._place(x, best)

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

    def _place(self, source: DeviceArray, target: DeviceArray) -> None:
        """Enqueue a copy, and the parts of it."""
        self._over_all("place_picture", source, target, *self._parts, self._size)


class DeviceLbfgs(_Base):
    """``DeviceOptimizer`` by the algorithm of ``Lbfgs``; four launches a step."""

    def __init__(
        self,
        launcher: Launcher,
        x: DeviceArray,
        parts: ImageParts | None,
        gradient: DeviceArray,
        *,
        terms: Sequence[DeviceArray],
        scale: DeviceArray,
        overflow: DeviceArray,
        log: int,
        history: int = 10,
        first_step: float = 0.02,
        max_step: float = 0.1,
        noise: float = 1e-3,
    ) -> None:
        """Allocate the history, and enqueue the first copies of x.

        Args:
            launcher: where the arrays are; all come from its ``zeros``.
            x: (N, D) float32, moved in place by every step.
            parts: of x; None where the provider reads x itself.
            gradient: (N, D) float32, at x.
            terms: arrays (N, K) float64 whose sum is the loss at x.
            scale: (N,) float32, the loss scale, moved where ``parts`` are float16.
            overflow: (N,) int32, 1 where the gradient at x is of no use.
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
        _check_pictures(x, parts, gradient)
        best = launcher.zeros(x.shape)
        super().__init__(
            launcher, x, parts, best, terms=terms, scale=scale, overflow=overflow, log=log
        )
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
        self._move = (
            *(x, *self._parts, self.best, gradient_prev, pairs, coefficients, states, *shape),
        )

    def step(self) -> None:
        """Enqueue one step; see ``DeviceOptimizer.step``."""
        self._one_each("lbfgs_judge", WARP, *self._judge)
        self._launcher.launch("lbfgs_update", self._update_grid, THREADS, self._update)
        self._one_each("lbfgs_plan", PLAN_THREADS, *self._plan)
        self._over_all("lbfgs_move", *self._move)

    def settle(self) -> None:
        """Enqueue the way back to the last accepted points; see ``DeviceOptimizer.settle``."""
        self._place(self.best, self._x)


class DeviceAdam(_Base):
    """``DeviceOptimizer`` by the algorithm of ``Adam``, which accepts every point; two launches."""

    def __init__(
        self,
        launcher: Launcher,
        x: DeviceArray,
        parts: ImageParts | None,
        gradient: DeviceArray,
        *,
        terms: Sequence[DeviceArray],
        scale: DeviceArray,
        overflow: DeviceArray,
        log: int,
        learning_rate: float = 0.02,
        beta1: float = 0.9,
        beta2: float = 0.99,
        epsilon: float = 1e-8,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        """Allocate the moments, and enqueue the first parts of x.

        Args:
            launcher: as for ``DeviceLbfgs``; so are all up to ``log``.
            x: (N, D) float32.
            parts: of x, or None.
            gradient: (N, D) float32.
            terms: arrays (N, K) float64.
            scale: (N,) float32.
            overflow: (N,) int32.
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
        _check_pictures(x, parts, gradient)
        super().__init__(
            launcher, x, parts, x, terms=terms, scale=scale, overflow=overflow, log=log
        )
        states = launcher.zeros((x.shape[0], ADAM_STATE), np.uint8)
        moments = (launcher.zeros(x.shape), launcher.zeros(x.shape))
        betas = (np.float64(beta1), np.float64(beta2))
        self._judge = (*self._watch, states, np.float64(learning_rate), *betas)
        options = tuple(map(np.float32, (beta1, beta2, epsilon, low, high)))
        self._move = (x, *self._parts, gradient, *moments, states, *options, self._size)

    def step(self) -> None:
        """Enqueue one step; see ``DeviceOptimizer.step``."""
        self._one_each("adam_judge", WARP, *self._judge)
        self._over_all("adam_move", *self._move)

    def settle(self) -> None:
        """Leave x where it is."""


def _check_pictures(x: DeviceArray, parts: ImageParts | None, gradient: DeviceArray) -> None:
    """Refuse what does not fit."""
    shape = tuple(x.shape)
    if len(shape) != 2 or 0 in shape:
        raise ShapeError(f"x: needs shape (N, D), none of them 0, not {shape}")
    check_array("x", x, shape, np.float32)
    check_array("gradient", gradient, shape, np.float32)
    if parts is not None:
        n, size = shape
        check_array("parts", parts.values.reshape(n, -1), (n, 2 * size), np.float16, np.uint16)
        channels = parts.mean.size
        if channels == 0 or size % channels:
            raise ShapeError(f"mean: {channels} channels do not share {size} numbers out evenly")
        check_array("mean", parts.mean, (channels,), np.float32)
