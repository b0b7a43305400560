from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import pytest
import reference
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_fast import _core
from nst_fast.kernels import Kernels

POISON = np.float32(-1.2345e30)
CHANNELS = (1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 128, 129, 150)
PIXELS = (1, 7, 31, 32, 255, 256, 257, 1023, 1024, 1025, 2100)
SHAPES = st.tuples(st.integers(1, 3), st.sampled_from(CHANNELS), st.sampled_from(PIXELS))
EXAMPLES = settings(max_examples=25, deadline=None)


@pytest.fixture(params=_core.paths(), autouse=True, scope="module")
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run every test of this file on every instruction set that this machine has."""
    before = _core.path()
    _core.use_path(request.param)
    yield request.param
    _core.use_path(before)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(2)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relu(seed: int, *shape: int) -> np.ndarray:
    return np.maximum(normal(seed, *shape), 0)


def symmetric(seed: int, N: int, C: int) -> np.ndarray:
    R = normal(seed, N, C, C)
    return R + R.swapaxes(1, 2)


def guarded(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an array inside a poisoned buffer, off every vector boundary, and the buffer."""
    size, margin = int(np.prod(shape)), 67
    buffer = np.full(size + 2 * margin, POISON)
    return buffer[margin : margin + size].reshape(shape), buffer


def assert_unharmed(buffer: np.ndarray) -> None:
    assert (buffer[:67] == POISON).all()
    assert (buffer[-67:] == POISON).all()


def test_every_path_of_this_machine_is_tested(path: str) -> None:
    assert _core.path() == path
    assert _core.paths()[-1] == "portable"
    if "avx512f" in _core.cpu_features() and "avx512bw" in _core.cpu_features():
        assert _core.paths()[0] == "avx512"
    with pytest.raises(ValueError, match="no kernel path 'mmx'"):
        _core.use_path("mmx")


def test_versions_agree() -> None:
    assert _core.__version__ == version("nst-fast")


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


@pytest.mark.parametrize(("C", "P"), [(2, 1_000_000), (64, 70_001), (300, 2048)])
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
)
def test_pull_back(
    shape: tuple[int, int, int], seed: int, content: bool, weighting: str | None
) -> None:
    N, C, P = shape
    F, target = relu(seed, N, C, P), relu(seed + 1, N, C, P)
    derivative = np.concatenate([symmetric(seed, N, C), normal(seed + 2, N, C, 1)], axis=2)
    out, buffer = guarded(N, C, P)
    out[:] = np.nan
    c, losses = np.random.default_rng(seed).random(N), np.full(N, np.nan)
    m = weights(weighting, seed, N, P)
    extra = {"content": target, "content_factors": c, "content_losses": losses} if content else {}
    Kernels(2).pull_back(F, derivative, out, pixel_weights=m, **extra)

    A, b = derivative.astype(np.float64)[..., :C], derivative[..., C:].astype(np.float64)
    expected = (A @ F + b) * weighted(m, N, P)
    if content:
        expected_losses, gradient = content_term(F, target, c, m)
        expected = expected + gradient
        assert_close(losses, expected_losses)
    assert_close(out, expected)
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
)
def test_content_pull_back(shape: tuple[int, int, int], seed: int, weighting: str | None) -> None:
    N, _, P = shape
    F, target = relu(seed, *shape), relu(seed + 1, *shape)
    c, losses = np.random.default_rng(seed).random(N), np.full(N, np.nan)
    out, buffer = guarded(*shape)
    out[:] = np.nan
    m = weights(weighting, seed, N, P)
    Kernels(2).content_pull_back(F, target, c, out, losses, pixel_weights=m)
    expected_losses, expected = content_term(F, target, c, m)
    assert_close(out, expected)
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


def mirrored(length: int, before: int, after: int) -> np.ndarray:
    """Return the indices of numpy's mirrored margin, which repeats a side of one pixel."""
    return np.pad(np.arange(length, dtype=np.int32), (before, after), mode="reflect")


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


def gaussian(radius: int, seed: int) -> np.ndarray:
    """Taps of no particular shape whose line sums to 1."""
    taps = np.random.default_rng(seed).uniform(0.1, 1, radius + 1)
    return (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)


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
    variation = (w * x.diff(dim=3).square()).sum() + (w * x.diff(dim=2).square()).sum()
    variation.backward()
    losses, gradient = reference.total_variation(x.detach().numpy(), a)
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
    getattr(Kernels(2), term)(x, w, gradient, losses)
    expected, expected_gradient = getattr(reference, term)(x.astype(np.float64), w)
    assert_close(losses, expected)
    assert_close(gradient, before + expected_gradient)
    assert_unharmed(buffer)


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


