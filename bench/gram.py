"""Times the kernels against numpy and torch: ``python bench/gram.py [--rounds 9] [--threads 2]``.

On a busy machine, count the CPU time of one thread instead of the wall's:
``OPENBLAS_NUM_THREADS=1 python bench/gram.py --threads 1 --clock cpu``.

Gram matrix and gradient (the style term of one step) at the taps of VGG-19 on a 512² picture, then
the optimisers' passes as GB/s beside a plain copy. The routes take turns within a round, in an
order that rotates; medians over rounds, ratios paired within a round.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import numpy as np

from nst_fast import _core
from nst_fast.device import Float32, aligned_zeros, usable_cores
from nst_fast.kernels import Kernels, cpu_kernels

TAPS = {
    "relu1_1": (64, 512 * 512),
    "relu2_1": (128, 256 * 256),
    "relu3_1": (256, 128 * 128),
    "relu4_1": (512, 64 * 64),
    "relu5_1": (512, 32 * 32),
}
Route = Callable[[], object]
Routes = dict[str, Route]


CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def interleave(routes: Routes, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Time each route once a round, in seconds; one round before the first is not counted."""
    times: dict[str, list[float]] = {name: [] for name in routes}
    names = list(routes)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            routes[name]()
            if turn > 0:
                times[name].append(clock() - start)
    return times


def numpy_routes(F: Float32, T: Float32, R: Float32, out: Float32) -> tuple[Route, Route]:
    """Return the forward and the gradient by numpy's BLAS, without temporaries of F's size."""
    C, P = F.shape
    G = np.empty_like(T)

    def forward() -> float:
        np.matmul(F, F.T, out=G)
        np.divide(G, C * P, out=G)
        np.subtract(G, T, out=G)
        return float(np.vdot(G, G))

    return forward, lambda: np.matmul(R * np.float32(4 / (C * P)), F, out=out)


def torch_routes(
    F_: Float32, T_: Float32, R_: Float32, out_: Float32, threads: int
) -> tuple[Route, Route]:
    """Return the same by torch."""
    import torch

    torch.set_num_threads(threads)
    F, T, R, out = (torch.from_numpy(a) for a in (F_, T_, R_, out_))
    C, P = F.shape
    G = torch.empty_like(T)

    def forward() -> float:
        torch.mm(F, F.T, out=G)
        return float(G.div_(C * P).sub_(T).square().sum())

    return forward, lambda: torch.mm(R * (4 / (C * P)), F, out=out)


def kernel_routes(
    kernels: Kernels, F: Float32, T: Float32, R: Float32, out: Float32
) -> tuple[Route, Route]:
    """Return the same by our kernels."""
    G, losses, ones = np.empty_like(T)[None], np.empty(1), np.ones(1)

    def forward() -> None:
        kernels.gram(F[None], G)
        kernels.style_residual(G, T, ones, losses)

    return forward, lambda: kernels.gram_gradient(F[None], R[None], ones, out[None])


def tap_routes(C: int, P: int, threads: int) -> tuple[Routes, Routes]:
    """Make the forward and the gradient routes of one tap, on post-ReLU noise."""
    rng = np.random.default_rng(C + P)
    F = aligned_zeros((C, P))
    np.maximum(rng.standard_normal((C, P), dtype=np.float32), 0, out=F)
    T = rng.standard_normal((C, C), dtype=np.float32)
    T = T + T.T
    R = T - T.mean()
    outs = [aligned_zeros((C, P)) for _ in range(3)]
    made = {
        "ours": kernel_routes(cpu_kernels(threads), F, T, R, outs[0]),
        "numpy": numpy_routes(F, T, R, outs[1]),
        "torch": torch_routes(F, T, R, outs[2], threads),
    }
    for forward, gradient in made.values():
        forward(), gradient()
    for other in outs[1:]:
        error = np.linalg.norm(outs[0] - other) / np.linalg.norm(other)
        assert error < 1e-5, f"routes disagree: {error:.1e}"
    return {k: v[0] for k, v in made.items()}, {k: v[1] for k, v in made.items()}


def ratio(times: dict[str, list[float]], peer: str) -> float:
    """Median over rounds of the peer's time by ours."""
    return median(b / a for a, b in zip(times["ours"], times[peer], strict=True))


