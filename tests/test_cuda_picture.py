"""Canvas and terms of the picture in csrc/terms.cu against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from closeness import assert_close
from device_arrays import launcher_for, narrow, widen
from hypothesis import given, settings
from hypothesis import strategies as st
from shim import LAUNCHERS

from nst_fast.canvas import Canvas
from nst_fast.device import Launcher
from nst_fast.errors import ShapeError
from nst_fast.gpu import picture
from nst_fast.gpu.picture import CanvasKernel, PictureKernels

DTYPES = [np.float32, np.float16, np.uint16]
MEAN = np.array([0.5, 0.4, 0.3], np.float32)


def bare(height: int, width: int) -> Canvas:
    """Without a margin."""
    return Canvas.around(height, width, margin=0, stride=1)


def fold(canvas: Canvas, shown: np.ndarray) -> np.ndarray:
    """What every pixel of the picture gets of the canvas, (..., H, W)."""
    rows = (canvas.rows == np.arange(canvas.height)[:, None]).astype(np.float64)
    columns = (canvas.columns == np.arange(canvas.width)[:, None]).astype(np.float64)
    return rows @ shown @ columns.T


def pixels(planes: np.ndarray, poison: float = 0.0) -> np.ndarray:
    """(N, channels, H, W) as pixels of 16 bytes, what lies behind the channels filled up."""
    last = np.moveaxis(planes, 1, -1)
    found = np.full((*last.shape[:3], 16 // planes.itemsize), poison, np.float32)
    found = narrow(found, planes.dtype)
    found[..., : last.shape[3]] = last
    return found


@pytest.fixture(params=LAUNCHERS)
def launcher(request) -> Launcher:
    return launcher_for(request.param)


def check_picture(
    launcher: Launcher,
    shape: tuple[int, int, int],
    dtype: Any,
    weights: tuple[float, float, float],
    canvas: Canvas | None = None,
) -> None:
    n, height, width = shape
    canvas = canvas or bare(height, width)
    rng = np.random.default_rng([n, height, width])
    image = rng.normal(0.5, 0.8, (n, 3, height, width)).astype(np.float32)
    scale = 2.0 ** rng.integers(-3, 12, n).astype(np.float32)
    d_canvas = narrow(rng.standard_normal((n, 3, *canvas.size)), dtype)
    gradient = launcher.put(np.full(image.shape, np.nan, np.float32))
    kernels = PictureKernels(
        launcher,
        canvas,
        launcher.put(image),
        d_canvas=launcher.put(pixels(d_canvas, np.nan)),
        gradient=gradient,
        loss_scale=launcher.put(scale),
        corner=0.3,
        temporal=weights[2] > 0,
    )
    kernels.set_weights(*weights)
    columns = 3 if weights[2] > 0 else 2
    anchor = rng.normal(0.5, 0.8, image.shape).astype(np.float32)
    seen = rng.random((n, height, width), np.float32)
    if weights[2] > 0:
        launcher.upload(anchor, kernels.anchor)
        launcher.upload(seen, kernels.anchor_weights)
    launcher.upload(np.full((n, columns), np.nan), kernels.terms)
    launcher.upload(np.full(n, 7, np.int32), kernels.overflow)
    kernels.run()
    x, means = image.astype(np.float64), [np.full(n, w / image[0].size) for w in weights]
    variation, of_variation = reference.total_variation(x, 0.3, means[0])
    outside, of_range = reference.range_penalty(x, means[1])
    off, of_anchor = reference.temporal_loss(
        x, anchor.astype(np.float64), seen.astype(np.float64), means[2]
    )
    folded = fold(canvas, widen(d_canvas))
    expected = folded / scale[:, None, None, None] + of_variation + of_range + of_anchor
    for i in range(n):
        assert_close(launcher.download(gradient)[i], expected[i], 3e-6)
    terms = np.stack([variation, outside, off], axis=1)[:, :columns]
    assert_close(launcher.download(kernels.terms), terms, 1e-6)
    assert not launcher.download(kernels.overflow).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 4), (3, 5, 7), (2, 16, 24), (1, 37, 48)])
def test_picture_terms(launcher, shape, dtype) -> None:
    check_picture(launcher, shape, dtype, (3.0, 50.0, 20.0))
    canvas = Canvas.around(*shape[1:], margin=7, stride=8)
    check_picture(launcher, shape, dtype, (3.0, 50.0, 0.0), canvas)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    dtype=st.sampled_from(DTYPES),
    weights=st.sampled_from(
        [(0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 5.0), (1.0, 9.0, 3.0)]
    ),
)
@settings(deadline=None, max_examples=25)
def test_picture_terms_of_any_shape(shape, dtype, weights) -> None:
    check_picture(launcher_for("shim"), shape, dtype, weights)


CANVASES = st.tuples(
    *(st.integers(1, 20), st.integers(1, 20), st.integers(0, 30), st.sampled_from([1, 4, 16]))
).map(lambda sizes: Canvas.around(*sizes[:2], margin=sizes[2], stride=sizes[3]))


@given(pictures=st.integers(1, 3), canvas=CANVASES, dtype=st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=25)
def test_gradients_of_any_canvas_are_folded(pictures, canvas, dtype) -> None:
    shape = pictures, canvas.height, canvas.width
    check_picture(launcher_for("shim"), shape, dtype, (1.0, 9.0, 4.0), canvas)


def show(launcher: Launcher, image: np.ndarray, canvas: Canvas, dtype: Any) -> np.ndarray:
    """The canvas that the kernel writes, (N, channels, H', W')."""
    poison = np.full((len(image), *canvas.size, 16 // np.dtype(dtype).itemsize), np.nan)
    shown = launcher.put(narrow(poison, dtype))
    CanvasKernel(launcher, canvas, launcher.put(image), shown, mean=MEAN).run()
    found = launcher.download(shown)
    assert not found[..., 3::4].any()
    return np.moveaxis(found, -1, 1)[:, np.arange(found.shape[-1]) % 4 < 3]


def check_canvas(launcher: Launcher, pictures: int, canvas: Canvas, dtype: Any) -> None:
    rng = np.random.default_rng([pictures, *canvas.size])
    image = rng.normal(0.5, 0.3, (pictures, 3, canvas.height, canvas.width)).astype(np.float32)
    found = show(launcher, image, canvas, dtype)
    centred = canvas.extend(image) - MEAN[:, None, None]
    if dtype == np.float32:
        assert np.array_equal(found, centred)
        return
    coarse = narrow(centred, dtype)
    fine = narrow(centred - widen(coarse).astype(np.float32), dtype)
    assert np.array_equal(found, np.concatenate([coarse, fine], axis=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 0, 1), (1, 1, 3, 4), (17, 9, 16, 16), (20, 48, 5, 1)])
def test_canvases(launcher, sizes, dtype) -> None:
    height, width, margin, stride = sizes
    check_canvas(launcher, 2, Canvas.around(height, width, margin=margin, stride=stride), dtype)


@given(pictures=st.integers(1, 3), canvas=CANVASES, dtype=st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=25)
def test_canvases_of_any_shape(pictures, canvas, dtype) -> None:
    check_canvas(launcher_for("shim"), pictures, canvas, dtype)


def test_folding_is_the_adjoint_of_extending(launcher) -> None:
    canvas = Canvas.around(13, 21, margin=16, stride=16)
    rng = np.random.default_rng(0)
    image, shape = rng.random((2, 3, 13, 21), np.float32), (2, 3, *canvas.size)
    d_canvas = rng.standard_normal(shape).astype(np.float32)
    gradient = launcher.zeros(image.shape)
    PictureKernels(
        launcher,
        canvas,
        launcher.put(image),
        d_canvas=launcher.put(pixels(d_canvas)),
        gradient=gradient,
        loss_scale=launcher.put(np.ones(2, np.float32)),
        corner=1.0,
    ).run()
    shown = show(launcher, image, canvas, np.float32).astype(np.float64) + MEAN[:, None, None]
    there = np.vdot(shown, d_canvas)
    back = np.vdot(image.astype(np.float64), launcher.download(gradient))
    assert there == pytest.approx(back, rel=1e-6)


@pytest.mark.parametrize("width", [40, 39])
def test_few_blocks_pass_over_a_large_picture(launcher, monkeypatch, width) -> None:
    monkeypatch.setattr(picture, "MOST_BLOCKS", 1)
    check_picture(launcher, (2, 64, width), np.float16, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("width", [8, 7])
def test_a_gradient_that_is_not_finite_is_found(launcher, dtype, value, width) -> None:
    shape = (4, 3, 6, width)
    canvas = Canvas.around(6, width, margin=4, stride=4)
    d_canvas = np.ones((4, 3, *canvas.size), np.float32)
    d_canvas[1, 0, 0, 0] = d_canvas[2, 2, 5, canvas.size[1] - 1] = value
    bits = (d_canvas.view(np.uint32) >> 16).astype(np.uint16)
    provided = launcher.put(pixels(bits if dtype == np.uint16 else d_canvas.astype(dtype)))
    kernels = PictureKernels(
        launcher,
        canvas,
        launcher.put(np.full(shape, 0.5, np.float32)),
        d_canvas=provided,
        gradient=launcher.zeros(shape),
        loss_scale=launcher.put(np.ones(4, np.float32)),
        corner=1.0,
    )
    kernels.set_weights(1.0, 1.0)
    kernels.run()
    assert launcher.download(kernels.overflow).tolist() == [0, 1, 1, 0]
    launcher.upload(pixels(narrow(np.ones(d_canvas.shape), dtype)), provided)
    kernels.run()
    assert not launcher.download(kernels.overflow).any()


def test_pictures_that_do_not_fit_are_refused() -> None:
    launcher = launcher_for("shim")
    canvas = bare(4, 5)
    image, scale = launcher.zeros((2, 3, 4, 5)), launcher.zeros((2,))
    doubles, wrong = launcher.zeros(image.shape, np.float64), launcher.zeros((2, 4, 4, 4))
    canvases = launcher.zeros((2, 4, 5, 4))

    def make(image=image, d_canvas=canvases, gradient=image, loss_scale=scale) -> None:
        arrays = {"d_canvas": d_canvas, "gradient": gradient, "loss_scale": loss_scale}
        PictureKernels(launcher, canvas, image, **arrays, corner=1.0)

    make()
    with pytest.raises(ShapeError, match=r"image: needs shape \(2, 3, 4, 5\)"):
        make(image=scale)
    with pytest.raises(ShapeError, match="image: needs at least one picture"):
        make(image=image[:0])
    with pytest.raises(ShapeError, match=r"d_canvas: needs shape \(2, 4, 5, 4\) .* \(2, 4, 4, 4\)"):
        make(d_canvas=wrong)
    with pytest.raises(ShapeError, match=r"gradient: .* float32, not .* float64"):
        make(gradient=doubles)
    with pytest.raises(ShapeError, match=r"shown: needs shape \(2, 4, 5, 8\) float32 or float16"):
        CanvasKernel(launcher, canvas, image, launcher.zeros(image.shape, np.float16), mean=MEAN)