def run_all(kernels: Kernels, seed: int = 3) -> list[np.ndarray]:
    """Call every kernel once, on sizes with several tasks and tails; return all outputs."""
    N, C, P, D, m = 2, 150, 3001, 50_003, 3
    F, target, mask = relu(seed, N, C, P), relu(seed + 1, N, C, P), relu(seed + 2, N, P)
    ones, losses, out = np.ones(N), np.empty(N), np.empty((N, C, P), np.float32)
    M = np.empty((N, C + 1, C + 1), np.float32)
    kernels.moments(F, ones, M, pixel_weights=mask)
    kept = [M.copy()]
    kernels.moments(F, ones, M, accumulate=True)
    kernels.pull_back(
        F, np.ascontiguousarray(M[:, :C]), out, pixel_weights=mask, content=target,
        content_factors=ones, content_losses=losses,
    )  # fmt: skip
    kept += [M, out.copy(), losses.copy()]
    kernels.content_pull_back(F, target, ones, out, losses, pixel_weights=mask)
    x, x_prev, g, g_prev = (normal(seed + i, D) for i in range(4))
    history, dots = np.zeros((2 * m, D), np.uint16), np.empty((3, 2 * m + 1))
    for slot in range(m):
        kernels.lbfgs_update(x, x_prev, g, g_prev, history, slot=slot, count=slot + 1, dots=dots)
        x += normal(seed + 10 + slot, D)
        g += normal(seed + 20 + slot, D)
    kernels.lbfgs_direction(history, dots[0, :-1], g, x_prev, x, gradient_coefficient=-1.0)
    picture, gradient = normal(seed, N, 3, 50, 70), normal(seed + 1, N, 3, 50, 70)
    variation = np.empty(N)
    kernels.total_variation(picture, ones, gradient, variation)
    rows, columns = mirrored(50, 70, 7), mirrored(70, 5, 9)
    canvas, folded = np.empty((N, 3, rows.size, columns.size), np.float32), np.empty_like(picture)
    kernels.extend(picture, rows, columns, canvas)
    kernels.fold(canvas, rows, columns, folded)
    smooth = np.empty_like(canvas)
    kernels.smooth(canvas, gaussian(3, seed), smooth, share=0.25, base=canvas)
    kept += [out, losses, history, dots, x, gradient, variation, canvas, folded, smooth]
    return kept


def test_same_bits_again_and_for_any_number_of_threads() -> None:
    first = run_all(Kernels(1))
    assert len(first) == 14
    for threads in (1, 2, 3, 2, 8):
        for expected, actual in zip(first, run_all(Kernels(threads)), strict=True):
            assert actual.tobytes() == expected.tobytes()


def test_calls_from_several_python_threads() -> None:
    expected = run_all(Kernels(2))
    results: list[list[np.ndarray]] = []
    workers = [
        threading.Thread(target=lambda: results.append(run_all(Kernels(2)))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    for result in results:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, result, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_survive_a_fork(path: str) -> None:
    # In a process of its own: forking this one, with torch's threads in it, would warn.
    script = (
        "import os, numpy as np\n"
        "from nst_fast import _core\n"
        "from nst_fast.kernels import Kernels\n"
        f"_core.use_path({path!r})\n"
        "F = np.random.default_rng(0).random((1, 64, 9000), np.float32)\n"
        "A, B = np.empty((2, 1, 65, 65), np.float32)\n"
        "kernels = Kernels(2)\n"
        "kernels.moments(F, np.ones(1), A)\n"
        "child = os.fork()\n"
        "kernels.moments(F, np.ones(1), B)\n"
        "good = A.tobytes() == B.tobytes()\n"
        "if child == 0: os._exit(0 if good else 3)\n"
        "assert os.waitpid(child, 0)[1] == 0 and good\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr.decode()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("weighting", [False, True])
def test_non_finite_features_reach_moments_and_content(
    kernels: Kernels, bad: float, weighting: bool
) -> None:
    N, C, P = 2, 33, 700
    m = np.ones(P, np.float32) if weighting else None
    for pixel in (0, 256, P - 1):
        F = relu(1, N, C, P)
        F[1, 32, pixel] = bad
        M, out, losses = np.empty((N, C + 1, C + 1), np.float32), np.empty_like(F), np.empty(N)
        kernels.moments(F, np.ones(N), M, pixel_weights=m)
        assert np.isfinite(M[0]).all()
        assert not np.isfinite(M[1, 32]).any()
        assert np.isfinite(M[1, :32, :32]).all()
        content = {
            "content": relu(2, N, C, P),
            "content_factors": np.ones(N),
            "content_losses": losses,
        }
        kernels.pull_back(F, normal(1, N, C, C + 1), out, pixel_weights=m, **content)
        assert np.isfinite(losses[0])
        assert not np.isfinite(losses[1])
        assert np.isfinite(out[0]).all()
        assert not np.isfinite(out[1, :, pixel]).any()
        kernels.content_pull_back(F, relu(2, N, C, P), np.ones(N), out, losses, pixel_weights=m)
        assert np.isfinite(losses[0])
        assert not np.isfinite(losses[1])
        assert np.isfinite(out).sum() == out.size - 1


def test_non_finite_pixels_stay(kernels: Kernels) -> None:
    x = normal(1, 1, 1, 20, 45)
    x[..., 7, 40] = np.nan
    y, rows, columns = np.empty_like(x), mirrored(20, 0, 0), mirrored(45, 0, 0)
    kernels.extend(x, rows, columns, y)
    assert np.argwhere(np.isnan(y)).tolist() == [[0, 0, 7, 40]]
    kernels.fold(y, rows, columns, x)
    assert np.argwhere(np.isnan(x)).tolist() == [[0, 0, 7, 40]]
    kernels.smooth(x, gaussian(3, 1), y, share=0.25)
    near = np.outer(abs(np.arange(20) - 7) <= 3, abs(np.arange(45) - 40) <= 3)
    assert np.array_equal(np.isnan(y[0, 0]), near)


def test_non_finite_steps_propagate(kernels: Kernels) -> None:
    D = 40
    x, x_prev, g, g_prev = (normal(i, D) for i in range(4))
    g[33] = np.nan
    history, dots = np.zeros((2, D), np.uint16), np.empty((3, 3))
    kernels.lbfgs_update(x, x_prev, g, g_prev, history, slot=0, count=1, dots=dots)
    assert np.isnan(dots[2, 2])
    assert np.isnan(reference.widen(history)[1, 33])
    losses, gradient = np.empty(1), np.zeros((1, 3, 8, 40), np.float32)
    picture = normal(1, 1, 3, 8, 40)
    picture[0, 1, 4, 39] = np.nan
    kernels.total_variation(picture, np.ones(1), gradient, losses)
    assert np.isnan(losses[0])
