from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import reference
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_fast import _core
from nst_fast.errors import NstError, SettingsError, ShapeError
from nst_fast.kernels import Kernels, cpu_kernels

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
    return cpu_kernels(2)


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


@EXAMPLES
@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([None, "shared", "each"]))
def test_gram(shape: tuple[int, int, int], seed: int, weighting: str | None) -> None:
    N, C, P = shape
    F, (G, buffer) = relu(seed, N, C, P), guarded(N, C, C)
    m = weights(weighting, seed, N, P)
    cpu_kernels(2).gram(F, G, pixel_weights=m)
    assert_close(G, reference.gram(F.astype(np.float64), m))
    assert np.array_equal(G, G.swapaxes(1, 2))
    assert_unharmed(buffer)


def weights(weighting: str | None, seed: int, N: int, P: int) -> np.ndarray | None:
    if weighting is None:
        return None
    m = np.random.default_rng(seed).random((N, P), np.float32) + np.float32(0.01)
    m[:, 1::3] = 0
    return m if weighting == "each" else m[0].copy()


@pytest.mark.parametrize(("C", "P"), [(2, 1_000_000), (64, 70_001), (300, 2048)])
def test_gram_of_many_pixels(kernels: Kernels, C: int, P: int) -> None:
    # Equal features round the same way at every addition: the worst case for float32 sums.
    for F in (np.full((1, C, P), 0.1, np.float32), relu(P, 1, C, P)):
        G = np.empty((1, C, C), np.float32)
        kernels.gram(F, G)
        assert_close(G, reference.gram(F.astype(np.float64)))


@EXAMPLES
@given(
    SHAPES,
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "shared", "each"]),
)
def test_gram_gradient(
    shape: tuple[int, int, int], seed: int, accumulate: bool, content: bool, weighting: str | None
) -> None:
    N, C, P = shape
    F, R, target = relu(seed, N, C, P), symmetric(seed, N, C), relu(seed + 1, N, C, P)
    a, b = np.random.default_rng(seed).random((2, N))
    out, buffer = guarded(N, C, P)
    before = normal(seed + 2, N, C, P)
    out[:] = before if accumulate else np.nan
    m, losses = weights(weighting, seed, N, P), np.full(N, np.nan)
    extra: dict[str, Any] = {"pixel_weights": m}
    if content:
        extra |= {"content": target, "content_coefficients": b, "content_losses": losses}
    cpu_kernels(2).gram_gradient(F, R, a, out, accumulate=accumulate, **extra)

    F64, target64 = F.astype(np.float64), target.astype(np.float64)
    expected = reference.gram_gradient(F64, R.astype(np.float64), a, m)
    if accumulate:
        expected = expected + before
    if content:
        expected = expected + reference.content_gradient(F64, target64, b)
        assert_close(losses, reference.content_loss(F64, target64, b))
    assert_close(out, expected)
    assert_unharmed(buffer)


@EXAMPLES
@given(SHAPES, st.integers(0, 2**32 - 1), st.booleans())
def test_content_gradient(shape: tuple[int, int, int], seed: int, accumulate: bool) -> None:
    N = shape[0]
    F, target, before = relu(seed, *shape), relu(seed + 1, *shape), normal(seed + 2, *shape)
    b, losses = np.random.default_rng(seed).random(N), np.full(N, np.nan)
    out, buffer = guarded(*shape)
    out[:] = before if accumulate else np.nan
    cpu_kernels(2).content_gradient(F, target, b, out, losses, accumulate=accumulate)
    F64, target64 = F.astype(np.float64), target.astype(np.float64)
    expected = reference.content_gradient(F64, target64, b)
    assert_close(out, expected + before if accumulate else expected)
    assert_close(losses, reference.content_loss(F64, target64, b))
    assert_unharmed(buffer)


@EXAMPLES
@given(st.integers(1, 3), st.sampled_from(CHANNELS), st.integers(0, 2**32 - 1), st.booleans())
def test_style_residual(N: int, C: int, seed: int, shared: bool) -> None:
    G, T = symmetric(seed, N, C), symmetric(seed + 1, N, C)
    if shared:
        T = T[0].copy()
    R, buffer = guarded(N, C, C)
    R[:] = G
    a, losses = np.random.default_rng(seed).random(N), np.full(N, np.nan)
    cpu_kernels(2).style_residual(R, T, a, losses)
    assert np.array_equal(R, G - T)
    assert_close(losses, a * (R.astype(np.float64) ** 2).sum(axis=(1, 2)), 1e-12)
    assert_unharmed(buffer)