def bench_gram(rounds: int, threads: int, clock: Callable[[], float]) -> None:
    """Print the table of the taps and the totals."""
    print(f"{'tap':8} {'C x P':>13} {'pass':9} {'ours':>8} {'GFLOP/s':>8} {'numpy':>8} {'torch':>8}"
          f" {'numpy/ours':>11} {'torch/ours':>11}")  # fmt: skip
    total: dict[str, list[float]] = {}
    for tap, (C, P) in TAPS.items():
        for name, routes in zip(("gram", "gradient"), tap_routes(C, P, threads), strict=True):
            times = interleave(routes, rounds, clock)
            for route, values in times.items():
                sums = total.setdefault(route, [0.0] * rounds)
                total[route] = [a + b for a, b in zip(sums, values, strict=True)]
            ms = {route: 1e3 * median(values) for route, values in times.items()}
            speed = 2 * C * C * P / median(times["ours"]) / 1e9
            print(f"{tap:8} {f'{C} x {P}':>13} {name:9} {ms['ours']:6.2f}ms {speed:8.0f}"
                  f" {ms['numpy']:6.2f}ms {ms['torch']:6.2f}ms"
                  f" {ratio(times, 'numpy'):11.2f} {ratio(times, 'torch'):11.2f}")  # fmt: skip
    print(f"{'total':32} {1e3 * median(total['ours']):6.2f}ms {'':8}"
          f" {1e3 * median(total['numpy']):6.2f}ms {1e3 * median(total['torch']):6.2f}ms"
          f" {ratio(total, 'numpy'):11.2f} {ratio(total, 'torch'):11.2f}")  # fmt: skip
    print("GFLOP/s counts 2·C²·P for either pass; the Gram kernel computes little over half of it.")


def step_routes(D: int, m: int, kernels: Kernels) -> dict[str, tuple[Route, float]]:
    """Make the optimisers' passes over D elements and m pairs, each with the bytes it must move."""
    rng = np.random.default_rng(D)
    x, x_prev, g, g_prev, first, second = (aligned_zeros((D,)) for _ in range(6))
    for array in (x, x_prev, g, g_prev):
        rng.standard_normal(dtype=np.float32, out=array)
    history = aligned_zeros((2 * m, D), np.uint16)
    history[:] = rng.integers(0x3C00, 0x3F80, D, dtype=np.uint16)
    dots, weights = np.zeros((3, 2 * m + 1)), rng.standard_normal(2 * m)
    picture, picture_gradient = x.reshape(1, 3, -1, 512), g.reshape(1, 3, -1, 512)
    large = aligned_zeros((2 * m, D), np.uint16)
    losses, one = np.zeros(1), np.ones(1)
    return {
        "copy": (lambda: np.copyto(large, history), 8.0 * m * D),
        "lbfgs_update": (
            lambda: kernels.lbfgs_update(x, x_prev, g, g_prev, history, slot=0, count=m, dots=dots),
            (4 * m + 24.0) * D,
        ),
        "lbfgs_direction": (
            lambda: kernels.lbfgs_direction(
                history, weights, g, x_prev, x, gradient_coefficient=-1.0
            ),
            (4 * m + 12.0) * D,
        ),
        "retract": (lambda: kernels.retract(x, x_prev, 0.5), 12.0 * D),
        "adam_update": (
            lambda: kernels.adam_update(
                x,
                g,
                first,
                second,
                count=1,
                learning_rate=0.02,
                beta1=0.9,
                beta2=0.99,
                epsilon=1e-8,
                low=0.0,
                high=1.0,
            ),
            28.0 * D,
        ),
        "total_variation": (
            lambda: kernels.total_variation(picture, one, picture_gradient, losses),
            12.0 * D,
        ),
    }


def bench_steps(rounds: int, threads: int, clock: Callable[[], float]) -> None:
    """Print the optimisers' passes at 512² with 10 pairs."""
    routes = step_routes(3 * 512 * 512, 10, cpu_kernels(threads))
    times = interleave({name: route for name, (route, _) in routes.items()}, rounds, clock)
    print(f"\n{'pass':16} {'time':>8} {'MB':>6} {'GB/s':>6}")
    for name, (_, size) in routes.items():
        took = median(times[name])
        print(f"{name:16} {1e3 * took:6.2f}ms {size / 1e6:6.1f} {size / took / 1e9:6.1f}")


def cpu_name() -> str:
    """Name the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines: Iterable[str] = info.read_text().splitlines() if info.exists() else ()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def main() -> None:
    """Parse, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--path", choices=_core.paths(), default=_core.path())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu counts one thread: add --threads 1")
    _core.use_path(options.path)
    print(f"{cpu_name()}, {options.threads} threads, path {options.path}, {options.clock} clock")
    bench_gram(options.rounds, options.threads, CLOCKS[options.clock])
    bench_steps(options.rounds, options.threads, CLOCKS[options.clock])


if __name__ == "__main__":
    main()
