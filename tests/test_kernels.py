"""All C++ kernels together: paths, the same bits, threads, and what is not finite."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.metadata import version

import kernel_cases
import numpy as np
import pytest
import reference
from kernel_cases import gaussian, mirrored, normal, relu

from nst_fast import _core
from nst_fast.kernels import Kernels

path = kernel_cases.path
kernels = kernel_cases.kernels


def test_every_path_of_this_machine_is_tested(path: str) -> None:
    assert _core.path() == path
    assert _core.paths()[-1] == "portable"
    if "avx512f" in _core.cpu_features() and "avx512bw" in _core.cpu_features():
        assert _core.paths()[0] == "avx512"
    with pytest.raises(ValueError, match="no kernel path 'mmx'"):
        _core.use_path("mmx")


def test_versions_agree() -> None:
    assert _core.__version__ == version("nst-fast")


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
    kernels.total_variation(picture, 0.1, ones, gradient, variation)
    anchor, seen = normal(seed + 2, N, 3, 50, 70), relu(seed + 3, N, 50, 70)
    off = np.empty(N)
    kernels.temporal_loss(picture, ones, gradient, off, anchor=anchor, pixel_weights=seen)
    rows, columns = mirrored(50, 70, 7), mirrored(70, 5, 9)
    canvas, folded = np.empty((N, 3, rows.size, columns.size), np.float32), np.empty_like(picture)
    kernels.extend(picture, rows, columns, canvas)
    kernels.fold(canvas, rows, columns, folded)
    smooth = np.empty_like(canvas)
    kernels.smooth(canvas, gaussian(3, seed), smooth, share=0.25, base=canvas)
    kept += [out, losses, history, dots, x, gradient, variation, off, canvas, folded, smooth]
    return kept


def test_same_bits_again_and_for_any_number_of_threads() -> None:
    first = run_all(Kernels(1))
    assert len(first) == 15
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
    kernels.total_variation(picture, 0.1, np.ones(1), gradient, losses)
    assert np.isnan(losses[0])
