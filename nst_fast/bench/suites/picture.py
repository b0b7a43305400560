"""A whole picture, from the start of the process to the file: ours and the classic script's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from nst_fast import images
from nst_fast.backend import Backend
from nst_fast.bench.child import call
from nst_fast.bench.findings import Measurement
from nst_fast.bench.machine import bf16_features
from nst_fast.bench.problem import label, smooth_picture
from nst_fast.bench.session import Bench
from nst_fast.config import StyleSettings
from nst_fast.encoders import Encoder
from nst_fast.images import Picture

DEFAULTS = StyleSettings()
SIZE = DEFAULTS.size or 512  # pixels a side
CLASSIC_STEPS = 500
TIMED_STEPS = 6  # of the classic script, each of some seconds; the rest is extrapolated
CLASSIC_NOTE = (
    "The classic script was timed from its start through {timed} steps; the other {rest} are "
    "extrapolated as their median, although torch's L-BFGS has more to do in later ones."
)
ROUNDS = 2
TARGET = (1 / 80, 1 / 30)  # with bfloat16, without
MOST_REST = 1.0  # seconds of a picture at SIZE that are not its steps'


def save_pictures(folder: Path, size: int) -> tuple[Path, Path]:
    """Write a content and a style picture of ``size``² pixels."""
    paths = folder / f"content{size}.png", folder / f"style{size}.png"
    for seed, path in enumerate(paths):
        images.save(Picture(smooth_picture(size, seed)), path)
    return paths


def arguments(
    bench: Bench,
    encoder: Encoder,
    pictures: tuple[Path, Path],
    chosen: Backend,
    output: str = "ours.png",
) -> list[str]:
    """The command line of ``nst-fast stylize``; ``output`` is a name in the folder of the run."""
    return [
        "stylize", *map(str, pictures), "--output", str(bench.folder / output),
        "--encoder", str(encoder.path),
        "--provider", chosen.provider, "--precision", chosen.precision,
        "--threads", str(chosen.threads), "--quiet",
    ]  # fmt: skip


def compare_pictures(bench: Bench) -> None:
    """Time both in turns, ours with its defaults; of the other only a few steps, all alike.

    Of ours also what is left without the steps, caches being warm.
    """
    lite = bench.encoder("vgg19-lite")
    assert lite is not None
    size = (bench.options.sizes or (SIZE,))[0]
    pictures = save_pictures(bench.folder, size)
    mine = f"vgg19-lite, defaults ({DEFAULTS.steps} steps), {label(bench.best)}"
    theirs = f"classic script, VGG-19, {CLASSIC_STEPS} steps (extrapolated)"
    without: list[float] = []  # its steps, by round

    def ours() -> float:
        seconds, rest = stylize(bench, lite, pictures, size)
        without.append(rest)
        return seconds

    ours()  # fills the caches
    without.clear()
    routes: dict[str, Callable[[], float]] = {mine: ours}
    vgg19 = bench.encoder("vgg19") if bench.peers else None
    if vgg19 is not None:
        job = {"steps": CLASSIC_STEPS, "timed": TIMED_STEPS}
        routes[theirs] = partial(classic, bench, vgg19, pictures, size, **job)
    task = f"whole picture {size}², process start to file"
    values = bench.in_turns("quality", task, routes, min(bench.options.repeats, ROUNDS))
    make = partial(Measurement, "quality", task, facts={"size": size}, group=bench.new_group())
    found = {}
    if mine in values:
        found[mine] = bench.keep(make(mine, values[mine], precision=bench.best.precision))
        bench.say(f"{task}: {mine}: {found[mine].middle:.1f} s")
        rest = replace(found[mine], task=f"{task}, without its steps", values=without)
        limit = replace(rest, route="what it may take", values=[MOST_REST] * len(without))
        goal = 1.0 if size == SIZE else None
        bench.row(bench.keep(rest), bench.keep(replace(limit, ours=False)), goal)
    if theirs in values:
        note = classic_note(CLASSIC_STEPS, TIMED_STEPS)
        found[theirs] = bench.keep(make(theirs, values[theirs], ours=False, note=note))
    if len(found) == 2:
        goal = TARGET[0] if bf16_features() else TARGET[1]
        bench.row(found[mine], found[theirs], goal if size == SIZE else None)


def stylize(
    bench: Bench, encoder: Encoder, pictures: tuple[Path, Path], size: int
) -> tuple[float, float]:
    """Seconds of ``nst-fast stylize`` with its defaults, from its start to its end.

    In all, and without those of its steps.
    """
    command = [*arguments(bench, encoder, pictures, bench.best), "--size", str(size), "--json"]
    done = call("nst_fast", command, bench.options.threads, bench.peers_parent)
    steps: float = json.loads(done.output)["timings"]["optimise"]
    return done.seconds, done.seconds - steps


def classic_note(steps: int, timed: int) -> str:
    """What a reader must know of :func:`classic`."""
    return CLASSIC_NOTE.format(timed=timed, rest=steps - timed)


def classic(
    bench: Bench,
    encoder: Encoder,
    pictures: tuple[Path, Path],
    size: int,
    *,
    steps: int,
    timed: int,
) -> float:
    """Seconds of ``steps`` of it: a run of ``timed``, and its median step for each one left."""
    assert bench.peers is not None
    command = [*map(str, pictures), str(bench.folder / "classic.png")]
    command += ["--encoder", str(encoder.path), "--size", str(size)]
    command += ["--steps", str(timed), "--threads", str(bench.options.threads)]
    done = call(bench.peers.CLASSIC, command, bench.options.threads, bench.peers_parent)
    seconds: list[float] = json.loads(done.output)["seconds"]
    return done.seconds + (steps - timed) * median(seconds)
