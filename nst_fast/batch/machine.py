"""How many workers and threads suit this machine.

One thread a worker: threads of one picture wait for each other at every operator, workers never do,
and reading and writing then overlap too. ``nst-fast bench throughput`` times every way to share out
the cores; where another one wins on a machine, ``--workers`` and ``--threads`` ask for it. Memory
is the limit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nst_fast.batch.jobs import Engine
from nst_fast.config import StyleSettings
from nst_fast.errors import SettingsError
from nst_fast.gpu.cuda import gpu_names
from nst_fast.host import usable_cores
from nst_fast.runtime import GPU_PACKAGES, GPU_PROVIDERS, choose, versions

THREADS = 1  # of a worker; the best share in `nst-fast bench throughput`
# More than vgg19-lite takes in `nst-fast bench memory`: a worker reads and writes meanwhile.
BASE = 300e6  # bytes
PER_PIXEL = 1300.0  # bytes
SPARE = 0.8  # share of the free memory that workers may take


@dataclass(frozen=True)
class Layout:
    """Worker processes, and threads of each."""

    workers: int
    threads: int

    @classmethod
    def choose(
        cls,
        *,
        workers: int | None = None,
        threads: int | None = None,
        settings: StyleSettings | None = None,
        most: int | None = None,
        gpus: int = 0,
    ) -> Layout:
        """What is not given is chosen: ``THREADS`` a worker, as many as cores and memory allow.

        Cores that memory leaves without a worker go to the threads of the others. A GPU has one.

        Args:
            workers: fixed number of processes.
            threads: fixed number of each one's threads.
            settings: of the pictures, for the memory that they need.
            most: pictures there are.
            gpus: that the workers compute on; see :func:`gpus_of`.

        Raises:
            SettingsError: a number is below 1.
        """
        for name, value in (("workers", workers), ("threads", threads)):
            if value is not None and not 1 <= value <= 1024:
                raise SettingsError(f"{name} must be a whole number from 1 to 1024, not {value}")
        cores = usable_cores()
        if workers is None and gpus:
            workers = min(gpus, most or gpus)
        if workers is None:
            room = max(1, int(SPARE * free_memory() / worker_memory(settings)))
            workers = max(1, min(cores // (threads or THREADS), room, most or cores))
        return cls(workers, threads or max(1, cores // workers))


def gpus_of(engine: Engine) -> int:
    """How many GPUs an engine's workers share here; 0 where it computes on the CPU.

    Raises:
        ProviderError: what the engine asks for cannot be had.
    """
    if not GPU_PACKAGES & versions().keys() and not engine.device.startswith("cuda"):
        return 0  # without loading any provider
    provider, _ = choose(engine.provider, engine.precision, engine.device)
    if provider not in GPU_PROVIDERS:
        return 0
    return 1 if ":" in engine.device else len(gpu_names())


def worker_memory(settings: StyleSettings | None) -> float:
    """Estimate of one worker's memory in bytes."""
    side = (settings or StyleSettings()).size or 1024
    return BASE + PER_PIXEL * side * side


def free_memory() -> float:
    """Bytes that processes can still have here, by the system or by this container's limit."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free = float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        free = float(pages)
    try:
        limit = float(Path("/sys/fs/cgroup/memory.max").read_text())
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    return min(free, max(0.0, limit - used))
