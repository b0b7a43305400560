"""The terms of the picture in csrc/steps.cu against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from closeness import assert_close
from device_arrays import launcher_for, narrow, on, widen
from hypothesis import given, settings
from hypothesis import strategies as st
from shim import LAUNCHERS

from nst_fast.cuda import Launcher
from nst_fast.errors import ShapeError
from nst_fast.kernels import picture
from nst_fast.kernels.picture import PictureKernels

DTYPES = [np.float32, np.float16, np.uint16]


@pytest.fixture(params=LAUNCHERS)
def launcher(request) -> Launcher:
    return launcher_for(request.param)


def check_picture(
    launcher: Launcher, shape: tuple[int, int, int], dtype: Any, weights: tuple[float, float]
) -> None:
    n, height, width = shape
    rng = np.random.default_rng([n, height, width])
    image = rng.normal(0.5, 0.8, (n, 3, height, width)).astype(np.float32)
    scale = 2.0 ** rng.integers(-3, 12, n).astype(np.float32)
    d_image = narrow(rng.standard_normal(image.shape), dtype)
    gradient = on(launcher, np.full(image.shape, np.nan, np.float32))
    kernels = PictureKernels(
        launcher,
        on(launcher, image),
        on(launcher, d_image),
        gradient,
        on(launcher, scale),
        tv=weights[0],
        range_weight=weights[1],
    )
    launcher.upload(np.full((n, 2), np.nan), kernels.terms)
    launcher.upload(np.full(n, 7, np.int32), kernels.overflow)
    kernels.run()
    x, means = image.astype(np.float64), [np.full(n, w / image[0].size) for w in weights]
    variation, of_variation = reference.total_variation(x, means[0])
    outside, of_range = reference.range_penalty(x, means[1])
    expected = widen(d_image) / scale[:, None, None, None] + of_variation + of_range
    for i in range(n):
        assert_close(launcher.download(gradient)[i], expected[i], 1e-6)
    assert_close(launcher.download(kernels.terms), np.stack([variation, outside], axis=1), 1e-6)
    assert not launcher.download(kernels.overflow).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 4), (3, 5, 7), (2, 16, 24), (1, 37, 48)])
def test_picture_terms(launcher, shape, dtype) -> None:
    check_picture(launcher, shape, dtype, (3.0, 50.0))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    dtype=st.sampled_from(DTYPES),
    weights=st.sampled_from([(0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (1.0, 9.0)]),
)
@settings(deadline=None, max_examples=25)
def test_picture_terms_of_any_shape(shape, dtype, weights) -> None:
    check_picture(launcher_for("shim"), shape, dtype, weights)


@pytest.mark.parametrize("width", [40, 39])
def test_few_blocks_pass_over_a_large_picture(launcher, monkeypatch, width) -> None:
    monkeypatch.setattr(picture, "MOST_BLOCKS", 1)
    check_picture(launcher, (2, 64, width), np.float16, (1.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("width", [8, 7])
def test_a_gradient_that_is_not_finite_is_found(launcher, dtype, value, width) -> None:
    shape = (4, 3, 6, width)
    d_image = np.ones(shape, np.float32)
    d_image[1, 0, 0, 0] = d_image[2, 2, 5, width - 1] = value
    image = on(launcher, np.full(shape, 0.5, np.float32))
    bits = (d_image.view(np.uint32) >> 16).astype(np.uint16)
    provided = on(launcher, bits if dtype == np.uint16 else d_image.astype(dtype))
    scale = on(launcher, np.ones(4, np.float32))
    gradient = launcher.zeros(shape)
    kernels = PictureKernels(launcher, image, provided, gradient, scale, tv=1.0, range_weight=1.0)
    kernels.run()
    assert launcher.download(kernels.overflow).tolist() == [0, 1, 1, 0]
    launcher.upload(narrow(np.ones(shape), dtype), provided)
    kernels.run()
    assert not launcher.download(kernels.overflow).any()


def test_pictures_that_do_not_fit_are_refused() -> None:
    launcher = launcher_for("shim")
    image, scale = launcher.zeros((2, 3, 4, 5)), launcher.zeros((2,))
    wrong = launcher.zeros((2, 3, 4, 4))
    weights = {"tv": 1.0, "range_weight": 1.0}
    with pytest.raises(ShapeError, match=r"image: needs shape \(N, 3, H, W\)"):
        PictureKernels(launcher, scale, image, image, scale, **weights)
    with pytest.raises(ShapeError, match=r"d_image: needs shape \(2, 3, 4, 5\) .* \(2, 3, 4, 4\)"):
        PictureKernels(launcher, image, wrong, image, scale, **weights)
    doubles = launcher.zeros(image.shape, np.float64)
    with pytest.raises(ShapeError, match=r"gradient: .* float32, not .* float64"):
        PictureKernels(launcher, image, image, doubles, scale, **weights)
