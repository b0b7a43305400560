"""What is known of a loss and gradient before it is timed."""

from __future__ import annotations

from dataclasses import replace

from nst_fast.bench import floor
from nst_fast.bench.findings import Measurement
from nst_fast.bench.problem import Problem
from nst_fast.bench.session import Bench


def blank(problem: Problem, suite: str, route: str, precision: str) -> Measurement:
    """Of a route of ours."""
    batch, _, size, _ = problem.image.shape
    encoder, objective, side = problem.encoder, problem.objective, problem.canvas.size[0]
    flops, moved = floor.step_work(encoder, objective, side, batch, precision)
    return Measurement(
        suite,
        f"{problem.task}, loss + gradient",
        route,
        [],
        facts={"size": size, "batch": batch, "threads": problem.threads},
        precision=precision,
        flops=flops,
        moved=moved,
    )


def peer_blank(bench: Bench, problem: Problem, suite: str, route: str) -> Measurement:
    """Of a peer."""
    return replace(blank(problem, suite, route, bench.step_peer(route).precision), ours=False)
