"""One step: loss and gradient, ours against every peer; the whole step on vgg19-lite."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from nst_fast.bench.findings import Device, Measurement
from nst_fast.bench.machine import by_amx
from nst_fast.bench.method import Route
from nst_fast.bench.problem import (
    SETTINGS,
    OurStep,
    Problem,
    label,
    make_problem,
    smooth_picture,
    timed_sessions,
    with_lbfgs,
)
from nst_fast.bench.session import Bench, least
from nst_fast.bench.suites import gpu_step
from nst_fast.bench.suites.blanks import blank, peer_blank
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.stylizer import Stylizer

SIZE = 512  # pixels a side; the targets are for it
ENCODERS = ("vgg19", "vgg19-lite")
LARGEST, LITE = ENCODERS
BATCHES: dict[Device, tuple[int, ...]] = {"cpu": (1,), "cuda": (1, 8)}
CLASSIC = "torch fp32"
BEST_BF16 = "torch bf16 channels_last"
LARGE = "torch fp32, VGG-19"
GPU_TARGETS = {CLASSIC: 1 / 8, "torch.compile bf16 channels_last, CUDA graphs": 1 / 1.3}
Measured = dict[str, Measurement]


def run(bench: Bench) -> None:
    """Measure each encoder at each size and batch."""
    for encoder in bench.encoders(ENCODERS):
        for size in bench.options.sizes or (SIZE,):
            for batch in bench.options.batches or BATCHES[bench.options.device]:
                with bench.attempt("step", f"{encoder.name} {size}² × {batch}"):
                    problem = make_problem(encoder, size, bench.options.threads, batch)
                    if bench.on_gpu:
                        goals = size == SIZE and encoder.name == LARGEST
                        gpu_step.measure(bench, problem, GPU_TARGETS if goals else {})
                    else:
                        _measure(bench, problem, targeted=(size, batch) == (SIZE, 1))
            if encoder.name == LITE and not bench.on_gpu:
                with bench.attempt("step", f"{LITE} {size}², share of a step"):
                    _share_outside(bench, size)


def _measure(bench: Bench, problem: Problem, targeted: bool) -> None:
    ours = {name: OurStep(problem, chosen) for name, chosen in bench.backends.items()}
    peers = bench.step_peers(problem)
    bench.agree(problem.task, ours, peers)
    splits = {f"{k} split": OurStep(problem, v, "split") for k, v in bench.backends.items()}
    routes: dict[str, tuple[Route, Measurement]] = {}
    for name, step in {**ours, **splits}.items():
        precision = bench.backends[name.removesuffix(" split")].precision
        routes[name] = step.step, blank(problem, "step", name, precision)
    for name, peer in peers.items():
        routes[name] = peer.step, peer_blank(bench, problem, "step", name)
    best = label(bench.best)
    margin = f"{best}, default margin"
    routes[margin] = _with_margin(bench, problem, margin)
    lite = problem.encoder.name == LITE
    if lite:
        routes |= _whole_step(bench, problem)
    found = bench.time(routes)
    _rows(bench, {k: found[k] for k in ours}, {k: found[k] for k in peers}, lite, targeted)
    for name in splits:
        bench.row(found[name.removesuffix(" split")], found[name])
    bench.row(found[margin], found[best])
    whole = f"{best} + L-BFGS"
    if whole in found and LARGE in found:
        target = by_amx(0.02, 0.03) if targeted else None
        bench.row(found[whole], found[LARGE], target, f"{problem.task}, whole step")


def _with_margin(bench: Bench, problem: Problem, name: str) -> tuple[Route, Measurement]:
    """Ours on the canvas of the default settings, whose margin has no weight."""
    batch, _, size, _ = problem.image.shape
    wide = make_problem(problem.encoder, size, problem.threads, batch, SETTINGS.margin)
    return OurStep(wide, bench.best).step, blank(wide, "step", name, bench.best.precision)


def _whole_step(bench: Bench, problem: Problem) -> dict[str, tuple[Route, Measurement]]:
    """Ours with L-BFGS, and the classic setting of torch on VGG-19, to be timed together."""
    batch, _, size, _ = problem.image.shape
    if batch > 1:
        return {}
    name = f"{label(bench.best)} + L-BFGS"
    measured = blank(problem, "step", name, bench.best.precision)
    measured = replace(measured, task=f"{problem.task}, whole step")
    routes = {name: (with_lbfgs(OurStep(problem, bench.best), bench.best), measured)}
    vgg19 = bench.encoder("vgg19") if bench.peers else None
    if vgg19 is None:
        return routes
    large = make_problem(vgg19, size, problem.threads)
    measured = replace(peer_blank(bench, large, "step", CLASSIC), route=LARGE)
    return routes | {LARGE: (bench.step_peer(CLASSIC).make(large).step, measured)}


def _rows(bench: Bench, ours: Measured, peers: Measured, lite: bool, targeted: bool) -> None:
    """Compare ours in float32 and at its best with every peer."""
    single = least(_of(ours, "fp32"))
    best = least(_of(ours, "bf16")) or single  # whatever this run says: what users get
    goals = {} if lite or not targeted else {CLASSIC: 0.65, BEST_BF16: by_amx(0.4, 0.95)}
    for name, peer in peers.items():
        if single is not None and peer.precision == "fp32":
            bench.row(single, peer, goals.get(name))
        if best is not None and best is not single:
            goal = goals.get(name) if peer.precision == best.precision else None
            bench.row(best, peer, goal)
    torch = {name: peer for name, peer in peers.items() if name.startswith("torch")}
    contests = [(best, torch, 0.35, "best torch setting")]
    if not lite:
        contests = [
            (single, _of(peers, "fp32"), 0.85, "best float32 peer"),
            (least(_of(ours, "bf16")), _of(peers, "bf16"), by_amx(0.42, 0.95), "best bf16 peer"),
        ]
    for one, against, goal, words in contests:
        strongest = least(against)
        if one is not None and strongest is not None:
            bench.row(one, strongest, goal if targeted else None, f"{one.task}, {words}")


def _of(measured: Measured, precision: str) -> Measured:
    return {name: one for name, one in measured.items() if one.precision == precision}


def _share_outside(bench: Bench, size: int) -> None:
    """Time the provider's calls inside the real loop, total variation and L-BFGS included."""
    first = SETTINGS.history + 2  # steps until the history is full
    steps = first + 6 * bench.options.repeats
    settings = StyleSettings(size=size, scales=1, steps=steps)
    chosen = bench.best
    options = EngineOptions(
        LITE, provider=chosen.provider, precision=chosen.precision, threads=chosen.threads
    )
    stylizer = Stylizer(options)
    content, style = (smooth_picture(size, seed) for seed in (1, 2))
    seconds, provider = [], []
    with stylizer.start(content, style, settings) as run, timed_sessions() as calls:
        for report in run:
            seconds.append(report.seconds)
            provider.append(sum(calls))
    whole = np.diff(seconds)[first - 1 :]
    outside = whole - np.diff(provider)[first - 1 :]
    task = f"{LITE} {size}², {label(chosen)}, share of a step"
    make = partial(Measurement, "step", task)
    share = bench.keep(make("outside the provider", outside.tolist()))
    bench.row(share, bench.keep(make("whole step", whole.tolist())), 0.2)
