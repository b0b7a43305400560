"""Functions to minimise, in float64: a start, and what gives loss and gradient at a point."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Problem = Callable[[Float64], tuple[float, Float64]]


def quadratic(D: int, condition: float, seed: int) -> tuple[np.ndarray, Problem]:
    rng = np.random.default_rng(seed)
    h, minimum = np.geomspace(1 / condition, 1, D), rng.uniform(0.2, 0.8, D)
    start = rng.uniform(0, 1, D).astype(np.float32)
    return start, lambda x: (0.5 * float(h @ (x - minimum) ** 2), h * (x - minimum))


def valley(D: int) -> tuple[np.ndarray, Problem]:
    """Rosenbrock's function of neighbours, chained, so that any D will do."""

    def value(x: Float64) -> tuple[float, Float64]:
        r, gradient = x[1:] - x[:-1] ** 2, 2 * (x - 1)
        gradient[1:] += 20 * r
        gradient[:-1] -= 40 * x[:-1] * r
        return float(np.sum((x - 1) ** 2) + 10 * np.sum(r**2)), gradient

    return np.full(D, -0.4, np.float32) + np.arange(D, dtype=np.float32) % 3, value


def saddle(D: int) -> tuple[np.ndarray, Problem]:
    """A start of negative curvature, whose pairs must be left out."""
    x = 0.1 * np.random.default_rng(1).standard_normal(D)
    return x.astype(np.float32), lambda x: (float(np.sum(x**4 - x**2)), 4 * x**3 - 2 * x)


def walled(
    start: np.ndarray, problem: Problem, first: int, last: int, height: float = 1e3
) -> tuple[np.ndarray, Problem]:
    """From evaluation ``first`` to ``last`` the loss is so high that points are refused."""
    evaluations = 0

    def value(x: Float64) -> tuple[float, Float64]:
        nonlocal evaluations
        evaluations += 1
        loss, gradient = problem(x)
        return loss + height * (first <= evaluations <= last), gradient

    return start, value


def unruly(D: int, seed: int) -> tuple[np.ndarray, Problem]:
    """A quadratic of which loss and gradient are so noisy that every decision is met."""
    start, smooth = quadratic(D, 10.0, seed)
    rng = np.random.default_rng(seed)

    def value(x: Float64) -> tuple[float, Float64]:
        loss, gradient = smooth(x)
        rms = np.sqrt(np.mean(gradient**2))
        off = 1 if rng.random() < 0.3 else 0.02
        return loss * (1 + 0.1 * off * rng.random()), gradient + rms * rng.normal(0, 3 * off, D)

    return start, value
