"""Our C++ kernels: moments and the way back at VGG-19's taps, and the passes over a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from nst_fast.bench import floor, gpu
from nst_fast.bench.findings import Measurement
from nst_fast.bench.method import Route
from nst_fast.bench.peers import REPEATS, GramPeer, GramRoutes
from nst_fast.bench.problem import SETTINGS
from nst_fast.bench.session import Bench
from nst_fast.canvas import Canvas
from nst_fast.errors import BenchError
from nst_fast.host import Float32, aligned_zeros
from nst_fast.kernels import Kernels
from nst_fast.losses import CORNER
from nst_fast.smoothing import SHARE, taps

SIZE = 512  # pixels a side
TAPS = {  # channels and stride, VGG-19
    "relu1_1": (64, 1),
    "relu2_1": (128, 2),
    "relu3_1": (256, 4),
    "relu4_1": (512, 8),
    "relu5_1": (512, 16),
}
PASSES = ("moments", "pull_back")
# Relative L2 of moments and gradients, between routes.
TOLERANCES = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 5e-3, "bf16": 2e-2}
CONTROL = 512  # side of the matrices
OURS = "C++ kernel"


def run(bench: Bench) -> None:
    """Time every tap and pass, the taps' total, and the passes over a picture."""
    for size in bench.options.sizes or (SIZE,):
        with bench.attempt("kernels", f"taps, {size}²"):
            _taps(bench, size)
        if bench.on_gpu:
            with bench.attempt("kernels", f"taps together, {size}²"):
                _together(bench, size)
        else:
            with bench.attempt("kernels", f"passes, {size}²"):
                _passes(bench, size)


