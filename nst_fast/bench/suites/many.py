"""Resident memory of one worker of ``nst-fast batch`` over many pictures: it must stay flat."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from nst_fast.bench.findings import Measurement
from nst_fast.bench.problem import label
from nst_fast.bench.session import Bench
from nst_fast.bench.suites.picture import save_pictures
from nst_fast.bench.suites.throughput import batch_command, copy_content
from nst_fast.encoders import Encoder
from nst_fast.errors import BenchError

PICTURES = 500
SIZE = 64  # pixels a side
STEPS = 5
SETTLED = 20  # pictures after which nothing should grow
TARGET = 1.05
PERIOD = 0.02  # seconds between two looks, several a picture


def run(bench: Bench, encoder: Encoder) -> None:
    """Compare the worker's memory at the end, and at its most, with that once it has settled."""
    content, style = save_pictures(bench.folder, SIZE)
    folder, output = bench.folder / "many", bench.folder / "many_results"
    copy_content(content, folder, PICTURES)
    command = batch_command(bench, encoder, SIZE, STEPS, (folder, style, output))
    command += ["--workers", "1", "--threads", "1", "--scales", "1"]
    seen = _by_picture(_samples(command, output / "journal.jsonl"))
    settled = [most for done, most in sorted(seen.items()) if done >= SETTLED]
    if not settled:
        raise BenchError(f"the worker was never seen after picture {SETTLED}")
    task = f"{encoder.name} {SIZE}², {PICTURES} pictures, memory of a worker"
    make = partial(Measurement, "memory", task, unit="B", precision=bench.best.precision)
    facts = {"size": SIZE, "pictures": PICTURES}
    kept = {
        name: bench.keep(make(f"{label(bench.best)}, {name}", [float(value)], facts=facts))
        for name, value in {
            "first seen": seen[min(seen)],
            f"after {SETTLED}": settled[0],
            "last": settled[-1],
            f"most after {SETTLED}": max(settled),
        }.items()
    }
    bench.say(f"{task}: " + ", ".join(f"{k} {m.middle / 2**20:.0f} MiB" for k, m in kept.items()))
    for name in ("last", f"most after {SETTLED}"):
        bench.row(kept[name], kept[f"after {SETTLED}"], TARGET)


def _samples(command: list[str], journal: Path) -> Iterator[tuple[int, int]]:
    """Pictures done and bytes resident of the worker, again and again until the batch ends.

    Raises:
        BenchError: the batch fails.
    """
    words = [sys.executable, "-m", "nst_fast", *command]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while process.poll() is None:
            done = journal.read_bytes().count(b"\n") if journal.is_file() else 0
            if resident := _largest_child(process.pid):
                yield done, resident
            time.sleep(PERIOD)
        lines = process.stderr.read().strip().splitlines() or ["no message"]
    if process.returncode != 0:
        raise BenchError(f"nst-fast batch failed: {lines[-1]}")


def _largest_child(pid: int) -> int:
    """Resident bytes of the largest process that ``pid`` has started; 0 where there is none."""
    most = 0
    try:
        for child in psutil.Process(pid).children(recursive=True):
            most = max(most, child.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
    return most


def _by_picture(samples: Iterator[tuple[int, int]]) -> dict[int, int]:
    """Most memory seen while as many pictures were done."""
    seen: dict[int, int] = {}
    for done, resident in samples:
        seen[done] = max(resident, seen.get(done, 0))
    return seen
