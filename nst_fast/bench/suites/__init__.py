"""The suites by name; each takes the run and adds to its findings."""

from __future__ import annotations

import time
from collections.abc import Callable

from nst_fast.bench import machine
from nst_fast.bench.session import Bench
from nst_fast.bench.suites import (
    gpu_memory,
    gpu_pictures,
    kernels,
    memory,
    quality,
    scaling,
    step,
    throughput,
)

RUN: dict[str, Callable[[Bench], None]] = {
    "kernels": kernels.run,
    "step": step.run,
    "quality": quality.run,
    "throughput": throughput.run,
    "memory": memory.run,
    "scaling": scaling.run,
}
# What takes their place on a GPU.
ON_GPU: dict[str, Callable[[Bench], None]] = {
    "throughput": gpu_pictures.run,
    "memory": gpu_memory.run,
}


def run_all(bench: Bench, keep: Callable[[], None]) -> None:
    """Run the suites that were asked for, each whatever became of the others.

    Args:
        bench: the run.
        keep: called after each suite, to save what has been found so far.
    """
    seconds = bench.findings.seconds
    run = RUN | ON_GPU if bench.on_gpu else RUN
    for suite in bench.options.suites:
        bench.say(f"--- {suite}")
        began = time.perf_counter()
        with bench.attempt(suite):
            run[suite](bench)
        seconds[suite] = round(time.perf_counter() - began, 1)
        total = sum(seconds.values())
        bench.say(f"--- {suite}: {seconds[suite]:.0f} s, {total / 60:.1f} min so far")
        bench.findings.machine["load_after"] = machine.load()
        keep()