def _taps(bench: Bench, size: int) -> None:
    ours = gpu.grams() if bench.on_gpu else {OURS: GramPeer("fp32", _kernel_routes)}
    others = bench.peers.GRAMS[bench.options.device] if bench.peers else {}
    routes = {**ours, **others}
    total: dict[str, list[float]] = {}
    for tap, (channels, stride) in TAPS.items():
        pixels = (size // stride) ** 2
        made = _prepared(routes, channels, pixels, bench.options.threads)
        for name in PASSES:
            timed = bench.time(
                {
                    route: (
                        made[route].forward if name == "moments" else made[route].gradient,
                        replace(
                            _blank(name, tap, pixels, size, peer.precision),
                            route=route,
                            ours=route in ours,
                        ),
                    )
                    for route, peer in routes.items()
                },
                {route: made[route].repeats for route in routes},
            )
            for route, found in timed.items():
                sums = total.setdefault(route, [0.0] * len(found.values))
                total[route] = [a + b for a, b in zip(sums, found.values, strict=True)]
            _rows(bench, ours, timed)
    bench.say(f"kernels {size}²: the routes agree")
    task = f"moments and pull_back, five VGG-19 taps, {size}²"
    make = partial(Measurement, "kernels", task, group=bench.new_group())
    sums_of = {
        route: bench.keep(make(route, values, ours=route in ours))
        for route, values in total.items()
    }
    _rows(bench, ours, sums_of, None if bench.on_gpu else 1.0)


def _together(bench: Bench, size: int) -> None:
    """Ours at all taps in one launch, as a step has them, and the peers' one tap after another.

    A launch shares the GPU out among the taps, and reads features that the taps before it have
    driven out of the cache: what the kernels reach of the floor is what they reach here.
    """
    assert bench.peers is not None
    shapes = [(C, (size // stride) ** 2) for C, stride in TAPS.values()]
    taps = [_noise(*shape) for shape in shapes]
    others = bench.peers.GRAMS[bench.options.device]
    made = {
        name: [peer.make(*tap, bench.options.threads) for tap in taps]
        for name, peer in others.items()
    }
    ours = gpu.grams_together(taps)
    for index, name in enumerate(PASSES):
        flops = sum(floor.tap_flops(*shape)[index] for shape in shapes)
        values = float((1, 2)[index] * sum(C * P for C, P in shapes))
        blank = partial(
            Measurement,
            "kernels",
            f"{name}, five VGG-19 taps in one launch, {size}²",
            values=[],
            facts={"size": size},
            flops=flops,
        )
        routes: dict[str, tuple[Route, Measurement]] = {}
        for route, (kind, work) in ours.items():
            call = work.forward if name == "moments" else work.gradient
            moved = values * floor.ITEM[kind]
            routes[route] = call, blank(route=route, precision=kind, moved=moved)
        for route, peer in others.items():
            calls = [r.forward if name == "moments" else r.gradient for r in made[route]]
            moved = values * floor.ITEM[peer.precision]
            known = blank(route=route, precision=peer.precision, moved=moved, ours=False)
            routes[route] = partial(_each, calls), known
        repeats = dict.fromkeys(ours, REPEATS) | {
            route: works[0].repeats for route, works in made.items()
        }
        _rows(bench, ours, bench.time(routes, repeats))


def _each(calls: Iterable[Route]) -> None:
    for call in calls:
        call()


def _rows(
    bench: Bench,
    ours: Iterable[str],
    timed: Mapping[str, Measurement],
    target: float | None = None,
) -> None:
    for mine in ours:
        for found in timed.values():
            if not found.ours:
                bench.row(timed[mine], found, target)


def _blank(name: str, tap: str, P: int, size: int, precision: str) -> Measurement:
    """Flops as the floor counts them; the way back writes as many bytes as it reads."""
    C, _ = TAPS[tap]
    index = PASSES.index(name)
    return Measurement(
        "kernels",
        f"{name} {tap}, {C} × {P}",
        OURS,
        [],
        facts={"size": size},
        flops=floor.tap_flops(C, P)[index],
        moved=float((1, 2)[index] * C * P * floor.ITEM[precision]),
        precision=precision,
    )


def _prepared(
    routes: Mapping[str, GramPeer], C: int, P: int, threads: int
) -> dict[str, GramRoutes]:
    """Make the routes of one tap, on post-ReLU noise, and compare them with the first.

    Raises:
        BenchError: two routes disagree.
    """
    F, derivative = _noise(C, P)
    made = {name: peer.make(F, derivative, threads) for name, peer in routes.items()}
    moments: dict[str, Float32] = {}
    gradients: dict[str, Float32] = {}
    for name, route in made.items():
        route.forward()
        route.gradient()
        moments[name], gradients[name] = route.moments(), route.found()
    first = next(iter(made))
    for name, peer in routes.items():
        error = max(
            _distance(gradients[first], gradients[name]), _distance(moments[first], moments[name])
        )
        if not error <= max(TOLERANCES[peer.precision], TOLERANCES[routes[first].precision]):
            raise BenchError(f"kernels: {first} and {name} disagree by {error:.1e} at {C} × {P}")
    return made


def _noise(C: int, P: int) -> tuple[Float32, Float32]:
    """Post-ReLU noise (C, P), and [A b] as small as a loss has it."""
    rng = np.random.default_rng(C + P)
    F = aligned_zeros((C, P))
    np.maximum(rng.standard_normal((C, P), dtype=np.float32), 0, out=F)
    D = rng.standard_normal((C + 1, C + 1), dtype=np.float32)
    return F, (D + D.T)[:C] / np.float32(C * P)


def _distance(found: ArrayLike, expected: ArrayLike) -> float:
    difference = np.linalg.norm(np.subtract(found, expected))
    return float(difference / np.linalg.norm(np.asarray(expected)))


def _kernel_routes(F: Float32, derivative: Float32, threads: int) -> GramRoutes:
    kernels = Kernels(threads)
    C, P = F.shape
    M, out = aligned_zeros((1, C + 1, C + 1)), aligned_zeros((1, C, P))
    normalizers = np.full(1, 1 / (C * P))
    return GramRoutes(
        partial(kernels.moments, F[None], normalizers, M),
        partial(kernels.pull_back, F[None], derivative[None], out),
        lambda: M[0],
        lambda: out[0],
    )


def _passes(bench: Bench, size: int) -> None:
    """Time the passes over a picture; the floor is a copy of as many bytes.

    A matrix product is timed with them: what the machine itself does to all of them shows in it.
    """
    make = partial(Measurement, "kernels", facts={"size": size})
    routes: dict[str, tuple[Route, Measurement]] = {}
    for name, (call, flops, moved) in _pass_routes(size, bench.options.threads).items():
        routes[name] = call, make(f"{name}, {size}²", OURS, [], flops=flops, moved=moved)
    product = np.ones((CONTROL, CONTROL), np.float32)
    control = make(f"product of {CONTROL}² matrices", "numpy", [], ours=False)
    bench.time({**routes, "control": (lambda: product @ product, control)})


def _pass_routes(size: int, threads: int) -> dict[str, tuple[Route, float, float]]:
    """Each pass with its flops and the bytes it must move; see csrc/README.md."""
    D, m = 3 * size * size, SETTINGS.history
    kernels = Kernels(threads)
    rng = np.random.default_rng(D)
    x, x_prev, g, g_prev, first, second = (aligned_zeros((D,)) for _ in range(6))
    for array in (x, x_prev, g, g_prev):
        rng.standard_normal(dtype=np.float32, out=array)
    history = aligned_zeros((2 * m, D), np.uint16)
    history[:] = rng.integers(0x3C00, 0x3F80, D, dtype=np.uint16)
    dots, weights = np.zeros((3, 2 * m + 1)), rng.standard_normal(2 * m)
    arrays = x, x_prev, g, first
    picture, z, gradient, base = (array.reshape(1, 3, size, size) for array in arrays)
    losses, one = np.zeros(1), np.ones(1)
    rates = {"learning_rate": 0.02, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8}

    def update() -> None:
        kernels.lbfgs_update(x, x_prev, g, g_prev, history, slot=0, count=m, dots=dots)

    def direction() -> None:
        kernels.lbfgs_direction(history, weights, g, x_prev, x, gradient_coefficient=-1.0)

    def adam() -> None:
        kernels.adam_update(x, g, first, second, count=1, low=0.0, high=1.0, **rates)

    def variation() -> None:
        kernels.total_variation(picture, CORNER, one, gradient, losses)

    def smooth() -> None:
        kernels.smooth(z, gaussian, picture, share=SHARE, base=base)

    canvas = Canvas.around(size, size, margin=SETTINGS.margin, stride=16)
    tables = canvas.rows, canvas.columns
    wide = aligned_zeros((1, 3, *canvas.size))
    gaussian = taps(SETTINGS.smoothing)
    smoothed = 2 * (3 * len(gaussian) - 2) + 3.0  # flops: rows and columns, the share and base
    both = 4.0 * (D + wide.size)  # bytes of picture and canvas

    return {
        "lbfgs_update": (update, 12.0 * m * D, (4 * m + 24.0) * D),
        "lbfgs_direction": (direction, 4.0 * m * D, (4 * m + 12.0) * D),
        "retract": (lambda: kernels.retract(x, x_prev, 0.5), 3.0 * D, 12.0 * D),
        "adam_update": (adam, 12.0 * D, 28.0 * D),
        "total_variation": (variation, 12.0 * D, 12.0 * D),
        "smooth": (smooth, smoothed * D, 12.0 * D),
        "extend": (partial(kernels.extend, picture, *tables, wide), 0.0, both),
        "fold": (partial(kernels.fold, wide, *tables, gradient), float(wide.size), both),
    }