def test_reference_gradients_are_those_of_torch() -> None:
    import torch

    rng = np.random.default_rng(7)
    F, target, T = rng.random((2, 5, 12)), rng.random((2, 5, 12)), rng.random((2, 5, 5))
    T += T.swapaxes(1, 2)
    a, b, m = rng.random(2), rng.random(2), rng.random((2, 12))
    f = torch.tensor(F, requires_grad=True)
    weighted = f * torch.tensor(m)[:, None]
    G = weighted @ f.mT / (5 * torch.tensor(m).sum(1)[:, None, None])
    style = (torch.tensor(a) * (G - torch.tensor(T)).square().sum((1, 2))).sum()
    content = (torch.tensor(b) * (f - torch.tensor(target)).square().sum((1, 2))).sum()
    (style + content).backward()
    R = reference.gram(F, m) - T
    expected = reference.gram_gradient(F, R, a, m) + reference.content_gradient(F, target, b)
    assert_close(f.grad, expected, 1e-12)
    assert_close(style.detach(), reference.style_loss(F, T, a, m).sum(), 1e-12)
    assert_close(content.detach(), reference.content_loss(F, target, b).sum(), 1e-12)

    x = torch.tensor(rng.random((2, 3, 4, 6)), requires_grad=True)
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
    getattr(cpu_kernels(2), term)(x, w, gradient, losses)
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
    cpu_kernels(1).lbfgs_update(x, *zeros, history, slot=0, count=1, dots=dots)
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
    G, out = np.empty((N, C, C), np.float32), np.empty((N, C, P), np.float32)
    ones, losses, more = np.ones(N), np.empty(N), np.empty(N)
    kernels.gram(F, G, pixel_weights=mask)
    kept = [G.copy()]
    kernels.style_residual(G, symmetric(seed, 1, C)[0], ones, losses)
    kernels.gram_gradient(
        F, G, ones, out, pixel_weights=mask, content=target, content_coefficients=ones,
        content_losses=more,
    )  # fmt: skip
    kept += [G, losses, out.copy(), more.copy()]
    kernels.content_gradient(F, target, ones, out, more)
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
    return [*kept, out, more, history, dots, x, gradient, variation]


def test_same_bits_again_and_for_any_number_of_threads() -> None:
    first = run_all(cpu_kernels(1))
    assert len(first) == 12
    for threads in (1, 2, 3, 2, 8):
        for expected, actual in zip(first, run_all(cpu_kernels(threads)), strict=True):
            assert actual.tobytes() == expected.tobytes()


