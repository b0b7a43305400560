"""The suites by name; each takes the run and adds to its findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nst_fast.bench.session import Bench
from nst_fast.bench.suites import kernels, memory, quality, scaling, step, throughput

RUN: Mapping[str, Callable[[Bench], None]] = {
    "kernels": kernels.run,
    "step": step.run,
    "quality": quality.run,
    "throughput": throughput.run,
    "memory": memory.run,
    "scaling": scaling.run,
}
