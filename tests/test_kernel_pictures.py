"""Margins, smoothing, and the terms of the picture, against float64."""

from __future__ import annotations

import kernel_cases
import numpy as np
import pytest
import reference
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import EXAMPLES, assert_unharmed, gaussian, guarded, mirrored, normal

from nst_fast.kernels import Kernels

path = kernel_cases.path
kernels = kernel_cases.kernels


SIDES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 257]))
MARGINS = st.tuples(st.integers(0, 40), st.integers(0, 40))


@EXAMPLES
@given(
    st.tuples(st.integers(1, 2), st.sampled_from([1, 3]), SIDES, SIDES),
    MARGINS,
    MARGINS,
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_extend_and_fold(
    shape: tuple[int, int, int, int],
    above: tuple[int, int],
    beside: tuple[int, int],
    any_tables: bool,
    seed: int,
) -> None:
    N, K, H, W = shape
    rows, columns = mirrored(H, *above), mirrored(W, *beside)
    if any_tables:
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, H, sum(above) + 1, np.int32)
        columns = rng.integers(0, W, sum(beside) + 1, np.int32)
    x, g = normal(seed, *shape), normal(seed + 1, N, K, len(rows), len(columns))
    (canvas, canvas_buffer), (image, image_buffer) = guarded(*g.shape), guarded(*shape)
    canvas[:], image[:] = np.nan, np.nan
    Kernels(2).extend(x, rows, columns, canvas)
    assert np.array_equal(canvas, x[:, :, rows[:, None], columns])

    Kernels(2).fold(g, rows, columns, image)
    expected, sizes = np.zeros((2, *shape))
    pixels = (slice(None), slice(None), rows[:, None], columns)
    np.add.at(expected, pixels, g.astype(np.float64))
    np.add.at(sizes, pixels, np.abs(g).astype(np.float64))
    assert (np.abs(image - expected) <= 1e-6 * sizes).all()
    assert_adjoint(x, canvas, g, image)
    assert_unharmed(canvas_buffer)
    assert_unharmed(image_buffer)


def assert_adjoint(x: np.ndarray, image: np.ndarray, g: np.ndarray, back: np.ndarray) -> None:
    """Check ⟨B x, g⟩ = ⟨x, Bᵀ g⟩, relative to the sum of the products' sizes."""
    forward, backward = image.astype(np.float64) * g, x.astype(np.float64) * back
    scale = np.abs(forward).sum() + np.abs(backward).sum()
    assert abs(forward.sum() - backward.sum()) <= 1e-6 * scale


def smoothing(length: int, taps: np.ndarray) -> np.ndarray:
    """Return G of one line as a matrix, by numpy's own mirrored padding."""
    radius = taps.size - 1
    line = np.concatenate([taps[:0:-1], taps]).astype(np.float64)
    padded = np.pad(np.eye(length), ((radius, radius), (0, 0)), mode="symmetric")
    return np.stack([line @ padded[i : i + 2 * radius + 1] for i in range(length)])


@EXAMPLES
@given(
    st.tuples(st.integers(1, 2), st.sampled_from([1, 3]), SIDES, SIDES),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_smooth(
    shape: tuple[int, int, int, int], radius: int, share: float, based: bool, seed: int
) -> None:
    u, g, base = (normal(seed + i, *shape) for i in range(3))
    (y, y_buffer), (w, w_buffer) = guarded(*shape), guarded(*shape)
    taps = gaussian(radius, seed)
    kernels = Kernels(2)
    kernels.smooth(u, taps, y, share=share, base=base if based else None)
    kernels.smooth(g, taps, w, share=share)
    down, across = (smoothing(length, taps) for length in shape[2:])
    smooth = share * u + (1 - share) * (down @ u.astype(np.float64) @ across.T)
    assert_close(y, base + smooth if based else smooth, 3e-6)
    if not based:
        assert_adjoint(u, y, g, w)
    assert_unharmed(y_buffer)
    assert_unharmed(w_buffer)


def test_what_is_constant_stays_so(kernels: Kernels) -> None:
    for H, W in ((1, 1), (1, 50), (50, 1), (70, 45)):
        u, y = np.full((1, 3, H, W), 0.7, np.float32), np.empty((1, 3, H, W), np.float32)
        kernels.smooth(u, gaussian(4, 1), y, share=0.25)
        assert_close(y, u, 1e-6)


def test_reference_variation_is_that_of_torch() -> None:
    import torch

    rng = np.random.default_rng(7)
    a, x = rng.random(2), torch.tensor(rng.random((2, 3, 4, 6)), requires_grad=True)
    w = torch.tensor(a)[:, None, None, None]
    right, below = x.diff(dim=3, append=x[..., -1:]), x.diff(dim=2, append=x[:, :, -1:])
    variation = (w * ((0.3**2 + right**2 + below**2).sqrt() - 0.3)).sum()
    variation.backward()
    losses, gradient = reference.total_variation(x.detach().numpy(), 0.3, a)
    assert_close(x.grad, gradient, 1e-12)
    assert_close(variation.detach(), losses.sum(), 1e-12)


@EXAMPLES
@given(
    st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 1100)),
    st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("term", ["total_variation", "range_penalty"])
def test_picture_terms(term: str, shape: tuple[int, int, int, int], seed: int) -> None:
    x, before = normal(seed, *shape), normal(seed + 1, *shape)
    w, losses = np.random.default_rng(seed).random(shape[0]), np.full(shape[0], np.nan)
    gradient, buffer = guarded(*shape)
    gradient[:] = before
    corner = (0.25,) if term == "total_variation" else ()
    getattr(Kernels(2), term)(x, *corner, w, gradient, losses)
    expected, expected_gradient = getattr(reference, term)(x.astype(np.float64), *corner, w)
    assert_close(losses, expected)
    assert_close(gradient, before + expected_gradient)
    assert_unharmed(buffer)


@EXAMPLES
@given(
    st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 1100)),
    st.integers(0, 2**32 - 1),
)
def test_temporal_loss(shape: tuple[int, int, int, int], seed: int) -> None:
    x, anchor, before = (normal(seed + i, *shape) for i in range(3))
    rng = np.random.default_rng(seed)
    w, losses = rng.random(shape[0]), np.full(shape[0], np.nan)
    m = rng.random((shape[0], *shape[2:]), np.float32) * rng.integers(0, 2, shape[2:])
    m = m.astype(np.float32)
    gradient, buffer = guarded(*shape)
    gradient[:] = before
    Kernels(2).temporal_loss(x, w, gradient, losses, anchor=anchor, pixel_weights=m)
    wide = (array.astype(np.float64) for array in (x, anchor, m))
    expected, expected_gradient = reference.temporal_loss(*wide, w)
    assert_close(losses, expected)
    assert_close(gradient, before + expected_gradient)
    assert_unharmed(buffer)
