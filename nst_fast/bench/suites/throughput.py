"""Pictures a minute: ``nst-fast batch``, a loop over ``nst-fast stylize``, the classic script.

Every route is a whole program, from its start to the last file. The batch shares the cores out
among its workers in every way; the loop has one process a picture, with all threads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nst_fast.bench.child import call
from nst_fast.bench.findings import Measurement
from nst_fast.bench.method import Times
from nst_fast.bench.problem import label
from nst_fast.bench.session import Bench
from nst_fast.bench.suites import picture
from nst_fast.encoders import Encoder

SIZE = 256  # pixels a side
STEPS = picture.DEFAULTS.steps  # of each route
EACH = 4  # pictures a core in a batch
LOOPED = 2  # pictures in the loop; each is a process of its own, so that more would tell nothing
ROUNDS = 2
TIMED_STEPS = 12  # of the classic script; the rest is extrapolated
LOOP_TARGET = 1 / 1.5
CLASSIC_TARGETS = {"bf16": 1 / 40, "fp32": 1 / 15}
LOOP = "loop over nst-fast stylize"


def run(bench: Bench) -> None:
    """Measure each encoder at each size."""
    for encoder in bench.encoders(("vgg19-lite",)):
        for size in bench.options.sizes or (SIZE,):
            _measure(bench, encoder, size)


def _measure(bench: Bench, encoder: Encoder, size: int) -> None:
    cores = bench.options.threads
    shares = [workers for workers in range(1, cores + 1) if cores % workers == 0]
    pictures = picture.save_pictures(bench.folder, size)
    routes: dict[str, Callable[[], float]] = {
        _name(cores, workers): partial(_batch, bench, encoder, size, pictures, workers)
        for workers in shares
    }
    routes[LOOP] = partial(_loop, bench, encoder, size, pictures)
    theirs = f"classic script, VGG-19, {STEPS} steps (extrapolated)"
    vgg19 = bench.encoder("vgg19") if bench.peers else None
    if vgg19 is not None:
        routes[theirs] = partial(
            picture.classic, bench, vgg19, pictures, size, steps=STEPS, timed=TIMED_STEPS
        )
    task = f"{encoder.name} {size}², {STEPS} steps, {label(bench.best)}, a picture"
    times = bench.in_turns("throughput", task, routes, min(bench.options.repeats, ROUNDS))
    found = _kept(bench, task, size, times, theirs)
    # One thread a worker is what nst-fast batch does by itself.
    batch = found.get(_name(cores, cores))
    if batch is None:
        return
    goals = {LOOP: LOOP_TARGET, theirs: CLASSIC_TARGETS.get(bench.best.precision)}
    for name, other in found.items():
        if other is not batch:
            bench.row(batch, other, goals.get(name) if size == SIZE else None)


def _name(cores: int, workers: int) -> str:
    return f"nst-fast batch, workers × threads: {workers} × {cores // workers}"


def _kept(bench: Bench, task: str, size: int, times: Times, theirs: str) -> dict[str, Measurement]:
    make = partial(Measurement, "throughput", task, group=bench.new_group())
    found = {}
    for name, values in times.items():
        facts = {"size": size}
        if ":" in name:
            facts["workers"] = int(name.split(":")[1].split("×")[0])
        ours = name != theirs
        note = "" if ours else picture.classic_note(STEPS, TIMED_STEPS)
        found[name] = bench.keep(make(name, values, ours=ours, facts=facts, note=note))
        bench.say(f"{task}: {name}: {60 / found[name].middle:.2f} pictures a minute")
    return found


def _batch(
    bench: Bench, encoder: Encoder, size: int, pictures: tuple[Path, Path], workers: int
) -> float:
    """Seconds a picture of ``nst-fast batch`` on as many pictures as there are."""
    folder, output = bench.folder / "contents", bench.folder / "results"
    count = EACH * bench.options.threads
    copy_content(pictures[0], folder, count)
    # Of a run that failed halfway, or the journal would let this one skip what that one made.
    shutil.rmtree(output, ignore_errors=True)
    command = batch_command(bench, encoder, size, STEPS, (folder, pictures[1], output))
    command += ["--workers", str(workers), "--threads", str(bench.options.threads // workers)]
    done = call("nst_fast", command, bench.options.threads // workers, bench.peers_parent)
    return done.seconds / count


def copy_content(content: Path, folder: Path, count: int) -> None:
    """Fill a folder with copies of a picture, under other names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(count):
        shutil.copy(content, folder / f"{number:04}.png")


def batch_command(
    bench: Bench, encoder: Encoder, size: int, steps: int, places: tuple[Path, Path, Path]
) -> list[str]:
    """The command line of ``nst-fast batch``; places are contents, style and output."""
    contents, style, output = map(str, places)
    return [
        "batch", contents, "--style", style, "--output", output,
        "--encoder", str(encoder.path),
        "--provider", bench.best.provider, "--precision", bench.best.precision,
        "--size", str(size), "--steps", str(steps), "--quiet",
    ]  # fmt: skip


def _loop(bench: Bench, encoder: Encoder, size: int, pictures: tuple[Path, Path]) -> float:
    """Seconds a picture where each has a process of its own."""
    seconds = [picture.stylize(bench, encoder, pictures, size)[0] for _ in range(LOOPED)]
    return sum(seconds) / LOOPED
