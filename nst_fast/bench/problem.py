"""What is timed: pictures, one objective, one encoder, the same for us and for the peers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from nst_fast import images
from nst_fast.bench.findings import Agreement
from nst_fast.bench.method import Route
from nst_fast.config import PlanName, PrecisionName, ProviderName, StyleSettings
from nst_fast.device import Float32, Float64
from nst_fast.encoders import Encoder
from nst_fast.kernels import cpu_kernels
from nst_fast.losses import Objective, Targets, coefficients, style_target
from nst_fast.optimizers import Lbfgs
from nst_fast.plan import Backend, FeatureExtractor, Plan
from nst_fast.runtime import Session, choose

HISTORY = 10  # pairs of L-BFGS
SETTINGS = StyleSettings(
    style_layers={f"relu{block}_1": 0.2 for block in range(1, 6)},
    content_layers={"relu4_2": 1.0},
    tv_weight=0.0,
    range_weight=0.0,
    history=HISTORY,
)


@dataclass(frozen=True)
class Problem:
    """An evaluation of loss and gradient, without terms of the picture itself.

    Attributes:
        encoder: the network.
        objective: style at relu1_1 to relu5_1, content at relu4_2.
        targets: from two other pictures, each (1, …).
        factors: (K,), of the unweighted terms, style before content.
        image: (N, 3, H, W) float32 in [0, 1], N times the same picture.
        threads: that every route gets.
    """

    encoder: Encoder
    objective: Objective
    targets: Targets
    factors: Float64
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

    @property
    def gradient(self) -> Float32:
        """Of the last step, (N, 3, H, W)."""


def backend(provider: ProviderName, precision: PrecisionName, threads: int) -> Backend:
    """What nst-fast itself chooses on the CPU; raises ProviderError where it cannot be had."""
    return Backend(*choose(provider, precision, "cpu"), threads, cpu_kernels(threads))


def label(chosen: Backend) -> str:
    """Name our route after its precision and provider."""
    return f"{chosen.precision} {chosen.provider}"


def smooth_picture(size: int, seed: int) -> Float32:
    """Random blobs of colour, (size, size, 3) in [0, 1]."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    large = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    return images.load(large).pixels


def make_problem(encoder: Encoder, size: int, threads: int, batch: int = 1) -> Problem:
    """Pose the problem for square pictures; ``size`` is a multiple of 16 pixels."""
    objective = Objective.from_settings(SETTINGS, encoder)
    chosen = backend("auto", "fp32", threads)
    extract = FeatureExtractor(encoder, objective.taps, (1, size, size), chosen)
    image, content, style = (images.to_tensor(smooth_picture(size, seed)) for seed in range(3))
    grams = style_target(extract(style), list(objective.style), chosen.kernels)
    features = extract(content)
    targets = Targets(grams, {tap: features[tap].copy() for tap in objective.content})
    factors = coefficients(objective, targets)[0]
    return Problem(encoder, objective, targets, factors, np.repeat(image, batch, axis=0), threads)


class OurStep:
    """Loss and gradient by a Plan."""

    def __init__(self, problem: Problem, chosen: Backend, kind: PlanName = "auto") -> None:
        """Build the Plan, by default the one that nst-fast takes."""
        shape = (problem.image.shape[0], *problem.image.shape[2:])
        self._plan = Plan(problem.encoder, problem.objective, shape, chosen, kind)
        self._plan.set_targets(problem.targets)
        self.place(problem.image)

    @property
    def image(self) -> Float32:
        """Where the loss is evaluated, (N, 3, H, W); an optimiser moves it in place."""
        return self._plan.image

    def place(self, image: Float32) -> None:
        """Evaluate there from now on."""
        np.copyto(self._plan.image, image)

    def step(self) -> float:
        """Evaluate; the gradient is in :attr:`gradient`."""
        return float(self._plan.value_and_grad().sum())

    @property
    def gradient(self) -> Float32:
        """Of the last step, (N, 3, H, W)."""
        return self._plan.gradient


def with_lbfgs(ours: OurStep, chosen: Backend) -> Route:
    """Make a whole step of optimisation, its history full."""
    optimizer = Lbfgs(ours.image.reshape(-1), chosen.kernels, history=HISTORY)

    def step() -> None:
        optimizer.step(ours.step(), ours.gradient.reshape(-1))

    for _ in range(HISTORY + 2):
        step()
    return step


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
