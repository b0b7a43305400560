"""Memory of a GPU that a step takes, ours and the peers'; and what we said beforehand."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

from nst_fast.bench import gpu
from nst_fast.bench.findings import Measurement
from nst_fast.bench.gpu import GpuStep
from nst_fast.bench.problem import Problem, Step, make_problem
from nst_fast.bench.session import Bench

SIZE = 512  # pixels a side
BATCHES = (1, 8)
PLANNED = "planned before it is made"


def run(bench: Bench) -> None:
    """Measure each encoder at each size and batch, a route at a time."""
    for encoder in bench.encoders(("vgg19", "vgg19-lite")):
        for size in bench.options.sizes or (SIZE,):
            for batch in bench.options.batches or BATCHES:
                with bench.attempt("memory", f"{encoder.name} {size}² × {batch}"):
                    _measure(bench, make_problem(encoder, size, bench.options.threads, batch))


def _measure(bench: Bench, problem: Problem) -> None:
    ours = []
    asked = bench.options.providers, bench.options.precisions
    for name, (make, precision) in gpu.steps(problem, *asked).items():
        with bench.attempt("memory", f"{problem.task}, {name}"):
            found, planned = _ours(bench, make)
            ours.append(_kept(bench, problem, name, found, precision=precision))
            if name.endswith("split"):
                plan = _kept(bench, problem, f"{name}, {PLANNED}", planned, precision=precision)
                bench.row(ours[-1], plan, 1.0)
    peers = []
    for name, peer in bench.peers.STEPS["cuda"].items() if bench.peers else ():
        with bench.attempt("memory", f"{problem.task}, {name}"):
            taken = _peer(bench, partial(peer.make, problem))
            peers.append(_kept(bench, problem, name, taken, precision=peer.precision, ours=False))
    best = min(ours, key=lambda one: one.middle, default=None)
    if best is not None:
        for found_peer in peers:
            bench.row(best, found_peer)


def _ours(bench: Bench, make: Callable[[], GpuStep]) -> tuple[int, int]:
    """Bytes of a Plan with its loop, once steps were taken; and what was planned for it."""
    before = _at_rest(bench)
    step = make()
    ahead, _ = step.with_lbfgs()
    ahead()
    bench.wait()
    return _used(bench) - before, step.planned


def _peer(bench: Bench, make: Callable[[], Step]) -> int:
    """Bytes of a peer's loss and gradient, without an optimiser."""
    before = _at_rest(bench)
    step = make()
    for _ in range(3):  # a compiled one records its graphs in the second
        step.step()
    bench.wait()
    return _used(bench) - before


def _at_rest(bench: Bench) -> int:
    """Give back all that nobody uses, and read what is left."""
    assert bench.peers is not None
    gc.collect()
    bench.peers.gpu.give_back()
    gpu.give_back()
    return _used(bench)


def _used(bench: Bench) -> int:
    assert bench.peers is not None
    return bench.peers.gpu.used()


def _kept(
    bench: Bench, problem: Problem, route: str, taken: int, *, precision: str, ours: bool = True
) -> Measurement:
    batch, _, size, _ = problem.image.shape
    task = f"{problem.task}, memory of the GPU"
    bench.say(f"{task}: {route}: {taken / 2**20:.0f} MiB")
    facts = {"size": size, "batch": batch}
    return bench.keep(
        Measurement(
            *("memory", task, route, [float(taken)]),
            unit="B",
            ours=ours,
            facts=facts,
            precision=precision,
        )
    )
