"""Smoothing on a GPU against float64, and the same interface as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from closeness import assert_close
from device_arrays import launcher_for
from shim import LAUNCHERS

from nst_fast.config import LEAST_SMOOTHING
from nst_fast.device import Launcher
from nst_fast.gpu.smoothing import DeviceSmoothing
from nst_fast.kernels import Kernels
from nst_fast.smoothing import SHARE, Pixels, Smoothing, taps


@pytest.fixture(params=LAUNCHERS)
def launcher(request) -> Launcher:
    return launcher_for(request.param)


def line_matrix(length: int, taps: np.ndarray) -> np.ndarray:
    """G along one line, from numpy's padding."""
    radius = len(taps) - 1
    shown = np.pad(np.arange(length), radius, mode="symmetric")
    G = np.zeros((length, length))
    for n in range(length):
        for k in range(-radius, radius + 1):
            G[n, shown[n + radius + k]] += taps[abs(k)]
    return G


PLANES = [(1, 1, 1, 1), (2, 3, 1, 7), (1, 3, 9, 1), (2, 3, 33, 65), (1, 2, 150, 37), (1, 1, 64, 96)]


@pytest.mark.parametrize("corner", [LEAST_SMOOTHING, 0.03, 0.1, 0.45])  # the first wider than most
@pytest.mark.parametrize("shape", PLANES, ids=str)
def test_smoothing_is_that_of_float64(launcher, shape, corner) -> None:
    rng = np.random.default_rng([*shape, round(100 * corner)])
    start, z, other, g = rng.standard_normal((4, *shape)).astype(np.float32)
    g_taps = taps(corner)
    tolerance = 5e-6 if corner == LEAST_SMOOTHING else 1e-6  # sums of 97 values twice
    rows, columns = (line_matrix(length, g_taps) for length in shape[2:])
    x, gradient = launcher.put(start), launcher.put(g)
    smoothing = DeviceSmoothing(launcher, x, gradient, corner)
    launcher.upload(z, smoothing.z)
    assert smoothing.place() is x
    moved = launcher.download(x)
    for of_z, found in ((z, moved), (other, smoothing.place(launcher.put(other)))):
        expected = start + SHARE * of_z + (1 - SHARE) * rows @ of_z @ columns.T
        assert_close(launcher.download(found), expected, tolerance)
    assert np.array_equal(launcher.download(smoothing.place()), moved)
    smoothing.pull_back()
    back = launcher.download(smoothing.gradient)
    assert_close(back, SHARE * g + (1 - SHARE) * rows.T @ g @ columns, tolerance)
    moved = moved.astype(np.float64) - start
    within = tolerance * np.linalg.norm(moved) * np.linalg.norm(g)
    assert np.vdot(moved, g) == pytest.approx(np.vdot(z.astype(np.float64), back), abs=within)


def test_ones_stay_ones(launcher) -> None:
    x = launcher.zeros((2, 3, 40, 50))
    smoothing = DeviceSmoothing(launcher, x, launcher.zeros(x.shape), 0.05)
    launcher.fill(smoothing.z, 1)
    np.testing.assert_allclose(launcher.download(smoothing.place()), 1.0, rtol=1e-6)


@pytest.mark.parametrize("where", LAUNCHERS)
def test_the_same_smoothing_gives_the_same_bits_for_any_number_of_pictures(where) -> None:
    z = np.random.default_rng(0).standard_normal((3, 3, 31, 45)).astype(np.float32)
    found = []
    for seed, part in ((1, z), (2, z), (3, z[1:2])):
        launcher = launcher_for(where, seed)
        x = launcher.zeros(part.shape)
        smoothing = DeviceSmoothing(launcher, x, x, 0.07)
        launcher.upload(part, smoothing.z)
        smoothing.place()
        smoothing.pull_back()
        found.append(launcher.download(smoothing.gradient))
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0][1].tobytes() == found[2][0].tobytes()


def test_both_devices_agree(launcher) -> None:
    x, z, g = np.random.default_rng(1).standard_normal((3, 2, 3, 19, 23)).astype(np.float32)
    here = Smoothing(x.copy(), g.copy(), 0.1, Kernels(1))
    there = DeviceSmoothing(launcher, launcher.put(x), launcher.put(g), 0.1)
    here.z[:] = z
    launcher.upload(z, there.z)
    here.pull_back()
    there.pull_back()
    assert_close(launcher.download(there.place()), here.place(), 1e-6)
    assert_close(launcher.download(there.gradient), here.gradient, 1e-6)
    assert here.bounds == there.bounds == (-np.inf, np.inf)


def test_pixels_are_their_own_variable() -> None:
    x, gradient, other = np.random.default_rng(1).random((3, 1, 3, 4, 5), np.float32)
    pixels = Pixels(x, gradient)
    pixels.pull_back()
    assert pixels.z is x
    assert pixels.gradient is gradient
    assert pixels.place() is x
    assert pixels.place(other) is other
    assert pixels.bounds == (0.0, 1.0)
