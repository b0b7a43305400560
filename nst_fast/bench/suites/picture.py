"""A whole picture, from the start of the process to the file: ours and the classic script's."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from nst_fast import images
from nst_fast.bench.child import call
from nst_fast.bench.findings import Measurement
from nst_fast.bench.machine import bf16_features
from nst_fast.bench.problem import label, smooth_picture
from nst_fast.bench.session import Bench
from nst_fast.encoders import Encoder
from nst_fast.images import Picture
from nst_fast.plan import Backend

SIZE = 512  # pixels a side
STEPS = 200  # of ours
CLASSIC_STEPS = 500
TIMED_STEPS = 6  # of the classic script; the rest is extrapolated
ROUNDS = 2
TARGET = (1 / 80, 1 / 30)  # with bfloat16, without


def save_pictures(folder: Path, size: int) -> tuple[Path, Path]:
    """Write a content and a style picture of ``size``² pixels."""
    paths = folder / f"content{size}.png", folder / f"style{size}.png"
    for seed, path in enumerate(paths):
        images.save(Picture(smooth_picture(size, seed)), path)
    return paths


def arguments(
    bench: Bench, encoder: Encoder, pictures: tuple[Path, Path], chosen: Backend
) -> list[str]:
    """The command line of ``nst-fast stylize``."""
    return [
        "stylize", *map(str, pictures), "--output", str(bench.folder / "ours.png"),
        "--encoder", str(encoder.path),
        "--provider", chosen.provider, "--precision", chosen.precision,
        "--threads", str(chosen.threads), "--quiet",
    ]  # fmt: skip


def compare_pictures(bench: Bench) -> None:
    """Time both, in turns; of the classic script only a few steps, which are all alike."""
    lite = bench.encoder("vgg19-lite")
    assert lite is not None
    size = (bench.options.sizes or (SIZE,))[0]
    pictures = save_pictures(bench.folder, size)
    command = arguments(bench, lite, pictures, bench.best)
    command += ["--size", str(size), "--steps", str(STEPS)]

    def ours() -> float:
        return call("nst_fast", command, bench.options.threads, bench.peers_parent).seconds

    routes: dict[str, Callable[[], float]] = {"ours": ours}
    vgg19 = bench.encoder("vgg19") if bench.peers else None
    if vgg19 is not None:
        routes["classic"] = partial(_classic, bench, vgg19, pictures, size)
    values: dict[str, list[float]] = {name: [] for name in routes}
    for turn in range(min(bench.options.repeats, ROUNDS)):
        for name in routes if turn % 2 == 0 else reversed(list(routes)):
            values[name].append(routes[name]())
    task = f"whole picture {size}², process start to file"
    make = partial(Measurement, "quality", facts={"size": size})
    route = f"vgg19-lite, {STEPS} steps, {label(bench.best)}"
    mine = bench.keep(make(task, route, values["ours"], precision=bench.best.precision))
    bench.say(f"{task}: {route}: {mine.middle:.1f} s")
    if "classic" in values:
        note = f"The classic script was timed for {TIMED_STEPS} steps and extrapolated."
        route = f"classic script, VGG-19, {CLASSIC_STEPS} steps (extrapolated)"
        peer = bench.keep(make(task, route, values["classic"], ours=False, note=note))
        goal = TARGET[0] if bf16_features() else TARGET[1]
        bench.row(mine, peer, goal if size == SIZE else None)


def _classic(bench: Bench, encoder: Encoder, pictures: tuple[Path, Path], size: int) -> float:
    """Seconds of all its steps: those of a short run, and its median step for each one left."""
    assert bench.peers is not None
    command = [*map(str, pictures), str(bench.folder / "classic.png")]
    command += ["--encoder", str(encoder.path), "--size", str(size)]
    command += ["--steps", str(TIMED_STEPS), "--threads", str(bench.options.threads)]
    done = call(bench.peers.CLASSIC, command, bench.options.threads, bench.peers_parent)
    seconds: list[float] = json.loads(done.output)["seconds"]
    return done.seconds + (CLASSIC_STEPS - TIMED_STEPS) * median(seconds)