def test_calls_from_several_python_threads() -> None:
    expected = run_all(cpu_kernels(2))
    results: list[list[np.ndarray]] = []
    workers = [
        threading.Thread(target=lambda: results.append(run_all(cpu_kernels(2)))) for _ in range(4)
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
        "from nst_fast.kernels import cpu_kernels\n"
        f"_core.use_path({path!r})\n"
        "F = np.random.default_rng(0).random((1, 64, 9000), np.float32)\n"
        "A, B = np.empty((2, 1, 64, 64), np.float32)\n"
        "kernels = cpu_kernels(2)\n"
        "kernels.gram(F, A)\n"
        "child = os.fork()\n"
        "kernels.gram(F, B)\n"
        "good = A.tobytes() == B.tobytes()\n"
        "if child == 0: os._exit(0 if good else 3)\n"
        "assert os.waitpid(child, 0)[1] == 0 and good\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr.decode()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("weighted", [False, True])
def test_non_finite_features_reach_the_loss(kernels: Kernels, bad: float, weighted: bool) -> None:
    N, C, P = 2, 33, 700
    m = np.ones(P, np.float32) if weighted else None
    for pixel in (0, 256, P - 1):
        F = relu(1, N, C, P)
        F[1, 32, pixel] = bad
        G, losses, content = np.empty((N, C, C), np.float32), np.empty(N), np.empty(N)
        kernels.gram(F, G, pixel_weights=m)
        kernels.style_residual(G, np.zeros((C, C), np.float32), np.ones(N), losses)
        out = np.empty_like(F)
        kernels.gram_gradient(
            F, symmetric(1, N, C), np.ones(N), out, pixel_weights=m, content=relu(2, N, C, P),
            content_coefficients=np.ones(N), content_losses=content,
        )  # fmt: skip
        for values in (losses, content):
            assert np.isfinite(values[0])
            assert not np.isfinite(values[1])
        assert np.isfinite(out[0]).all()
        assert not np.isfinite(out[1, :, pixel]).any()


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


def test_an_empty_region_has_no_style(kernels: Kernels) -> None:
    F, G = relu(1, 1, 5, 40), np.empty((1, 5, 5), np.float32)
    nothing, out = np.zeros(40, np.float32), np.full((1, 5, 40), np.nan, np.float32)
    kernels.gram(F, G, pixel_weights=nothing)
    assert not G.any()
    kernels.gram_gradient(F, symmetric(1, 1, 5), np.ones(1), out, pixel_weights=nothing)
    assert not out.any()


def refused(call: Any, *shapes: tuple[int, ...]) -> None:
    """Check that the call is refused in one line that gives the shapes."""
    with pytest.raises(ShapeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for shape in shapes:
        assert str(shape) in message


def test_wrong_arrays_are_refused(kernels: Kernels) -> None:
    F, G = relu(1, 1, 4, 10), np.zeros((1, 4, 4), np.float32)
    one, out = np.ones(1), np.zeros((1, 4, 10), np.float32)
    refused(lambda: kernels.gram(F, np.zeros((1, 4, 5), np.float32)), (1, 4, 4), (1, 4, 5))
    refused(lambda: kernels.gram(F[0], G), (4, 10))
    refused(lambda: kernels.gram(F.astype(np.float64), G), (1, 4, 10))
    refused(lambda: kernels.gram(F[:, :, ::2], G), (1, 4, 5))
    refused(lambda: kernels.gram(F.transpose(0, 2, 1), G), (1, 10, 4))
    refused(lambda: kernels.gram(F[:, :, :0], G), (1, 4, 0))
    refused(lambda: kernels.gram(F.tolist(), G))
    refused(lambda: kernels.gram(F, G, pixel_weights=np.ones(9, np.float32)), (10,), (9,))
    refused(lambda: kernels.style_residual(G, np.zeros((3, 3), np.float32), one, one), (3, 3))
    refused(lambda: kernels.gram_gradient(F, G, np.ones(2), out), (1,), (2,))
    refused(lambda: kernels.gram_gradient(F, G, one, out, content=F.copy()))
    read_only = G.copy()
    read_only.flags.writeable = False
    refused(lambda: kernels.gram(F, read_only), (1, 4, 4))


def test_aliased_arrays_are_refused(kernels: Kernels) -> None:
    F, G = relu(1, 1, 4, 10), np.zeros((1, 4, 4), np.float32)
    refused(lambda: kernels.gram_gradient(F, G, np.ones(1), F), (1, 4, 10))
    buffer = np.zeros(60, np.float32)
    a, b = buffer[:40].reshape(1, 4, 10), buffer[20:].reshape(1, 4, 10)
    refused(lambda: kernels.content_gradient(a, F, np.ones(1), b, np.zeros(1)), (1, 4, 10))
    x = np.zeros(8, np.float32)
    refused(lambda: kernels.retract(x, x, 0.5), (8,))
    c, picture, gradient = np.ones(1), relu(1, 1, 3, 4)[None], np.zeros((1, 1, 3, 4), np.float32)
    content = {"content": F, "content_coefficients": c, "content_losses": c}
    refused(lambda: kernels.style_residual(G, G.copy(), c, c), (1,))
    refused(lambda: kernels.gram_gradient(F, G, np.ones(1), np.zeros_like(F), **content), (1,))
    refused(lambda: kernels.content_gradient(F, F.copy(), c, np.zeros_like(F), c), (1,))
    refused(lambda: kernels.total_variation(picture, c, gradient, c), (1,))
    refused(lambda: kernels.range_penalty(picture, c, gradient, c), (1,))


def test_what_is_no_array_is_refused(kernels: Kernels) -> None:
    c, gradient = np.ones(1), np.zeros((1, 1, 3, 4), np.float32)
    with pytest.raises(ShapeError, match="image: needs shape"):
        kernels.total_variation([1.0], c, gradient, np.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="x: needs a numpy array"):
        kernels.clamp([1.0], 0.0, 1.0)  # type: ignore[arg-type]


def test_wrong_threads_and_slots_are_refused(kernels: Kernels) -> None:
    for threads in (0, -1, 1.5, True):
        with pytest.raises(SettingsError, match="threads"):
            cpu_kernels(threads)  # type: ignore[arg-type]
    arrays = [np.zeros(8, np.float32) for _ in range(4)]
    history, dots = np.zeros((4, 8), np.uint16), np.zeros((3, 5))
    for slot, count in ((2, 2), (0, 3), (-1, 1)):
        with pytest.raises(ShapeError, match="slot"):
            kernels.lbfgs_update(*arrays, history, slot=slot, count=count, dots=dots)


def test_the_compiled_module_checks_lengths_too() -> None:
    F, G = np.zeros((1, 4, 10), np.float32), np.zeros((1, 4, 3), np.float32)
    with pytest.raises(ValueError, match="out"):
        _core.gram(F, G, None, 1)
    with pytest.raises(TypeError):
        _core.gram(F.astype(np.float64), np.zeros((1, 4, 4), np.float32), None, 1)


def test_a_missing_module_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nst_fast.kernels.cpu", None)
    with pytest.raises(NstError, match="pip install"):
        cpu_kernels(1)


def test_allocates_aligned_zeros(kernels: Kernels) -> None:
    array = kernels.zeros((3, 5), np.uint16)
    assert (array.shape, array.dtype) == ((3, 5), np.uint16)
    assert array.ctypes.data % 64 == 0
    assert not array.any()
