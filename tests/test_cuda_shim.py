"""The shim runs right kernels right, and notices wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
from shim import SHIM, ShimLauncher, joined_source


@pytest.fixture
def launcher(seed: int) -> ShimLauncher:
    source = joined_source("device.cuh") + (SHIM / "selftest.cu").read_text()
    return ShimLauncher(source, seed)


def filled(launcher: ShimLauncher, values: np.ndarray) -> np.ndarray:
    array = launcher.zeros(values.shape, values.dtype)
    launcher.upload(values, array)
    return array


def test_barriers_and_shared_memory(launcher, seed):
    values = np.random.default_rng(seed).random(3 * 64, np.float32)
    out = launcher.zeros(values.shape)
    launcher.launch("reverse_block", (3, 1, 1), 64, [filled(launcher, values), out, np.int32(150)])
    values[150:] = 0
    np.testing.assert_array_equal(out, values.reshape(3, 64)[:, ::-1].reshape(-1))


def test_block_sum_is_the_same_in_any_order(launcher, seed):
    values = np.random.default_rng(seed).standard_normal(5 * 256).astype(np.float32)
    sums = [launcher.zeros((5,), np.float64) for _ in range(4)]
    for out in sums:
        launcher.launch("sum_blocks", (5, 1, 1), 256, [filled(launcher, values), out])
    np.testing.assert_allclose(
        sums[0], values.reshape(5, 256).sum(axis=1, dtype=np.float64), rtol=1e-12, atol=1e-12
    )
    assert all((out == sums[0]).all() for out in sums)


def test_conversions_round_to_nearest_even(launcher, seed):
    random = np.random.default_rng(seed)
    bits = random.integers(2**32, size=4096, dtype=np.uint32)
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 65519, 65520, 2**-25, 1 + 2**-11])
    moderate = random.standard_normal(4096).astype(np.float32)
    values = np.concatenate([bits.view(np.float32), special, moderate])
    half = launcher.zeros(values.shape, np.float16)
    bfloat = launcher.zeros(values.shape, np.uint16)
    arguments = [filled(launcher, values), half, bfloat, np.int32(values.size)]
    launcher.launch("convert", (-(-values.size // 64), 1, 1), 64, arguments)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(half, values.astype(np.float16))
    wide = (bfloat.astype(np.uint32) << 16).view(np.float32)
    nan = np.isnan(values)
    assert (np.isnan(wide) == nan).all()
    exact = values[~nan].view(np.uint32).astype(np.uint64)
    low, up = exact % 2**16, (exact >> 16) & 1
    rounded = (exact >> 16) + ((low > 2**15) | ((low == 2**15) & (up == 1)))
    np.testing.assert_array_equal(bfloat[~nan], rounded)


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [("leave_early", "others have finished"), ("split_warp", "not of one mind")],
)
def test_divergence_is_noticed(launcher, kernel, complaint):
    with pytest.raises(AssertionError, match=complaint):
        launcher.launch(kernel, (1, 1, 1), 64, [launcher.zeros((64,))])


def test_a_missing_barrier_shows_as_nan(launcher):
    out = launcher.zeros((64,))
    launcher.launch("forget_barrier", (1, 1, 1), 64, [out])
    assert np.isnan(out).any()


def test_a_copy_not_waited_for_shows_as_nan(launcher):
    out = launcher.zeros((4,))
    launcher.launch("forget_copy", (1, 1, 1), 32, [filled(launcher, np.ones(4, np.float32)), out])
    assert np.isnan(out).all()


def test_a_write_beside_an_array_is_noticed(launcher):
    with pytest.raises(AssertionError, match="beside an array"):
        launcher.launch("write_outside", (1, 1, 1), 32, [launcher.zeros((7,)), np.int32(7)])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([np.zeros(64), np.int32(7)], "float64 for"),
        ([np.zeros(64, np.float32), np.int64(7)], "int64 for i4"),
        ([np.zeros((64, 2), np.float32)[:, 0], np.int32(7)], "gaps"),
        ([np.zeros(64, np.float32)], "takes"),
    ],
)
def test_arguments_are_checked(launcher, arguments, complaint):
    with pytest.raises(AssertionError, match=complaint):
        launcher.launch("write_outside", (1, 1, 1), 32, arguments)
