"""The canvas against numpy's padding, and what counts of it."""

from __future__ import annotations

import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st

from nst_fast.canvas import Canvas

SIDES = st.integers(1, 50)


@given(height=SIDES, width=SIDES, margin=st.integers(0, 120), power=st.integers(0, 5))
def test_a_canvas_mirrors_the_picture_as_numpy_does(height, width, margin, power):
    stride = 2**power
    canvas = Canvas.around(height, width, margin=margin, stride=stride)
    picture = np.arange(2 * height * width, dtype=np.float32).reshape(2, height, width)
    below, right = (
        total - length - before
        for total, length, before in zip(
            canvas.size, (height, width), (canvas.top, canvas.left), strict=True
        )
    )
    around = (0, 0), (canvas.top, below), (canvas.left, right)
    assert np.array_equal(canvas.extend(picture), np.pad(picture, around, mode="reflect"))
    assert canvas.rows.dtype == canvas.columns.dtype == np.int32
    for length, total, before in zip(
        (height, width), canvas.size, (canvas.top, canvas.left), strict=True
    ):
        assert total % stride == 0
        assert total - stride < length + 2 * margin <= total
        assert margin <= before <= total - length - before <= before + 1
    assert canvas.whole == (canvas.size == (height, width))


@given(height=SIDES, width=SIDES, margin=st.integers(0, 40), seed=st.integers(0, 2**31))
def test_weights_are_the_shares_of_cells_that_show(height, width, margin, seed):
    canvas = Canvas.around(height, width, margin=margin, stride=8)
    opacity = np.random.default_rng(seed).random((height, width), np.float32)
    for stride in (1, 2, 8):
        for shown in (None, opacity):
            found = canvas.weights(stride, shown)
            assert found.dtype == np.float32
            assert found.shape == tuple(side // stride for side in canvas.size)
            assert found.min() >= 0
            assert found.max() <= 1
            total = height * width if shown is None else opacity.sum(dtype=np.float64)
            assert found.sum(dtype=np.float64) * stride**2 == pytest.approx(total, rel=1e-5)
    row, column = canvas.top + height // 2, canvas.left + width // 2
    pixels = canvas.weights(1, opacity)
    assert pixels[row, column] == opacity[height // 2, width // 2]
    cell = pixels[row // 8 * 8 :, column // 8 * 8 :][:8, :8]
    assert_close(canvas.weights(8, opacity)[row // 8, column // 8], cell.mean(dtype=np.float64))


def test_a_picture_that_fills_its_canvas_counts_whole():
    canvas = Canvas.around(32, 48, margin=0, stride=16)
    assert canvas.whole
    assert (canvas.weights(4) == 1).all()
    assert not Canvas.around(32, 48, margin=1, stride=16).whole
