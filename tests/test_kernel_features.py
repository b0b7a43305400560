"""Moments, and the pull back to features, against float64."""

from __future__ import annotations

import kernel_cases
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import EXAMPLES, assert_unharmed, guarded, normal, relu

from nst_fast.kernels import Kernels

path = kernel_cases.path
kernels = kernel_cases.kernels

CHANNELS = (1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 128, 129, 150)
PIXELS = (1, 7, 31, 32, 255, 256, 257, 1023, 1024, 1025, 2100)
SHAPES = st.tuples(st.integers(1, 3), st.sampled_from(CHANNELS), st.sampled_from(PIXELS))


def symmetric(seed: int, N: int, C: int) -> np.ndarray:
    R = normal(seed, N, C, C)
    return R + R.swapaxes(1, 2)


def weights(weighting: str | None, seed: int, N: int, P: int) -> np.ndarray | None:
    if weighting is None:
        return None
    m = np.random.default_rng(seed).random((N, P), np.float32) + np.float32(0.01)
    m[:, 1::3] = 0
    if weighting == "zero":
        m[0] = 0
    return m[0].copy() if weighting == "shared" else m


def weighted(m: np.ndarray | None, N: int, P: int) -> np.ndarray:
    """Return pixel weights as (N, 1, P) in float64, 1 where there are none."""
    return np.broadcast_to(np.float64(1) if m is None else m.astype(np.float64), (N, P))[:, None]


def moments(F: np.ndarray, normalizers: np.ndarray, m: np.ndarray | None = None) -> np.ndarray:
    """Return normalizers[n]·Σ m f~ f~ᵀ in float64."""
    N, _, P = F.shape
    extended = np.concatenate([F.astype(np.float64), np.ones((N, 1, P))], axis=1)
    return normalizers[:, None, None] * ((extended * weighted(m, N, P)) @ extended.swapaxes(1, 2))


@EXAMPLES
@given(
    SHAPES,
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([None, "shared", "each", "zero"]),
)
def test_moments(
    shape: tuple[int, int, int], seed: int, accumulate: bool, weighting: str | None
) -> None:
    N, C, P = shape
    F, (M, buffer) = relu(seed, N, C, P), guarded(N, C + 1, C + 1)
    before = symmetric(seed + 1, N, C + 1)
    M[:] = before if accumulate else np.nan
    m, normalizers = weights(weighting, seed, N, P), np.random.default_rng(seed).random(N)
    Kernels(2).moments(F, normalizers, M, pixel_weights=m, accumulate=accumulate)
    expected = moments(F, normalizers, m)
    if accumulate:
        expected = expected + before
    for part in (np.s_[:, :C, :C], np.s_[:, :C, C], np.s_[:, C, C]):
        assert_close(M[part], expected[part])
    assert np.array_equal(M, M.swapaxes(1, 2))
    assert_unharmed(buffer)


@pytest.mark.parametrize(("C", "P"), [(2, 1_000_000), (64, 20_001), (300, 2048)])
def test_moments_of_many_pixels(kernels: Kernels, C: int, P: int) -> None:
    # Equal features round the same way at every addition: the worst case for float32 sums.
    for F in (np.full((1, C, P), 0.1, np.float32), relu(P, 1, C, P)):
        M, normalizers = np.empty((1, C + 1, C + 1), np.float32), np.array([1 / (C * P)])
        kernels.moments(F, normalizers, M)
        expected = moments(F, normalizers)
        assert_close(M, expected)
        assert_close(M[:, C, :C], expected[:, C, :C])


