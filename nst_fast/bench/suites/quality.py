"""Time to loss: optimisers and evaluators against each other; and a whole picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nst_fast.bench.findings import Curve, Measurement
from nst_fast.bench.method import order
from nst_fast.bench.problem import SETTINGS, OurStep, Problem, Step, label, make_problem
from nst_fast.bench.session import Bench
from nst_fast.bench.suites import judged
from nst_fast.bench.suites.picture import compare_pictures
from nst_fast.host import Float32, Float64
from nst_fast.kernels import Kernels
from nst_fast.loop import HostLoop

SIZE = 256  # pixels a side
EVALUATIONS = 60
ROUNDS = 2
TORCH = "torch fp32 channels_last"


@dataclass
class _Recorder:
    """Keeps the best loss so far against the clock."""

    began: float = field(default_factory=time.perf_counter)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, loss: float) -> None:
        """Keep what an evaluation found."""
        self.seconds.append(time.perf_counter() - self.began)
        self.losses.append(min([loss, *self.losses[-1:]]))

    def reached(self, loss: float) -> float:
        """Seconds until the best loss was this low; those of all evaluations if it never was."""
        pairs = zip(self.seconds, self.losses, strict=True)
        return next((s for s, found in pairs if found <= loss), self.seconds[-1])


Run = Callable[[], _Recorder]


def run(bench: Bench) -> None:
    """Time to loss on each encoder, time to quality, then the whole picture."""
    for encoder in bench.encoders(("vgg19-lite",)):
        for size in bench.options.sizes or (SIZE,):
            with bench.attempt("quality", f"{encoder.name} {size}², time to loss"):
                _race(bench, make_problem(encoder, size, bench.options.threads))
    with bench.attempt("quality", "time to quality"):
        judged.run(bench)
    compare_pictures(bench)


def _race(bench: Bench, problem: Problem) -> None:
    """Let every pair of optimiser and evaluator take as many evaluations from the same picture.

    The goal is the loss that the slowest to descend still reaches, but at least a tenth below the
    start, so that who does not descend at all is not the measure.
    """
    runs = _runs(bench, problem)
    for make in runs.values():
        make()  # warms up
    done: list[dict[str, _Recorder]] = []
    for turn in range(min(bench.options.repeats, ROUNDS)):
        done.append({name: runs[name]() for name in order(runs, turn)})
    goal = max(one.losses[-1] for one in done[-1].values())
    start = max(one.losses[0] for one in done[-1].values())
    goal = min(goal, 0.9 * start)
    task = f"{problem.task}, time to loss {goal:.3g}"
    found, group = {}, bench.new_group()
    for name in runs:
        last = done[-1][name]
        bench.findings.curves.append(Curve(problem.task, name, last.seconds, last.losses))
        values = [each[name].reached(goal) for each in done]
        ours = name.startswith("nst-fast")
        note = "" if last.losses[-1] <= goal else f"{name} ended at {last.losses[-1]:.3g}."
        measured = Measurement("quality", task, name, values, ours=ours, note=note, group=group)
        found[name] = bench.keep(measured)
        bench.say(f"{task}: {name}: {found[name].middle:.2f} s, ends at {last.losses[-1]:.3g}")
    mine = found[f"nst-fast {label(bench.best)}"]
    for measured in found.values():
        if not measured.ours:
            bench.row(mine, measured)


def _runs(bench: Bench, problem: Problem) -> dict[str, Run]:
    made: dict[str, Run] = {}
    for name, chosen in bench.backends.items():
        step = OurStep(problem, chosen)
        made[f"nst-fast {name}"] = partial(_ours, step, problem, chosen.kernels)
    if bench.peers is None:
        return made
    evaluators: dict[str, Step] = {f"our {label(bench.best)} step": OurStep(problem, bench.best)}
    evaluators[TORCH] = bench.step_peer(TORCH).make(problem)
    for optimizer, minimize in bench.peers.MINIMIZERS.items():
        for name, evaluator in evaluators.items():
            made[f"{optimizer} on {name}"] = partial(_theirs, evaluator, problem, minimize)
    return made


def _ours(step: OurStep, problem: Problem, kernels: Kernels) -> _Recorder:
    """The engine's own loop, which moves a smoothed picture."""
    recorder = _Recorder()
    loop = HostLoop(step.plan, SETTINGS, kernels, problem.image)
    for _ in range(EVALUATIONS):
        (terms,) = loop.advance(1)
        recorder.add(float(terms.sum()))
    return recorder


def _theirs(step: Step, problem: Problem, minimize: Callable[..., object]) -> _Recorder:
    """Another optimiser, which moves the picture itself."""
    recorder = _Recorder()

    def evaluate(x: Float32) -> tuple[float, Float64]:
        step.place(x.reshape(problem.image.shape))
        loss = step.step()
        recorder.add(loss)
        return loss, step.gradient.astype(np.float64).reshape(-1)

    minimize(evaluate, problem.image.reshape(-1), EVALUATIONS)
    return recorder
