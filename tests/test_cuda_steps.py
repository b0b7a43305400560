"""The optimisers of csrc/steps.cu and lbfgs.cu against the CPU's classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from device_arrays import launcher_for
from landscapes import Problem, quadratic, saddle, unruly, valley, walled
from shim import LAUNCHERS

from nst_fast.device import Launcher
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.gpu import optimizers
from nst_fast.gpu.optimizers import DeviceAdam, DeviceLbfgs, Evaluations, Watched
from nst_fast.kernels import Kernels
from nst_fast.optimizers import Adam, Lbfgs


@pytest.fixture(params=LAUNCHERS)
def launcher(request) -> Launcher:
    return launcher_for(request.param)


@dataclass
class Setup:
    """An optimiser on a device, and the arrays through which it is fed."""

    launcher: Launcher
    optimizer: DeviceLbfgs | DeviceAdam
    x: Any
    gradient: Any
    terms: list[Any]
    loss_scale: Any
    overflow: Any

    def picture(self) -> np.ndarray:
        return self.launcher.download(self.x)

    def read(self) -> Evaluations:
        self.optimizer.mark()
        return self.optimizer.read()

    def feed(self, losses: Sequence[float], gradients: Sequence[np.ndarray]) -> None:
        """Upload an evaluation; the loss is spread over the terms."""
        columns = sum(array.shape[1] for array in self.terms)
        for array in self.terms:
            shares = np.repeat(np.array(losses, np.float64)[:, None] / columns, array.shape[1], 1)
            self.launcher.upload(shares, array)
        self.launcher.upload(np.stack(gradients).astype(np.float32), self.gradient)

    def step(self, problems: Sequence[Problem]) -> list[float]:
        """Evaluate at x and step; return the losses."""
        pairs = [f(x.astype(np.float64)) for f, x in zip(problems, self.picture(), strict=True)]
        self.feed([loss for loss, _ in pairs], [gradient for _, gradient in pairs])
        self.optimizer.step()
        return [loss for loss, _ in pairs]


def set_up(
    launcher: Launcher,
    kind: type[DeviceLbfgs] | type[DeviceAdam],
    starts: Sequence[np.ndarray],
    *,
    scaled: bool = False,
    scale: float = 1.0,
    log: int = 64,
    **options: Any,
) -> Setup:
    x = launcher.put(np.stack(starts))
    n = len(starts)
    gradient = launcher.put(np.full(x.shape, np.nan, np.float32))
    fed = {
        "terms": [launcher.zeros((n, columns), np.float64) for columns in (5, 2)],
        "loss_scale": launcher.put(np.full(n, scale, np.float32)),
        "overflow": launcher.zeros((n,), np.int32),
    }
    watched = Watched(x, gradient, **fed, scaled=scaled, log=log)
    optimizer = kind(launcher, watched, **options)
    return Setup(launcher, optimizer, x, gradient, **fed)


CASES: dict[str, tuple[Callable[[], tuple[np.ndarray, Problem]], dict[str, Any]]] = {
    "one value": (lambda: quadratic(1, 1.0, 0), {}),
    "odd quadratic": (lambda: quadratic(301, 30.0, 1), {"history": 4}),
    "quadratic in chunks": (lambda: quadratic(2056, 30.0, 2), {"max_step": 1.0}),
    "odd valley": (lambda: valley(2051), {"history": 3, "max_step": 1.0}),
    "valley": (lambda: valley(64), {"max_step": 1.0}),
    **{
        f"unruly {seed}": (partial(unruly, 50, seed), {"history": 3, "noise": noise})
        for seed, noise in enumerate([0.0, 0.0, 1e-3, 1e-2, 1e-2])
    },
    "too long first steps": (lambda: valley(64), {"first_step": 30.0, "max_step": 1e4}),
    "saddle": (lambda: saddle(40), {"history": 5}),
    "wall": (lambda: walled(*quadratic(72, 30.0, 3), 12, 24), {}),
    "low wall": (lambda: walled(*quadratic(72, 30.0, 3), 12, 34, 0.01), {"noise": 1e-6}),
    "low wall again": (lambda: walled(*walled(*saddle(40), 3, 14, 0.3), 21, 29, 0.5), {}),
    "short wall": (lambda: walled(*valley(96), 9, 11), {"max_step": 1.0}),
}


def follow(
    launcher: Launcher, start: np.ndarray, problem: Problem, steps: int, **options: Any
) -> list[bool]:
    """Check steps of L-BFGS against the CPU's, and return which points were accepted.

    Both start each step from the same x, so s and y have the same bits, and the dot products differ
    by the order of float32 sums alone, which is the CPU's own: 1e-6, times what the recursion makes
    of it, some 20 in a valley. x itself is rounded to 6e-8.
    """
    setup = set_up(launcher, DeviceLbfgs, [start], **options)
    x = start.copy()
    host = Lbfgs(x, Kernels(1), **options)
    accepted = []
    for _ in range(steps):
        x[:] = setup.picture()[0]
        here, before = x.copy(), launcher.download(setup.optimizer.best)[0]
        loss, gradient = problem(x.astype(np.float64))
        accepted.append(host.step(loss, gradient.astype(np.float32)))
        setup.feed([loss], [gradient])
        setup.optimizer.step()
        anchor = launcher.download(setup.optimizer.best)[0]
        assert np.array_equal(anchor, here if accepted[-1] else before)
        moved = np.linalg.norm(x.astype(np.float64) - anchor)
        error = np.linalg.norm(setup.picture()[0].astype(np.float64) - x)
        assert error <= 1e-4 * moved + 1e-7 * np.linalg.norm(x)
    return accepted


@pytest.mark.parametrize("case", CASES)
def test_lbfgs_decides_and_moves_as_on_the_cpu(launcher, case) -> None:
    make, options = CASES[case]
    accepted = follow(launcher, *make(), 40, **options)
    assert sum(accepted) > 10
    if "wall" in case:
        assert accepted.count(False) >= 3


@pytest.mark.parametrize(("history", "steps"), [(32, 40), (33, 40), (70, 84)])
def test_more_pairs_than_a_warp_has_lanes(launcher, history, steps) -> None:
    """Of 32 the matrix of dot products is in shared memory, of more it is not."""
    start, problem = quadratic(301, 1e4, 4)
    accepted = follow(launcher, start, problem, steps, history=history)
    assert sum(accepted) > history + 1


@pytest.mark.parametrize(
    ("losses", "noise", "expected"),
    [
        ([1.0, 1.0005, 1.0009, 1.0015, 1.0011], 1e-3, "AAARR"),  # noise is that of the best
        ([-1.0, -0.9995, -0.9985], 1e-3, "AAR"),
        ([1.0, 1.0 - 1e-9, 1.0, 1.0 - 2e-9], 0.0, "AARA"),
        # Ten refused, the radius shrinks twice and grows from there.
        ([1.0, *[1.2] * 10, 0.9, 0.8, 0.7, 0.6, 0.5], 0.0, "A" + "R" * 10 + "AAAAA"),
    ],
)
def test_lbfgs_decides_by_these_losses(launcher, losses, noise, expected) -> None:
    # A gradient that never changes has no curvature, so each step is along it.
    gradient = 0.1 * np.where(np.arange(100) % 3 == 0, 1.0, -1.0)
    left = iter(losses)
    start = np.zeros(100, np.float32)
    accepted = follow(launcher, start, lambda _: (next(left), gradient), len(losses), noise=noise)
    assert "".join("RA"[taken] for taken in accepted) == expected


@pytest.mark.parametrize("D", [1, 100, 2056, 2051])
def test_adam_moves_as_on_the_cpu(launcher, D) -> None:
    options = {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "low": 0.1}
    start, problem = quadratic(D, 10.0, D)
    setup = set_up(launcher, DeviceAdam, [start], scaled=True, **options)
    x = start.copy()
    host = Adam(x, Kernels(1), **options)
    for _ in range(40):
        loss, gradient = problem(x.astype(np.float64))
        host.step(loss, gradient.astype(np.float32))
        setup.feed([loss], [gradient])
        setup.optimizer.step()
        assert_close(setup.picture()[0], x, 1e-6)
    assert x.min() >= np.float32(0.1)


KINDS = [DeviceLbfgs, DeviceAdam]


def three() -> tuple[list[np.ndarray], list[Problem]]:
    """Three pictures, of which the second meets a wall."""
    cases = (quadratic(2051, 30.0, 5), walled(*quadratic(2051, 9.0, 6), 4, 6), valley(2051))
    return [start for start, _ in cases], [problem for _, problem in cases]


@pytest.mark.parametrize("where", LAUNCHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_do_not_touch_each_other(where, kind) -> None:
    starts, problems = three()
    together = set_up(launcher_for(where, 1), kind, starts, scaled=True)
    for _ in range(12):
        together.step(problems)
    logged = together.read().terms
    _, problems = three()
    for n, (start, problem) in enumerate(zip(starts, problems, strict=True)):
        alone = set_up(launcher_for(where, 2), kind, [start], scaled=True)
        for _ in range(12):
            alone.step([problem])
        assert alone.picture().tobytes() == together.picture()[n].tobytes()
        assert np.array_equal(alone.read().terms[:, 0], logged[:, n])


@pytest.mark.parametrize("where", LAUNCHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_steps_same_bits(where, kind) -> None:
    ends = []
    for seed in (3, 4):  # of the order in which blocks run
        starts, problems = three()
        setup = set_up(launcher_for(where, seed), kind, starts)
        for _ in range(12):
            setup.step(problems)
        ends.append(setup.picture().tobytes())
    assert ends[0] == ends[1]


def test_blocks_share_many_chunks(launcher, monkeypatch) -> None:
    start, problem = quadratic(9000, 30.0, 7)
    ends = []
    for most in (512, 2):
        monkeypatch.setattr(optimizers, "MOST_BLOCKS", most)
        setup = set_up(launcher, DeviceLbfgs, [start], max_step=1.0)
        for _ in range(8):
            setup.step([problem])
        ends.append(setup.picture()[0])
    assert_close(*ends, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_beyond_float16_lowers_the_scale(launcher, kind) -> None:
    starts, problems = three()
    problems[1] = quadratic(2051, 9.0, 6)[1]
    setup = set_up(launcher, kind, starts, scaled=True, scale=2.0**10)
    for _ in range(3):
        setup.step(problems)
    launcher.upload(np.array([0, 1, 0], np.int32), setup.overflow)
    before = setup.picture()
    for times in (1, 2):
        setup.step(problems)
        after = setup.picture()
        assert np.array_equal(after[1], before[1])
        assert not np.array_equal(after[0], before[0])
        expected = [2.0**10, 2.0 ** (10 - 2 * times), 2.0**10]
        assert launcher.download(setup.loss_scale).tolist() == expected
    launcher.upload(np.zeros(3, np.int32), setup.overflow)
    setup.step(problems)
    assert not np.array_equal(setup.picture()[1], before[1])
    found = setup.read()
    assert found.skipped.tolist() == [0, 2, 0]
    assert not found.failed.any()
    assert len(found.terms) == 6
    # The skipped evaluations are in the log, all of the same point.
    losses = found.terms.sum(axis=2)[:, 1]
    assert losses[3] == losses[4] == losses[5] != losses[2]


def test_a_skipped_step_leaves_no_trace(launcher) -> None:
    ends = []
    for skipped in ((), (4, 5, 9)):
        start, problem = valley(64)
        setup = set_up(launcher, DeviceLbfgs, [start], scaled=True, scale=64.0)
        for step in range(15 + len(skipped)):
            launcher.upload(np.array([step in skipped], np.int32), setup.overflow)
            setup.step([problem])
        ends.append(setup.picture().tobytes())
    assert ends[0] == ends[1]


def test_the_scale_recovers_after_200_good_evaluations(launcher) -> None:
    start, problem = quadratic(16, 3.0, 8)
    setup = set_up(launcher, DeviceAdam, [start], scaled=True, scale=2.0)
    scales = []
    for step in range(1100):
        launcher.upload(np.array([step in (0, 50)], np.int32), setup.overflow)
        setup.step([problem])
        scales.append(float(launcher.download(setup.loss_scale)[0]))
    expected = [0.5] * 50 + [0.125] * 200 + [0.25] * 200 + [0.5] * 200 + [1.0] * 200 + [2.0] * 250
    assert scales == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_has_an_end(launcher, kind) -> None:
    start, problem = quadratic(16, 3.0, 8)
    setup = set_up(launcher, kind, [start], scaled=True, scale=2.0**-21)
    launcher.upload(np.array([1], np.int32), setup.overflow)
    for _ in range(4):
        setup.step([problem])
    assert launcher.download(setup.loss_scale).tolist() == [2.0**-24]
    found = setup.read()
    assert (found.failed.tolist(), found.skipped.tolist()) == ([3], [2])
    assert np.array_equal(setup.picture()[0], start)


@pytest.mark.parametrize("kind", KINDS)
def test_without_float16_a_useless_gradient_is_a_failure(launcher, kind) -> None:
    starts, problems = three()
    setup = set_up(launcher, kind, starts)
    for _ in range(2):
        setup.step(problems)
    launcher.upload(np.array([0, 0, 1], np.int32), setup.overflow)
    best = launcher.download(setup.optimizer.best)
    setup.step(problems)
    assert setup.read().failed.tolist() == [0, 0, 3]
    assert np.array_equal(setup.picture()[2], best[2])
    assert launcher.download(setup.loss_scale).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_its_picture_alone(launcher, kind, loss) -> None:
    starts, problems = three()
    setup = set_up(launcher, kind, starts, scaled=True)
    for _ in range(5):  # the second picture is among refused points
        setup.step(problems)
    best = launcher.download(setup.optimizer.best)
    setup.step([problems[0], lambda x: (loss, np.full(x.size, np.nan)), problems[2]])
    after = setup.picture()
    assert np.array_equal(after[1], best[1])
    for _ in range(4):
        setup.step(problems)
    assert np.array_equal(setup.picture()[1], best[1])
    assert not np.array_equal(setup.picture()[2], after[2])
    found = setup.read()
    assert found.failed.tolist() == [0, 6, 0]
    assert np.isfinite(found.terms[:, [0, 2]]).all()


def test_a_gradient_too_large_to_square_is_a_failure(launcher) -> None:
    start, problem = quadratic(40, 3.0, 9)
    setup = set_up(launcher, DeviceLbfgs, [start])
    setup.step([problem])
    here = setup.picture()
    setup.step([lambda x: (0.0, np.full(x.size, 1e30))])
    assert setup.read().failed.tolist() == [2]
    for _ in range(2):
        assert np.array_equal(setup.picture(), here)
        setup.step([problem])


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_keeps_the_newest(launcher, kind) -> None:
    starts, _ = three()
    setup = set_up(launcher, kind, starts, log=5)
    count = 0
    for steps, kept in [(3, 3), (5, 5), (0, 0), (13, 5), (4, 4)]:
        for _ in range(steps):
            for array in setup.terms:
                rows, columns = np.indices(array.shape)
                launcher.upload(count + rows / 64 + columns / 8, array)
            setup.optimizer.step()
            count += 1
        found = setup.read().terms
        assert found.shape == (kept, 3, 7)
        columns = np.concatenate([np.arange(5), np.arange(2)]) / 8
        for i, terms in enumerate(found):
            expected = count - kept + i + np.arange(3)[:, None] / 64 + columns
            assert np.array_equal(terms, expected)


def test_the_best_is_the_last_accepted_point(launcher) -> None:
    starts, problems = three()
    setup = set_up(launcher, DeviceLbfgs, starts)
    for _ in range(5):  # the second picture's last step was refused
        best = launcher.download(setup.optimizer.best)
        here = setup.picture()
        setup.step(problems)
    assert np.array_equal(launcher.download(setup.optimizer.best)[1], best[1])
    assert np.array_equal(launcher.download(setup.optimizer.best)[0], here[0])


def test_a_stationary_point_stays(launcher) -> None:
    x = np.full(20, 0.5, np.float32)
    for kind in KINDS:
        setup = set_up(launcher, kind, [x])
        for _ in range(5):
            setup.step([lambda x: (1.0, np.zeros(x.size))])
        assert np.array_equal(setup.picture()[0], x)
        assert not setup.read().failed.any()


def test_a_long_run_ends_as_low_as_on_the_cpu(launcher) -> None:
    start, problem = quadratic(200, 100.0, 10)
    setup = set_up(launcher, DeviceLbfgs, [start], log=300)
    for _ in range(300):
        setup.step([problem])
    x = start.copy()
    host, losses = Lbfgs(x, Kernels(1)), []
    for _ in range(300):
        loss, gradient = problem(x.astype(np.float64))
        losses.append(loss)
        host.step(loss, gradient.astype(np.float32))
    found = setup.read().terms.sum(axis=(1, 2))
    assert min(losses) < 1e-8 * losses[0]
    assert found.min() < 1e-8 * losses[0]


def test_arrays_that_do_not_fit_are_refused() -> None:
    launcher = launcher_for("shim")
    x, n = launcher.zeros((2, 9)), launcher.zeros((2,))
    terms, overflow = [launcher.zeros((2, 3), np.float64)], launcher.zeros((2,), np.int32)
    fits = Watched(x, x, terms, loss_scale=n, overflow=overflow, scaled=False, log=4)
    with pytest.raises(ShapeError, match=r"x: needs shape \(N, D\)"):
        DeviceAdam(launcher, replace(fits, x=n))
    with pytest.raises(ShapeError, match=r"gradient: needs shape \(2, 9\)"):
        DeviceLbfgs(launcher, replace(fits, gradient=n))
    with pytest.raises(ShapeError, match=r"terms\[0\]: needs shape .* float64, not .* float32"):
        DeviceAdam(launcher, replace(fits, terms=[x]))
    with pytest.raises(ShapeError, match=r"loss_scale: needs shape \(2,\) float32"):
        DeviceAdam(launcher, replace(fits, loss_scale=overflow))
    with pytest.raises(SettingsError, match="history must be from 1 to 100, not 101"):
        DeviceLbfgs(launcher, fits, history=101)
    with pytest.raises(SettingsError, match="log must be at least 1, not 0"):
        DeviceAdam(launcher, replace(fits, log=0))


def test_the_longest_history_works(launcher) -> None:
    start, problem = quadratic(130, 1e3, 11)
    setup = set_up(launcher, DeviceLbfgs, [start], history=100, max_step=1.0)
    losses = [setup.step([problem])[0] for _ in range(110)]
    assert min(losses) < 1e-6 * losses[0]
