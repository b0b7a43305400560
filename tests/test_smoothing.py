"""What the optimiser moves: B against its formula, its effect on loops and on convergence."""

from __future__ import annotations

import numpy as np
import pytest
from closeness import assert_close
from problems import make_objective, make_problem
from stylizing import SHALLOW

from nst_fast.config import LEAST_SMOOTHING, StyleSettings
from nst_fast.kernels import Kernels
from nst_fast.loop import HostLoop
from nst_fast.losses import Objective
from nst_fast.plan import Plan
from nst_fast.smoothing import SHARE, Smoothing, taps


@pytest.mark.parametrize("corner", [LEAST_SMOOTHING, 0.05, 0.1, 0.16, 0.25])
def test_a_step_has_half_its_effect_at_the_corner(corner):
    """Of a wave of that frequency in an endless picture."""
    g = taps(corner).astype(np.float64)
    assert g.dtype == np.float64
    assert g.min() >= 0
    assert g[0] + 2 * g[1:].sum() == pytest.approx(1, abs=1e-6)
    distances = np.arange(1, len(g))

    def effect(frequency: float) -> float:
        passed = g[0] + 2 * g[1:] @ np.cos(2 * np.pi * frequency * distances)
        return (SHARE + (1 - SHARE) * passed) ** 2

    assert effect(0) == pytest.approx(1, abs=1e-6)
    assert effect(corner) == pytest.approx(0.5, rel=0.03)
    assert effect(0.5) < 0.25


def test_the_highest_corner_smooths_a_little():
    g = taps(0.5)
    assert 0.7 < g[0] < 1


@pytest.mark.parametrize("corner", [0.05, 0.3])
def test_b_is_its_formula(corner):
    """For a picture that is smaller than the filter, too; B is symmetric and keeps constants."""
    height, width = 5, 7
    start = np.random.default_rng(0).random((1, 3, height, width), np.float32)
    x = start.copy()
    rng = np.random.default_rng(1)
    z, g = rng.standard_normal((2, 1, 3, height, width)).astype(np.float32)
    smoothing = Smoothing(x, g, corner, Kernels(1))
    half = taps(corner).astype(np.float64)
    whole, reach = np.concatenate([half[:0:-1], half]), len(half) - 1

    def along(u: np.ndarray, axis: int) -> np.ndarray:
        around = [(reach, reach) if axis == a else (0, 0) for a in range(4)]
        padded = np.pad(u, around, mode="symmetric")
        return np.apply_along_axis(np.convolve, axis, padded, whole, mode="valid")

    def smooth(u: np.ndarray) -> np.ndarray:
        return SHARE * u + (1 - SHARE) * along(along(u.astype(np.float64), 2), 3)

    smoothing.z[:] = z
    smoothing.place()
    assert_close(x, start + smooth(z), 1e-6)
    smoothing.pull_back()
    assert_close(smoothing.gradient, smooth(g), 1e-6)
    assert (smooth(z) * g).sum() == pytest.approx((z * smoothing.gradient).sum(), rel=1e-4)
    smoothing.z[:] = 1
    smoothing.place()
    assert_close(x, start + 1, 1e-6)


@pytest.fixture(scope="module")
def given(shipped, batch):
    objective = make_objective(shipped.encoder, **SHALLOW)
    pictures = (batch(name, 37, 29) for name in ("chelsea", "astronaut", "coffee"))
    return make_problem(shipped, objective, *pictures, margin=3)


def start(given, shipped, backend, **changes) -> HostLoop:
    where = backend("cpu", "fp32")
    plan = Plan(shipped.encoder, given.objective, given.canvas, where)
    plan.set_targets(given.targets, given.weights)
    return HostLoop(plan, StyleSettings(**changes), where.kernels, given.image)


def test_the_optimiser_sees_the_gradient_by_z(given, shipped, backend):
    """Differences of the loss along z."""
    loop = start(given, shipped, backend, smoothing=0.1)
    plan, smoothing = loop._plan, loop._variable

    def loss(z: np.ndarray) -> float:
        smoothing.z[:] = z
        smoothing.place()
        return float(plan.value_and_grad()[0])

    rng = np.random.default_rng(5)
    here = 0.05 * rng.standard_normal(smoothing.z.shape).astype(np.float32)
    loss(here)
    smoothing.pull_back()
    gradient = smoothing.gradient.astype(np.float64)
    for direction in (gradient / np.linalg.norm(gradient), rng.standard_normal(here.shape) / 10):
        step = 2e-3 * direction
        difference = loss(here + step) - loss(here - step)
        assert difference == pytest.approx(2 * (gradient * step).sum(), rel=0.01)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_look_does_not_disturb(given, shipped, backend, optimizer, smoothing):
    options = {"optimizer": optimizer, "smoothing": smoothing}
    alone, watched = (start(given, shipped, backend, **options) for _ in range(2))
    for _ in range(6):
        terms = alone.advance(1)
        watched.best()
        assert np.array_equal(terms, watched.advance(1))
    assert np.array_equal(alone.best(), watched.best())
    assert np.array_equal(alone.best(), alone.best())


def test_adam_moves_z_without_walls(given, shipped, backend):
    """z is no picture: it may be below 0."""
    loop = start(given, shipped, backend, optimizer="adam", smoothing=0.1)
    for _ in range(5):
        loop.advance(1)
    assert loop._variable.z.min() < -0.01


PAIRS = [("astronaut", "coffee"), ("chelsea", "astronaut"), ("coffee", "chelsea")]


def ripples(change: np.ndarray) -> float:
    """Energy of what a picture changed by, above 0.3 cycles a pixel."""
    down, across = (np.fft.fftfreq(length) for length in change.shape[2:])
    high = np.hypot(down[:, None], across) > 0.3
    return float(np.square(np.abs(np.fft.fft2(change)))[..., high].sum())


@pytest.mark.parametrize(("content", "style"), PAIRS)
def test_smoothing_leaves_ripples_out_at_the_same_loss(shipped, batch, backend, content, style):
    """Of default settings but for the total variation, which leaves few by itself."""
    where, settings = backend("cpu", "fp32"), StyleSettings(tv_weight=0.0)
    objective = Objective.from_settings(settings, shipped.encoder)
    start, painting = batch(content, 64, 48), batch(style, 72, 48)
    given = make_problem(shipped, objective, start, start, painting, margin=settings.margin)
    plan = Plan(shipped.encoder, objective, given.canvas, where)
    plan.set_targets(given.targets, given.weights)

    def run(**changes) -> tuple[float, float]:
        loop = HostLoop(plan, StyleSettings(**changes), where.kernels, given.image)
        losses = [loop.advance(1)[0].sum() for _ in range(settings.steps)]
        return min(losses), ripples(loop.best() - given.image)

    (loss, energy), (plain_loss, plain_energy) = run(), run(smoothing=0.0)
    print(f"{content} × {style}: loss {loss / plain_loss:.3f}, ripples {energy / plain_energy:.3f}")
    assert loss <= 1.05 * plain_loss
    assert energy <= 0.7 * plain_energy
