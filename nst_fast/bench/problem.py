"""What is timed: pictures, one objective, one encoder, the same for us and for the peers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from PIL import Image

from nst_fast import images
from nst_fast.backend import Backend
from nst_fast.bench.findings import Agreement
from nst_fast.bench.method import Route
from nst_fast.canvas import Canvas
from nst_fast.config import PlanName, PrecisionName, ProviderName, StyleSettings
from nst_fast.encoders import Encoder
from nst_fast.host import Float32, Float64
from nst_fast.kernels import Kernels
from nst_fast.loop import HostLoop
from nst_fast.losses import Goal, Objective, Targets, Weights, make_goal
from nst_fast.plan import Plan
from nst_fast.runtime import Session, choose
from nst_fast.targets import TargetExtractor

SETTINGS = StyleSettings(tv_weight=0.0, range_weight=0.0)


@dataclass(frozen=True)
class Problem:
    """An evaluation of loss and gradient, without terms of the picture itself.

    Attributes:
        encoder: the network.
        objective: that of the default settings, but for the terms of the picture.
        canvas: where the picture lies in what the encoder sees; the peers know whole ones alone.
        weights: of the cells of each tap, (1, H/s, W/s).
        targets: from two other pictures, each (1, …).
        goal: made from both, for N pictures: what all routes compute the loss from.
        image: (N, 3, H, W) float32 in [0, 1], N times the same picture.
        threads: that every route gets.
    """

    encoder: Encoder
    objective: Objective
    canvas: Canvas
    weights: Weights
    targets: Targets
    goal: Goal
    image: Float32
    threads: int

    @property
    def task(self) -> str:
        """Encoder, size and batch in words."""
        batch, _, size, _ = self.image.shape
        return f"{self.encoder.name} {size}²{f' × {batch}' if batch > 1 else ''}"


class Step(Protocol):
    """One side of a comparison: loss and gradient of a problem, prepared."""

    def place(self, image: Float32) -> None:
        """Evaluate the loss there from now on, (N, 3, H, W)."""

    def step(self) -> float:
        """Evaluate and return the loss, summed over the pictures."""

    def run(self) -> None:
        """Evaluate; a GPU is handed the work and not waited for."""

    @property
    def gradient(self) -> Float32:
        """Of the last step, (N, 3, H, W)."""


def backend(provider: ProviderName, precision: PrecisionName, threads: int) -> Backend:
    """What nst-fast itself chooses on the CPU; raises ProviderError where it cannot be had."""
    return Backend(*choose(provider, precision, "cpu"), threads, Kernels(threads))


def label(chosen: Backend) -> str:
    """Name our route after its precision and provider."""
    return f"{chosen.precision} {chosen.provider}"


def smooth_picture(size: int, seed: int) -> Float32:
    """Random blobs of colour, (size, size, 3) in [0, 1]."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    large = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    return images.load(large).pixels


def make_problem(
    encoder: Encoder, size: int, threads: int, batch: int = 1, margin: int = 0
) -> Problem:
    """Pose the problem for square pictures; ``size`` is a multiple of 16 pixels.

    Without a margin the encoder sees the picture alone, and no cell has a weight: as many pixels as
    the size says, which is what peers can be compared on.
    """
    objective = Objective.from_settings(SETTINGS, encoder)
    strides = {tap: encoder.taps[tap].stride for tap in objective.taps}
    canvas = Canvas.around(size, size, margin=margin, stride=max(strides.values()))
    weights = {tap: canvas.weights(stride)[None] for tap, stride in strides.items()}
    image, content, style = (images.to_tensor(smooth_picture(size, seed)) for seed in range(3))
    chosen = backend("auto", "fp32", threads)
    measure = TargetExtractor(encoder, objective, (1, *canvas.size), chosen)
    moments = {k: v.copy() for k, v in measure(canvas.extend(style), weights).style.items()}
    features = {k: v.copy() for k, v in measure(canvas.extend(content), weights).content.items()}
    targets = Targets(moments, features)
    goal = make_goal(objective, encoder, targets, weights, batch)
    pictures = np.repeat(image, batch, axis=0)
    return Problem(encoder, objective, canvas, weights, targets, goal, pictures, threads)


class OurStep:
    """Loss and gradient by a Plan, :attr:`plan`."""

    def __init__(self, problem: Problem, chosen: Backend, kind: PlanName = "auto") -> None:
        """Build the Plan, by default the one that nst-fast takes."""
        self.plan = Plan(
            problem.encoder,
            problem.objective,
            problem.canvas,
            chosen,
            kind,
            pictures=len(problem.image),
        )
        self.plan.set_targets(problem.targets, problem.weights)
        self.place(problem.image)

    def place(self, image: Float32) -> None:
        """Evaluate there from now on."""
        np.copyto(self.plan.image, image)

    def step(self) -> float:
        """Evaluate; the gradient is in :attr:`gradient`."""
        return float(self.plan.value_and_grad().sum())

    def run(self) -> None:
        """Evaluate."""
        self.plan.value_and_grad()

    @property
    def gradient(self) -> Float32:
        """Of the last step, (N, 3, H, W)."""
        return self.plan.gradient


def with_lbfgs(ours: OurStep, chosen: Backend) -> Route:
    """Make a whole step of the engine's own loop, smoothing and all, its history full."""
    loop = HostLoop(ours.plan, SETTINGS, chosen.kernels, ours.plan.image)
    for _ in range(SETTINGS.history + 2):
        loop.advance(1)
    return partial(loop.advance, 1)


def evaluate(step: Step) -> tuple[float, Float64]:
    """Loss, and gradient as a float64 vector."""
    loss = step.step()
    return loss, step.gradient.astype(np.float64).ravel()


def agreement(
    task: str, names: tuple[str, str], ours: tuple[float, Float64], peer: tuple[float, Float64]
) -> Agreement:
    """Compare two evaluations of the same problem; the peer is the reference."""
    (loss, found), (expected_loss, expected) = ours, peer
    norm = float(np.linalg.norm(expected))
    return Agreement(
        task,
        *names,
        loss=abs(loss - expected_loss) / abs(expected_loss),
        gradient=float(np.linalg.norm(found - expected)) / norm,
        cosine=float(found @ expected) / (norm * float(np.linalg.norm(found))),
    )


@contextmanager
def timed_sessions() -> Iterator[list[float]]:
    """Record the seconds of every provider call while the context is open."""
    calls: list[float] = []
    run = Session.run

    def timed(session: Session) -> None:
        start = time.perf_counter()
        run(session)
        calls.append(time.perf_counter() - start)

    setattr(Session, "run", timed)  # noqa: B010 – mypy forbids the plain assignment
    try:
        yield calls
    finally:
        setattr(Session, "run", run)  # noqa: B010
