"""How a step grows: with the size of the picture, with threads, with pictures at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from nst_fast.bench.findings import Fit, Measurement
from nst_fast.bench.method import Route
from nst_fast.bench.problem import OurStep, label, make_problem
from nst_fast.bench.session import Bench
from nst_fast.bench.suites.blanks import blank, peer_blank
from nst_fast.encoders import Encoder
from nst_fast.kernels import Kernels

SIZES = (256, 512, 1024, 2048, 4096)  # pixels a side
LARGEST_PEER = 1024  # pixels: torch keeps every activation
BATCHES = (1, 2, 4, 8, 16)
SMALL = 256  # pixels a side, for the batches
MIDDLE = 512  # pixels a side, for the threads


def run(bench: Bench) -> None:
    """Measure each encoder; ours in the best precision."""
    sizes = bench.options.sizes or SIZES
    threads = _thread_counts(bench.options.threads)
    batches = bench.options.batches or BATCHES
    middle, small = (min(limit, max(sizes)) for limit in (MIDDLE, SMALL))
    for encoder in bench.encoders(("vgg19-lite",)):
        by_size = _sweep(bench, "pixels a side", sizes, partial(_at_size, bench, encoder))
        _fit(bench, {size**2: one for size, one in by_size.items()}, "pixels")
        grow = partial(_with_threads, bench, encoder, middle)
        _fit(bench, _sweep(bench, "threads", threads, grow), "threads")
        grow = partial(_with_batch, bench, encoder, small)
        _fit(bench, _sweep(bench, "pictures", batches, grow), "batch")


def _sweep(
    bench: Bench, variable: str, values: Iterable[int], measure: Callable[[int], Measurement]
) -> dict[int, Measurement]:
    """Measure at each value; those that fail are left out."""
    found = {}
    for value in values:
        with bench.attempt("scaling", f"{value} {variable}"):
            found[value] = measure(value)
    return found


def _at_size(bench: Bench, encoder: Encoder, size: int) -> Measurement:
    problem = make_problem(encoder, size, bench.options.threads)
    name, chosen = label(bench.best), bench.best
    routes: dict[str, tuple[Route, Measurement]] = {
        name: (OurStep(problem, chosen).step, blank(problem, "scaling", name, chosen.precision))
    }
    peers = bench.step_peers(problem, compiled=False) if size <= LARGEST_PEER else {}
    for peer, step in peers.items():
        routes[peer] = step.step, peer_blank(bench, problem, "scaling", peer)
    found = bench.time(routes)
    for peer in peers:
        bench.row(found[name], found[peer])
    return found[name]


def _with_threads(bench: Bench, encoder: Encoder, size: int, threads: int) -> Measurement:
    problem = make_problem(encoder, size, threads)
    chosen = replace(bench.best, threads=threads, kernels=Kernels(threads))
    name = f"{label(chosen)}, threads: {threads}"
    measured = blank(problem, "scaling", name, chosen.precision)
    # The peaks are those of all threads.
    measured = replace(measured, flops=0.0, moved=0.0)
    return bench.time({name: (OurStep(problem, chosen).step, measured)})[name]


def _with_batch(bench: Bench, encoder: Encoder, size: int, batch: int) -> Measurement:
    problem = make_problem(encoder, size, bench.options.threads, batch)
    name = f"{label(bench.best)}, batch: {batch}"
    measured = blank(problem, "scaling", name, bench.best.precision)
    return bench.time({name: (OurStep(problem, bench.best).step, measured)})[name]


def _thread_counts(most: int) -> list[int]:
    """Powers of two below ``most``, and ``most``."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power < most} | {most})


def _fit(bench: Bench, found: Mapping[int, Measurement], variable: str) -> None:
    """Fit seconds ∝ variable^exponent to the medians; two points determine it without an error."""
    if len(found) < 2:
        return
    measured = list(found.values())
    x, y = np.log(list(found)), np.log([one.middle for one in measured])
    if len(found) == 2:
        exponent, error = float(np.diff(y)[0] / np.diff(x)[0]), 0.0
    else:
        coefficients, covariance = np.polyfit(x, y, 1, cov="unscaled")
        residual = y - np.polyval(coefficients, x)
        variance = float(residual @ residual) / (len(found) - 2)
        exponent, error = float(coefficients[0]), float(np.sqrt(covariance[0, 0] * variance))
    route = measured[0].route.split(",")[0]
    task = f"{measured[0].task.split(' ')[0]}, {route}"
    bench.findings.fits.append(Fit(task, variable, exponent, error))
    bench.say(f"{task}: seconds ∝ {variable}^{exponent:.2f} ± {error:.2f}")
