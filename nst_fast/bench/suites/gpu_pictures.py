"""Whole pictures a second on a GPU, in a process that has started: one at a time, and together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from nst_fast.bench.findings import Measurement
from nst_fast.bench.problem import make_problem, smooth_picture
from nst_fast.bench.session import Bench
from nst_fast.bench.suites import picture
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.encoders import Encoder
from nst_fast.errors import NstError
from nst_fast.host import Float32
from nst_fast.stylizer import Stylizer

SIZE = picture.SIZE  # pixels a side
TOGETHER = 8
LITE = "vgg19-lite"
LEAST = 0.5  # seconds: what a picture by the defaults should take at most
CLASSIC = "torch fp32"
CLASSIC_ENCODER = "vgg19"
TIMED_STEPS = 10  # of the peer, all alike
ONE = "one at a time"


def run(bench: Bench) -> None:
    """Measure each encoder at each size; the peer is the classic setting, on VGG-19."""
    for encoder in bench.encoders((LITE,)):
        for size in bench.options.sizes or (SIZE,):
            with bench.attempt("throughput", f"{encoder.name} {size}²"):
                _measure(bench, encoder, size)


def open_stylizer(encoder: Encoder) -> Stylizer:
    """As a user has it by ``--device cuda``."""
    return Stylizer(EngineOptions(str(encoder.path), device="cuda"))


def _measure(bench: Bench, encoder: Encoder, size: int) -> None:
    settings = replace(picture.DEFAULTS, size=size)
    several = f"{TOGETHER} together"
    stylizer = open_stylizer(encoder)
    contents = [smooth_picture(size, seed) for seed in range(TOGETHER)]
    style = smooth_picture(size, TOGETHER)
    routes: dict[str, Callable[[], float]] = {
        ONE: partial(_one, stylizer, contents[0], style, settings),
        several: partial(_several, stylizer, contents, style, settings),
    }
    network = bench.encoder(CLASSIC_ENCODER) if bench.peers else None
    classic = f"{CLASSIC}, VGG-19, as many steps (extrapolated)"
    if network is not None:
        step = bench.step_peer(CLASSIC).make(make_problem(network, size, bench.options.threads))
        routes[classic] = partial(_classic, bench, step.run, settings.steps)
    where = stylizer.environment
    backend = f"{where['precision']} {where['provider']}"
    task = f"{encoder.name} {size}², {settings.steps} steps, {backend}, a picture"
    for call in routes.values():  # start-up: sessions, kernels and graphs
        call()
    times = bench.in_turns("throughput", task, routes, bench.options.repeats)
    group, found = bench.new_group(), {}
    for name, values in times.items():
        theirs = name == classic
        note = (
            f"Of {classic}, {TIMED_STEPS} evaluations were timed, at full size." if theirs else ""
        )
        known = Measurement("throughput", task, name, values, facts={"size": size}, group=group)
        found[name] = bench.keep(replace(known, ours=not theirs, note=note))
        bench.say(f"{task}: {name}: {1 / found[name].middle:.2f} pictures a second")
    if ONE not in found:
        return
    if size == SIZE and encoder.name == LITE:
        took = found[ONE].middle
        bench.note(
            f"After start-up a picture of {size}² pixels by the defaults takes {took:.2f} s; "
            f"{'no more than' if took <= LEAST else 'the target, missed, is'} {LEAST} s."
        )
    best = found.get(several, found[ONE])
    for other in found.values():
        if other is not best:
            bench.row(best, other, 1.0 if other is found[ONE] else None)


def _one(stylizer: Stylizer, content: Float32, style: Float32, settings: StyleSettings) -> float:
    began = time.perf_counter()
    stylizer.stylize(content, style, settings)
    return time.perf_counter() - began


def _several(
    stylizer: Stylizer, contents: list[Float32], style: Float32, settings: StyleSettings
) -> float:
    """Seconds a picture; raises what went wrong with one of them."""
    began = time.perf_counter()
    made = stylizer.stylize_together(contents, style, settings, most=len(contents))
    seconds = (time.perf_counter() - began) / len(contents)
    for each in made:
        if isinstance(each, NstError):
            raise each
    return seconds


def _classic(bench: Bench, run: Callable[[], object], steps: int) -> float:
    """Seconds of so many evaluations, by a few of them."""
    began = time.perf_counter()
    for _ in range(TIMED_STEPS):
        run()
    bench.wait()
    return (time.perf_counter() - began) / TIMED_STEPS * steps
