from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
from closeness import assert_close
from numpy.typing import NDArray

from nst_fast.errors import NonFiniteError
from nst_fast.kernels import Kernels
from nst_fast.optimizers import Adam, Lbfgs, Optimizer

Float64 = NDArray[np.float64]
Problem = Callable[[Float64], tuple[float, Float64]]


class Recorder:
    """Kernels that remember by how much steps were shortened."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.retracts: list[float] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.kernels, name)

    def retract(self, x: np.ndarray, x_prev: np.ndarray, ratio: float) -> None:
        self.retracts.append(ratio)
        self.kernels.retract(x, x_prev, ratio)


@pytest.fixture
def kernels() -> Recorder:
    return Recorder(Kernels(2))


def quadratic(D: int, condition: float, seed: int = 0) -> tuple[np.ndarray, Problem]:
    """Return a start and ½ Σ h (x − x*)², curvatures h from 1/condition to 1, minimum 0."""
    rng = np.random.default_rng(seed)
    h, minimum = np.geomspace(1 / condition, 1, D), rng.standard_normal(D)
    start = rng.standard_normal(D).astype(np.float32)
    return start, lambda x: (0.5 * float(h @ (x - minimum) ** 2), h * (x - minimum))


def rosenbrock(D: int) -> tuple[np.ndarray, Problem]:
    """Return the start and the function of Moré, Garbow & Hillstrom 1981, problem 21; minimum 0."""

    def value(x: Float64) -> tuple[float, Float64]:
        a, b = x[::2], x[1::2]
        r, gradient = b - a * a, np.empty_like(x)
        gradient[::2], gradient[1::2] = -400 * a * r - 2 * (1 - a), 200 * r
        return float(np.sum(100 * r * r + (1 - a) ** 2)), gradient

    return np.tile(np.array([-1.2, 1.0], np.float32), D // 2), value


def minimise(
    optimizer: Optimizer, x: np.ndarray, problem: Problem, evaluations: int, noise: float = 0.0
) -> list[float]:
    """Run and return the true loss of each accepted point; noise is relative, on the gradient."""
    rng, accepted = np.random.default_rng(5), []
    for _ in range(evaluations):
        loss, gradient = problem(x.astype(np.float64))
        seen = loss
        if noise > 0:
            rms = np.sqrt(np.mean(gradient**2))
            gradient = gradient + noise * rms * rng.standard_normal(x.size)
            seen = float(reference.widen(reference.bfloat16(np.array([loss], np.float32)))[0])
        if optimizer.step(seen, gradient.astype(np.float32)):
            accepted.append(loss)
    return accepted


@pytest.mark.parametrize("steps", [3, 7, 12])
def test_direction_is_that_of_dense_bfgs(kernels: Recorder, steps: int) -> None:
    m, D = 5, 40
    x, problem = quadratic(D, 30.0)
    optimizer = Lbfgs(x, kernels, history=m, max_step=1e9)
    pairs: list[tuple[Float64, Float64]] = []
    x_before, g_before = x.copy(), np.zeros(D)
    for step in range(steps):
        x_now = x.astype(np.float64)
        loss, gradient = problem(x_now)
        gradient = gradient.astype(np.float32).astype(np.float64)
        if step > 0:
            s = reference.bfloat16((x - x_before).astype(np.float32))
            y = reference.bfloat16((gradient - g_before).astype(np.float32))
            s64, y64 = (reference.widen(v).astype(np.float64) for v in (s, y))
            pairs = [*pairs, (s64, y64)][-m:]
        x_before, g_before = x.copy(), gradient
        assert optimizer.step(loss, gradient.astype(np.float32))
    s, y = pairs[-1]
    cosine = s @ y / (np.linalg.norm(s) * np.linalg.norm(y))
    expected = reference.lbfgs_direction(g_before, pairs, s @ y / (y @ y) / np.sqrt(cosine))
    assert_close(x.astype(np.float64) - x_before, expected, 1e-4)


def test_first_step_has_the_asked_length(kernels: Recorder) -> None:
    for scale in (1e-6, 1.0, 1e6):
        x, problem = quadratic(500, 10.0)
        before = x.copy()
        loss, gradient = problem(x.astype(np.float64))
        Lbfgs(x, kernels, first_step=0.015).step(
            scale * loss, (scale * gradient).astype(np.float32)
        )
        moved = x - before
        assert np.sqrt(np.mean(moved**2)) == pytest.approx(0.015, rel=1e-3)
        assert moved @ gradient < 0


def test_no_step_is_longer_than_asked(kernels: Recorder) -> None:
    x, problem = rosenbrock(100)
    optimizer = Lbfgs(x, kernels, first_step=0.02, max_step=0.03)
    longest, anchor = 0.0, x.copy()
    for _ in range(40):
        loss, gradient = problem(x.astype(np.float64))
        here = x.copy()
        if optimizer.step(loss, gradient.astype(np.float32)):
            anchor = here
        longest = max(longest, float(np.sqrt(np.mean((x - anchor) ** 2))))
    assert 0.0299 < longest < 0.0301


@pytest.mark.parametrize("condition", [10.0, 1e3])
@pytest.mark.parametrize("D", [33, 5000])
def test_quadratic_reaches_its_minimum(kernels: Recorder, D: int, condition: float) -> None:
    x, problem = quadratic(D, condition)
    start = problem(x.astype(np.float64))[0]
    losses = minimise(Lbfgs(x, kernels, max_step=1.0), x, problem, 200)
    assert min(losses) < 1e-6 * start


def test_rosenbrock_reaches_its_minimum(kernels: Recorder) -> None:
    x, problem = rosenbrock(20_000)
    optimizer = Lbfgs(x, kernels, max_step=1.0)
    assert min(minimise(optimizer, x, problem, 150)) < 1e-6
    assert_close(optimizer.best, np.ones(x.size), 1e-3)


@pytest.mark.parametrize("make", [lambda: quadratic(4000, 1e3), lambda: rosenbrock(4000)])
def test_noise_of_bfloat16_does_not_stop_it(
    kernels: Recorder, make: Callable[[], tuple[np.ndarray, Problem]]
) -> None:
    x, problem = make()
    start = problem(x.astype(np.float64))[0]
    optimizer = Lbfgs(x, kernels, max_step=1.0, noise=1e-2)
    losses = minimise(optimizer, x, problem, 200, noise=0.02)
    assert min(losses) < 1e-3 * start
    # Never far above the best: the loss cannot drift.
    best = np.minimum.accumulate(losses)
    assert (losses[1:] <= 1.03 * best[:-1]).all()


@pytest.mark.parametrize("first_step", [1e-6, 1e3])
@pytest.mark.parametrize("make", [lambda: quadratic(400, 1e2), lambda: rosenbrock(400)])
def test_absurd_first_step_never_diverges(
    kernels: Recorder, make: Callable[[], tuple[np.ndarray, Problem]], first_step: float
) -> None:
    x, problem = make()
    start = problem(x.astype(np.float64))[0]
    optimizer = Lbfgs(x, kernels, first_step=first_step, max_step=1e4)
    losses = minimise(optimizer, x, problem, 200)
    assert max(losses) <= start * (1 + 1e-6)
    assert losses[-1] < 1e-3 * start
    if first_step == 1e3:
        assert len(kernels.retracts) >= 3
        assert all(0.1 <= ratio <= 0.5 for ratio in kernels.retracts)


def test_backtracks_then_gives_the_history_up(kernels: Recorder) -> None:
    x, problem = quadratic(100, 10.0)
    optimizer = Lbfgs(x, kernels, first_step=0.02, max_step=0.5)
    minimise(optimizer, x, problem, 5)
    x[:] = optimizer.best
    anchor = x.copy()
    loss, gradient = problem(anchor.astype(np.float64))
    assert optimizer.step(loss, gradient.astype(np.float32))
    distances, cosines = [], []
    for _ in range(30):  # a wall: everything but the anchor is refused
        step = x.astype(np.float64) - anchor
        distances.append(float(np.linalg.norm(step)))
        if distances[-1] > 0:
            cosines.append(float(-step @ gradient / distances[-1] / np.linalg.norm(gradient)))
        assert not optimizer.step(loss + 1e6, np.full(100, 7e7, np.float32))
    assert distances[-1] < 1e-6 * distances[0]
    assert max(distances) == distances[0]
    assert max(cosines[:5]) < 0.99  # quasi-Newton
    assert cosines[5] > 0.999  # along the gradient
    assert optimizer.step(loss, gradient.astype(np.float32))  # and it can go on
    assert min(minimise(optimizer, x, problem, 100)) < 1e-3 * loss


def test_noise_is_measured_from_the_best_loss(kernels: Recorder) -> None:
    x, problem = quadratic(100, 10.0)
    gradient = problem(x.astype(np.float64))[1].astype(np.float32)
    optimizer = Lbfgs(x, kernels, noise=1e-3)
    judged = [optimizer.step(loss, gradient) for loss in (1.0, 1.0005, 1.0009, 1.0015, 1.0011)]
    assert judged == [True, True, True, False, False]


def test_negative_curvature_is_left_out(kernels: Recorder) -> None:
    x = np.random.default_rng(1).standard_normal(50).astype(np.float32) * np.float32(0.1)

    def saddle(x: Float64) -> tuple[float, Float64]:
        return float(np.sum(x**4 - x**2)), 4 * x**3 - 2 * x

    losses = minimise(Lbfgs(x, kernels), x, saddle, 100)
    assert losses[-1] == pytest.approx(-50 / 4, rel=1e-4)


def test_the_best_is_the_last_accepted_point(kernels: Recorder) -> None:
    x, problem = quadratic(64, 10.0)
    optimizer = Lbfgs(x, kernels)
    accepted = x.copy()
    for _ in range(20):
        here = x.copy()
        loss, gradient = problem(x.astype(np.float64))
        if optimizer.step(loss, gradient.astype(np.float32)):
            accepted = here
    assert np.array_equal(optimizer.best, accepted)


def test_a_stationary_point_stays(kernels: Recorder) -> None:
    x = np.full(20, 0.5, np.float32)
    optimizer = Lbfgs(x, kernels)
    for _ in range(5):
        assert optimizer.step(1.0, np.zeros(20, np.float32))
    assert (x == 0.5).all()


def test_adam_follows_the_paper(kernels: Recorder) -> None:
    x, problem = quadratic(333, 10.0)
    x = x.clip(0, 1)
    optimizer = Adam(x, kernels, learning_rate=0.05, beta1=0.8, beta2=0.95, epsilon=1e-6)
    expected = reference.Adam(x.astype(np.float64), 0.05, 0.8, 0.95, 1e-6)
    for _ in range(30):
        loss, gradient = problem(expected.x)
        assert optimizer.step(loss, gradient.astype(np.float32))
        expected.step(gradient, 0.0, 1.0)
        assert_close(x, expected.x)
    assert optimizer.best is x
    assert x.min() == 0.0
    assert x.max() == 1.0


@pytest.mark.parametrize("kind", [Adam, Lbfgs])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_non_finite_values_are_reported(
    kernels: Recorder, kind: type[Adam] | type[Lbfgs], what: str
) -> None:
    x, problem = quadratic(100, 10.0)
    optimizer = kind(x, kernels)
    minimise(optimizer, x, problem, 3)
    loss, gradient = problem(x.astype(np.float64))
    if what == "gradient":
        gradient[7] = np.nan
    with pytest.raises(NonFiniteError, match=f"{what} is not finite at evaluation 4"):
        optimizer.step(np.inf if what == "loss" else 0.9 * loss, gradient.astype(np.float32))


@pytest.mark.parametrize("kind", [Adam, Lbfgs])
def test_buffers_stay_where_they_are(kernels: Recorder, kind: type[Adam] | type[Lbfgs]) -> None:
    x, problem = rosenbrock(200)
    optimizer = kind(x, kernels)
    owned = {k: v.ctypes.data for k, v in vars(optimizer).items() if isinstance(v, np.ndarray)}
    assert len(owned) >= 3
    minimise(optimizer, x, problem, 40)
    for name, address in owned.items():
        assert vars(optimizer)[name].ctypes.data == address


@pytest.mark.parametrize("kind", [Adam, Lbfgs])
def test_same_steps_same_bits(kernels: Recorder, kind: type[Adam] | type[Lbfgs]) -> None:
    ends = []
    for threads in (1, 2):
        x, problem = rosenbrock(50_000)
        minimise(kind(x, Kernels(threads)), x, problem, 25)
        ends.append(x.tobytes())
    assert ends[0] == ends[1]
