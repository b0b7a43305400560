"""How we measure: interleaved rounds in alternating order, medians, ratios within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from math import ceil
from statistics import median

from nst_fast.bench.findings import Measurement, Row

Route = Callable[[], object]
Times = dict[str, list[float]]  # seconds a call, one value a round

PAUSE = 0.2  # seconds: thread pools spin for a while after a run, and slow down who comes next
LEAST_BLOCK = 0.05  # seconds: a shorter call is repeated until the timed block is this long
LONG = 0.5  # seconds: a call from here on does not notice the few milliseconds of waking up


def nothing() -> None:
    """Wait for a CPU, which has done its work when a call returns."""


def interleave(routes: Mapping[str, Route], rounds: int, wait: Route = nothing) -> Times:
    """Time every route once a round, in an order that is reversed from round to round.

    A first round warms everything up and is not counted. Before each timing there is a pause, in
    which the threads of the one before go to sleep; before a short call also an untimed one, which
    wakes the threads and fills the caches. ``wait`` ends every timing on a GPU, which is handed its
    work and left to it.
    """
    first = {name: _seconds(route, wait) for name, route in routes.items()}
    times: Times = {name: [] for name in routes}
    for turn in range(rounds):
        for name in order(routes, turn):
            time.sleep(PAUSE)
            times[name].append(_timed(routes[name], first[name], wait))
    return times


def order(names: Iterable[str], turn: int) -> list[str]:
    """Names in the order of a round: A B, B A, A B, …."""
    return list(names) if turn % 2 == 0 else list(names)[::-1]


def _timed(route: Route, first: float, wait: Route) -> float:
    """Seconds a call; the first call, with its compilation, is an upper bound."""
    if first >= LONG:
        once = _seconds(route, wait)
        if once >= LONG:
            return once
    else:
        once = _seconds(route, wait)
    return _seconds(route, wait, max(1, ceil(LEAST_BLOCK / max(once, 1e-6))))


def _seconds(route: Route, wait: Route, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        route()
    wait()
    return (time.perf_counter() - start) / calls


def compare(
    ours: Measurement, peer: Measurement, target: float | None = None, task: str | None = None
) -> Row:
    """Compare two measurements of one :func:`interleave` by the ratios within each round."""
    ratios = [a / b for a, b in zip(ours.values, peer.values, strict=True)]
    return Row(
        suite=ours.suite,
        task=task or ours.task,
        ours=ours.route,
        peer=peer.route,
        ours_value=ours.middle,
        peer_value=peer.middle,
        ratio=median(ratios),
        low=min(ratios),
        high=max(ratios),
        unit=ours.unit,
        target=target,
        share=ours.share_of_floor,
        note=" ".join(filter(None, (ours.note, peer.note))),
    )
