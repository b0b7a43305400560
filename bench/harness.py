"""How the benchmarks measure: interleaved rounds, alternating order, medians; and on what."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil
from statistics import median
from typing import Any

from gram import cpu_name

from nst_fast import runtime
from nst_fast.device import cpu_features

Route = Callable[[], object]
Times = dict[str, list[float]]  # seconds a call, one value a round

PAUSE = 0.2  # seconds: thread pools spin for a while after a run, and slow down who comes next
LEAST_BLOCK = 0.05  # seconds: a shorter call is repeated until the timed block is this long
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        section: letter of the section.
        task: what both do.
        ours: name of our route.
        peer: name of the other.
        ours_seconds: median of a call.
        peer_seconds: median of a call.
        ratio: median over rounds of ours / peer, below 1 where ours is faster.
        low: least ratio of a round.
        high: greatest ratio of a round.
        target: that the ratio should not exceed; None: no target.
    """

    section: str
    task: str
    ours: str
    peer: str
    ours_seconds: float
    peer_seconds: float
    ratio: float
    low: float
    high: float
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return None if self.target is None else self.ratio <= self.target


def interleave(routes: Mapping[str, Route], rounds: int) -> Times:
    """Time every route once a round, in an order that is reversed from round to round.

    Before each timing there is a pause, in which the threads of the one before go to sleep, and
    an untimed call, which wakes the threads and fills the caches of the one that follows.
    """
    times: Times = {name: [] for name in routes}
    for turn in range(rounds):
        for name in routes if turn % 2 == 0 else reversed(list(routes)):
            time.sleep(PAUSE)
            calls = max(1, ceil(LEAST_BLOCK / max(_seconds(routes[name]), 1e-6)))
            times[name].append(_seconds(routes[name], calls))
    return times


def _seconds(route: Route, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        route()
    return (time.perf_counter() - start) / calls


def compare(
    section: str, task: str, times: Times, pair: tuple[str, str], target: float | None = None
) -> Row:
    """Compare two routes by the ratios within each round; ``pair`` names ours and the peer."""
    ours, peer = (times[name] for name in pair)
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return Row(
        section, task, *pair, median(ours), median(peer),
        median(ratios), min(ratios), max(ratios), target,
    )  # fmt: skip


def use_threads(threads: int) -> None:
    """Give numpy's BLAS and torch this many threads.

    The BLAS reads its number when it is loaded: where it is another one, the program starts anew.
    """
    import torch

    if any(os.environ.get(name) != str(threads) for name in BLAS_THREADS):
        os.environ.update(dict.fromkeys(BLAS_THREADS, str(threads)))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    torch.set_num_threads(threads)


def bf16_features() -> list[str]:
    """The bfloat16 instruction sets of this CPU."""
    return [name for name in runtime.BF16_FEATURES if name in cpu_features()]


def machine(threads: int) -> dict[str, Any]:
    """What the numbers depend on: CPU, threads, load (of 1, 5 and 15 minutes), versions."""
    return {
        "cpu": cpu_name(),
        "bf16": bf16_features(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "nst-fast": version("nst-fast"),
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "torch": version("torch"),
            **runtime.versions(),
        },
    }
