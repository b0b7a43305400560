"""Programs in processes of their own, with their time from start to end and their peak of memory.

``python -m nst_fast.bench.child MODULE ARGUMENT…`` runs a module as ``python -m`` would, and writes
the peak of its resident memory as the last line to stderr.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nst_fast.errors import BenchError


@dataclass(frozen=True)
class Done:
    """A program that has ended: seconds from its start, bytes at its peak, and what it printed."""

    seconds: float
    peak: int
    output: str


def call(module: str, arguments: Sequence[str], threads: int, path: Path) -> Done:
    """Run a module in a new process.

    Args:
        module: to run.
        arguments: its command line.
        threads: of the numeric libraries that it loads.
        path: a folder to import from, besides the installed packages.

    Raises:
        BenchError: it failed; the message holds its last line.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONPATH": str(path)}
    command = [sys.executable, "-m", "nst_fast.bench.child", module, *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode == -signal.SIGKILL:
        raise BenchError(f"{module} was killed; most likely the machine ran out of memory")
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode != 0:
        raise BenchError(f"{module} failed: {lines[-1]}")
    return Done(seconds, int(lines[-1]), done.stdout)


def _peak() -> int:
    """Most memory that this process ever had resident, in bytes.

    ``ru_maxrss`` would do elsewhere, but on Linux it starts from the memory of the parent.
    """
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    """Run the module that the command line names."""
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    print(f"\n{_peak()}", file=sys.stderr)


if __name__ == "__main__":
    main()