@EXAMPLES
@given(
    SHAPES,
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([None, "shared", "each", "zero"]),
    st.booleans(),
)
def test_pull_back(
    shape: tuple[int, int, int], seed: int, content: bool, weighting: str | None, accumulate: bool
) -> None:
    N, C, P = shape
    F, target = relu(seed, N, C, P), relu(seed + 1, N, C, P)
    derivative = np.concatenate([symmetric(seed, N, C), normal(seed + 2, N, C, 1)], axis=2)
    out, buffer = guarded(N, C, P)
    before = normal(seed + 3, N, C, P) if accumulate else np.float32(0)
    out[:] = before if accumulate else np.nan
    c, losses = np.random.default_rng(seed).random(N), np.full(N, np.nan)
    m = weights(weighting, seed, N, P)
    extra = {"content": target, "content_factors": c, "content_losses": losses} if content else {}
    Kernels(2).pull_back(F, derivative, out, pixel_weights=m, accumulate=accumulate, **extra)

    A, b = derivative.astype(np.float64)[..., :C], derivative[..., C:].astype(np.float64)
    expected = (A @ F + b) * weighted(m, N, P)
    if content:
        expected_losses, gradient = content_term(F, target, c, m)
        expected = expected + gradient
        assert_close(losses, expected_losses)
    assert_close(out, expected + before)
    assert_unharmed(buffer)


def content_term(
    F: np.ndarray, content: np.ndarray, c: np.ndarray, m: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return c·Σ m (F − content)² and 2·c·m∘(F − content) in float64."""
    difference = F.astype(np.float64) - content
    weighed = weighted(m, F.shape[0], F.shape[2]) * difference
    return c * (weighed * difference).sum(axis=(1, 2)), 2 * c[:, None, None] * weighed


@EXAMPLES
@given(
    st.one_of(SHAPES, st.just((2, 3, 20_001)), st.just((1, 1500, 33))),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, "shared", "each", "zero"]),
    st.booleans(),
)
def test_content_pull_back(
    shape: tuple[int, int, int], seed: int, weighting: str | None, accumulate: bool
) -> None:
    N, _, P = shape
    F, target = relu(seed, *shape), relu(seed + 1, *shape)
    c, losses = np.random.default_rng(seed).random(N), np.full(N, np.nan)
    out, buffer = guarded(*shape)
    before = normal(seed + 2, *shape) if accumulate else np.float32(0)
    out[:] = before if accumulate else np.nan
    m = weights(weighting, seed, N, P)
    Kernels(2).content_pull_back(F, target, c, out, losses, pixel_weights=m, accumulate=accumulate)
    expected_losses, expected = content_term(F, target, c, m)
    assert_close(out, expected + before)
    assert_close(losses, expected_losses)
    assert_unharmed(buffer)


def test_pull_back_is_the_gradient_of_torch() -> None:
    import torch

    rng = np.random.default_rng(7)
    N, C, P = 2, 5, 40
    F, target, m = (rng.random(s).astype(np.float32) for s in ((N, C, P), (N, C, P), (N, P)))
    D = rng.random((N, C + 1, C + 1))
    D += D.swapaxes(1, 2)
    c = rng.random(N)
    normalizers = 1 / (C * m.sum(axis=1, dtype=np.float64))
    f = torch.tensor(F.astype(np.float64), requires_grad=True)
    extended = torch.cat([f, torch.ones(N, 1, P, dtype=torch.float64)], 1)
    pixels = torch.tensor(m.astype(np.float64))[:, None]
    M = torch.tensor(normalizers)[:, None, None] * (extended * pixels) @ extended.mT
    difference = f - torch.tensor(target)
    content = torch.tensor(c) * (pixels * difference.square()).sum((1, 2))
    ((torch.tensor(D) * M).sum() + content.sum()).backward()

    ours, out, losses = np.empty((N, C + 1, C + 1), np.float32), np.empty_like(F), np.empty(N)
    derivative = (2 * normalizers[:, None, None] * D)[:, :C].astype(np.float32)
    Kernels(2).moments(F, normalizers, ours, pixel_weights=m)
    Kernels(2).pull_back(
        F, derivative, out, pixel_weights=m, content=target, content_factors=c,
        content_losses=losses,
    )  # fmt: skip
    assert_close(ours, M.detach(), 1e-6)
    assert_close(out, f.grad, 1e-6)
    assert_close(losses, content.detach(), 1e-6)
