"""The kernels of the optimisers' steps, against float64."""

from __future__ import annotations

import kernel_cases
import numpy as np
import pytest
import reference
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import assert_unharmed, guarded, normal

from nst_fast.kernels import Kernels

path = kernel_cases.path
kernels = kernel_cases.kernels


@pytest.mark.parametrize("D", [1, 15, 16, 1023, 1025, 16384, 40_001])
@pytest.mark.parametrize(("slot", "count"), [(0, 1), (1, 4), (3, 4)])
def test_lbfgs_update(kernels: Kernels, D: int, slot: int, count: int) -> None:
    m = 4
    x, g = normal(D, D), normal(D + 1, D)
    (x_prev, x_buffer), (g_prev, g_buffer) = guarded(D), guarded(D)
    x_prev[:], g_prev[:] = normal(D + 2, D), normal(D + 3, D)
    s, y = (reference.bfloat16(d) for d in (x - x_prev, g - g_prev))
    history = reference.bfloat16(normal(D + 4, 2 * m * D)).reshape(2 * m, D)
    history[[i for i in range(2 * m) if i % m >= count]] = 0x7FC0  # empty slots are never read
    expected_history = history.copy()
    expected_history[slot], expected_history[m + slot] = s, y
    dots = np.full((3, 2 * m + 1), np.nan)
    kernels.lbfgs_update(x, x_prev, g, g_prev, history, slot=slot, count=count, dots=dots)

    assert np.array_equal(history, expected_history)
    assert np.array_equal(x_prev, x)
    assert np.array_equal(g_prev, g)
    rows = np.vstack([reference.widen(expected_history), g]).astype(np.float64)
    for row, ours in zip(dots, (rows[slot], rows[m + slot], rows[-1]), strict=True):
        for column, theirs in zip(row, rows, strict=True):
            if np.isnan(theirs).any():
                assert column == 0
            else:
                scale = np.linalg.norm(ours) * np.linalg.norm(theirs)
                assert abs(column - ours @ theirs) <= 1e-6 * scale
    assert_unharmed(x_buffer)
    assert_unharmed(g_buffer)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_history_is_rounded_to_nearest_even(values: list[float]) -> None:
    x = np.array(values, np.float32)
    x = x[np.abs(x) < 3e38]  # beyond it the nearest is infinite
    if x.size == 0:
        return
    zeros = [np.zeros_like(x) for _ in range(3)]
    history, dots = np.zeros((2, x.size), np.uint16), np.zeros((3, 3))
    Kernels(1).lbfgs_update(x, *zeros, history, slot=0, count=1, dots=dots)
    assert np.array_equal(history[0], reference.bfloat16(x))


@pytest.mark.parametrize("D", [1, 15, 17, 1023, 40_001])
def test_lbfgs_direction(kernels: Kernels, D: int) -> None:
    g, x_prev, (x, buffer) = normal(D, D), normal(D + 1, D), guarded(D)
    history = reference.bfloat16(normal(D + 2, 6 * D)).reshape(6, D)
    coefficients = np.array([0.5, -2.0, 0.0, 1e-3, 0.0, 0.7])
    history[2] = history[4] = 0x7FC0  # rows without weight are never read
    kernels.lbfgs_direction(history, coefficients, g, x_prev, x, gradient_coefficient=-0.3)
    used = coefficients != 0
    rows = reference.widen(history[used]).astype(np.float64)
    assert_close(x, x_prev + coefficients[used] @ rows - 0.3 * g.astype(np.float64), 1e-6)
    assert_unharmed(buffer)


@pytest.mark.parametrize("D", [1, 17, 40_001])
def test_retract_and_clamp(kernels: Kernels, D: int) -> None:
    x_prev, (x, buffer) = normal(D, D), guarded(D)
    x[:] = normal(D + 1, D)
    expected = x_prev + 0.25 * (x.astype(np.float64) - x_prev)
    kernels.retract(x, x_prev, 0.25)
    assert_close(x, expected, 1e-6)
    x[D // 2] = np.nan
    expected = np.clip(x, -0.5, 0.75)
    kernels.clamp(x, -0.5, 0.75)
    assert np.array_equal(x, expected, equal_nan=True)
    assert_unharmed(buffer)


@pytest.mark.parametrize("D", [1, 17, 1024, 40_001])
def test_adam_update(kernels: Kernels, D: int) -> None:
    (x, buffer), m, v = guarded(D), np.zeros(D, np.float32), np.zeros(D, np.float32)
    x[:] = np.abs(normal(D, D)).clip(0, 1)
    expected = reference.Adam(x.astype(np.float64), 0.02, 0.9, 0.99, 1e-8)
    for count in range(1, 6):
        g = normal(D + count, D) * np.float32(10.0 ** (count - 3))
        squares = kernels.adam_update(
            x, g, m, v, count=count, learning_rate=0.02, beta1=0.9, beta2=0.99, epsilon=1e-8,
            low=0.0, high=1.0,
        )  # fmt: skip
        expected.step(g.astype(np.float64), 0.0, 1.0)
        assert_close(squares, float((g.astype(np.float64) ** 2).sum()), 1e-6)
        assert_close(x, expected.x)
        assert_close(m, expected.m)
        assert_close(v, expected.v)
    assert_unharmed(buffer)
