"""A step on a GPU: loss and gradient against every peer, the whole step, and what the host does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from nst_fast.bench import gpu
from nst_fast.bench.findings import Measurement
from nst_fast.bench.gpu import GpuStep
from nst_fast.bench.method import Route
from nst_fast.bench.problem import Problem
from nst_fast.bench.session import Bench, least
from nst_fast.bench.suites.blanks import blank, peer_blank
from nst_fast.gpu.loop import REPORT_EVERY

SHARE = 0.5  # of a step that the host may be busy with it: else the GPU comes to wait for it
ENQUEUED = 10  # steps that the host is timed with


def measure(bench: Bench, problem: Problem, goals: Mapping[str, float]) -> None:
    """Compare the fastest of ours with every peer; ``goals`` are its targets, by peer.

    No route waits for the GPU between two of its steps: neither ours nor a peer reads its loss.
    """
    ours: dict[str, GpuStep] = {}
    precisions: dict[str, str] = {}
    asked = bench.options.providers, bench.options.precisions
    for name, (make, precision) in gpu.steps(problem, *asked).items():
        bench.say(f"preparing {name} for {problem.task}")
        with bench.attempt("step", f"{problem.task}, {name}"):
            ours[name], precisions[name] = make(), precision
    if not ours:
        bench.note(
            "Ours cannot run on this GPU (nst-fast info says why); the peers alone are measured."
        )
    peers = bench.step_peers(problem)
    bench.agree(problem.task, ours, peers)
    routes: dict[str, tuple[Route, Measurement]] = {
        name: (step.run, blank(problem, "step", name, precisions[name]))
        for name, step in ours.items()
    }
    for name, peer in peers.items():
        routes[name] = peer.run, peer_blank(bench, problem, "step", name)
    found = bench.time(routes)
    best = least({name: found[name] for name in ours})
    if best is None:
        return
    for name in peers:
        bench.row(best, found[name], goals.get(name))
    with bench.attempt("step", f"{problem.task}, whole step"):
        _whole(bench, problem, ours[best.route], best)


def _whole(bench: Bench, problem: Problem, step: GpuStep, best: Measurement) -> None:
    """The engine's own loop beside loss and gradient alone, and the host's part of those."""
    known = blank(problem, "step", best.route, best.precision)
    ahead, alone = step.with_lbfgs()
    whole, waiting = f"{best.route} + L-BFGS", f"{best.route} + L-BFGS, waiting for each report"
    task = f"{problem.task}, whole step"
    timed = bench.time(
        {
            whole: (ahead, replace(known, task=task, route=whole)),
            waiting: (alone, replace(known, task=task, route=waiting, flops=0, moved=0)),
            best.route: (step.run, replace(known, task=f"{problem.task}, beside whole steps")),
        },
        {whole: REPORT_EVERY, waiting: REPORT_EVERY},
    )
    bench.row(timed[whole], timed[best.route], None, task)
    bench.row(timed[whole], timed[waiting], None, f"{task}, reports")
    host = replace(known, task=f"{problem.task}, the host's part", flops=0, moved=0)
    busy, all_of_it = [], []
    for _ in range(bench.options.repeats):
        enqueued, done = _enqueue(step.run, bench.wait)
        busy.append(enqueued)
        all_of_it.append(done)
    group = bench.new_group()
    part = bench.keep(replace(host, route="enqueuing", values=busy, group=group))
    both = bench.keep(replace(host, route="until it is done", values=all_of_it, group=group))
    bench.row(part, both, SHARE)


def _enqueue(run: Route, wait: Route) -> tuple[float, float]:
    """Seconds a step until the host is free, and until the GPU is."""
    wait()
    began = time.perf_counter()
    for _ in range(ENQUEUED):
        run()
    enqueued = time.perf_counter()
    wait()
    done = time.perf_counter()
    return (enqueued - began) / ENQUEUED, (done - began) / ENQUEUED
