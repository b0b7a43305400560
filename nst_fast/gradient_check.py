"""Refuse a provider that computes a wrong gradient, before it makes a wrong picture.

Providers evaluate rarely used operators wrongly now and then, without an error. The first
time that an encoder is used on a provider at a precision, the Plan's gradient of a small
picture is compared with that of the exported graphs as they were written, on
onnxruntime's CPU provider in float32, with the loss head in numpy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.config import PlanName
from nst_fast.encoders import Encoder, cache_dir
from nst_fast.errors import ProviderError
from nst_fast.files import write_atomically
from nst_fast.graph.parts import (
    IMAGE,
    IMAGE_GRADIENT,
    Shape,
    gradient_name,
    graph_pair,
)
from nst_fast.host import Float32, Float64, cpu_features, cpu_model, give_memory_back
from nst_fast.losses import Goal, Objective, Targets, Weights, at_tap, tap_of
from nst_fast.losses import moments as reference
from nst_fast.plan import AnyPlan, make_plan
from nst_fast.runtime import Session, versions

# Relative error of the gradient. A swapped mask or a wrong constant gives 0.25 and more, one
# channel of the wrong sign 0.1. Rounding flips ReLUs that are nearly 0 and maxima that are nearly
# equal, others in each of several neighbouring pictures, and most of all in a narrow encoder with
# random weights.
MOST_ERROR = {"fp32": 0.01, "tf32": 0.05, "fp16": 0.1, "bf16": 0.2}
CELLS = ((4, 4), (2, 5))  # cells of the deepest tap: height and width of each canvas
PICTURES = {"bf16": 8}  # whose gradients are averaged, where it is not 1
NEIGHBOURHOOD = 0.05  # of a picture: how far the others are from the first
Key = tuple[str, str, str, str, tuple[str, ...]]
_passed: set[Key] = set()


def ensure_gradient(
    encoder: Encoder,
    objective: Objective,
    backend: Backend,
    kind: PlanName,
    *,
    weighted: bool = True,
) -> None:
    """Check the gradient of a Plan of this kind; at once where it has passed before.

    ``weighted`` is whether its cells have weights; the graph is another one without.

    Raises:
        ProviderError: the gradient is wrong; the message names the provider and the remedy.
    """
    objective = replace(objective, temporal=0.0)  # what adds it knows no provider
    names = (objective.style_loss, *objective.names())
    form = f"{kind}, weighted" if weighted else kind
    key = (encoder.digest, backend.provider, backend.precision, form, names)
    if key in _passed:
        return
    record = None if backend.launcher is not None else _record(key)
    if record is not None and os.path.isfile(record):  # no error where it cannot be looked at
        _passed.add(key)
        return
    error = gradient_error(encoder, objective, backend, kind, weighted=weighted)
    give_memory_back()  # its sessions hold the weights several times over
    if not error <= MOST_ERROR[backend.precision]:
        raise ProviderError(
            f"provider {backend.provider} computes a wrong gradient in {backend.precision} "
            f"(relative error {error:.3f}); use --provider cpu --precision fp32"
        )
    _passed.add(key)
    if record is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written is no failure
            record.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(record, b"", durable=False)


def _record(key: Key) -> Path:
    """An empty file whose existence says that this passed here, in some process before.

    Its name stands for all that the gradient depends on besides: this CPU, the versions of what
    runs the graphs, and our own code.
    """
    kernels = find_spec("nst_fast._core")
    sources = [*Path(__file__).parent.rglob("*.py")]
    if kernels is not None and kernels.origin is not None:
        sources.append(Path(kernels.origin))
    code = sorted((path.name, path.stat().st_mtime_ns) for path in sources)
    facts = (key, version("nst-fast"), code, versions(), cpu_model(), sorted(cpu_features()))
    return cache_dir() / "gradients" / hashlib.sha256(repr(facts).encode()).hexdigest()


def gradient_error(
    encoder: Encoder,
    objective: Objective,
    backend: Backend,
    kind: PlanName,
    *,
    weighted: bool = True,
) -> float:
    """Relative error of a Plan's gradient, ‖found − expected‖/‖expected‖, on small canvases.

    The largest of several shapes, each the mean over neighbouring pictures: what a provider rounds
    averages out, what it computes wrongly does not.
    """
    objective = replace(objective, tv=0.0, range=0.0)
    stride = max(encoder.taps[tap].stride for tap in objective.taps)
    errors = []
    for cells in CELLS:
        # With weights, some cells have none, and some a part; and sides are odd.
        less = stride // 2 - 1 if weighted else 0
        height, width = (count * stride - less for count in cells)
        canvas = Canvas.around(height, width, margin=0, stride=stride)
        plan = make_plan(encoder, objective, canvas, backend, kind, weighted=weighted)
        exported = _Exported(encoder, objective, (1, *canvas.size))
        errors.append(_error(plan, exported, encoder, PICTURES.get(backend.precision, 1)))
    return float(np.max(errors))  # NaN where one is


def _error(plan: AnyPlan, exported: _Exported, encoder: Encoder, pictures: int) -> float:
    canvas, size = plan.canvas, (plan.canvas.height, plan.canvas.width)
    weights = _weights(plan.objective, encoder, canvas)
    first, content, style, *waves = (_smooth_picture(*size, seed) for seed in range(2 + pictures))
    goal = plan.set_targets(exported.targets(canvas, content, style, weights), weights)
    plan.gradient_at(content)  # a captured run must not repeat this one's result
    found, expected = np.zeros(first.shape), np.zeros(first.shape)
    for image in (first, *(first + NEIGHBOURHOOD * (wave - first) for wave in waves)):
        found += plan.gradient_at(image)
        expected += exported.gradient(canvas, image, goal)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _weights(objective: Objective, encoder: Encoder, canvas: Canvas) -> Weights:
    """Of the cells of each tap, and of each site in a region, as soft as a mask can be."""
    found: dict[str, Float32] = {}
    for number, place in enumerate((*objective.taps, *objective.style)):
        stride, opacity = encoder.taps[tap_of(place)].stride, None
        if place not in objective.taps:
            opacity = _smooth_picture(canvas.height, canvas.width, number)[0, 0]
        found[place] = canvas.weights(stride, opacity)[None]
    return found


def _smooth_picture(height: int, width: int, seed: int) -> Float32:
    """Random waves: like a photograph, most of the energy is in the low frequencies."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    picture = np.full((3, height, width), 0.5)
    for order in range(1, 9):
        fx, fy = rng.uniform(-order, order, 2)
        phase = rng.uniform(0, 2 * np.pi, 3)[:, None, None]
        amplitude = rng.uniform(0.1, 0.3, 3)[:, None, None] / order
        picture += amplitude * np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    # Scaled, not clipped: flat areas would be ties for max pooling.
    low, high = picture.min(), picture.max()
    scaled: Float32 = (0.9 * (picture - low) / (high - low) + 0.05)[None].astype(np.float32)
    return scaled


class _Exported:
    """The exported graphs as they are, on the CPU provider, with the loss head in numpy."""

    def __init__(self, encoder: Encoder, objective: Objective, shape: Shape) -> None:
        self._encoder, self._objective = encoder, objective
        forward, backward = graph_pair(encoder, objective.taps, shape)
        self._forward = Session(forward, provider="cpu", precision="fp32", threads=1)
        self._backward = Session(backward, provider="cpu", precision="fp32", threads=1)

    def targets(
        self, canvas: Canvas, content: Float32, style: Float32, weights: Weights
    ) -> Targets:
        """Those of a content and a style picture, (1, 3, H, W)."""
        features = self._features(canvas.extend(style))
        moments = {}
        for site in self._objective.style:
            tap, cells = tap_of(site), weights[site]
            normalizers = reference.normalizer(self._encoder.taps[tap].channels, cells)
            found = reference.moments(features[tap], cells, normalizers)
            moments[site] = found.astype(np.float32)
        kept = self._features(canvas.extend(content))
        return Targets(moments, {tap: kept[tap] for tap in self._objective.content})

    def gradient(self, canvas: Canvas, image: Float32, goal: Goal) -> Float64:
        """That of the loss at a picture (1, 3, H, W)."""
        features = self._features(canvas.extend(image))
        d_taps = {tap: np.zeros(features[tap].shape) for tap in self._objective.taps}
        for index, (_, place) in enumerate(self._objective.terms):
            tap = tap_of(place)
            _, gradient = at_tap(self._objective, goal, index, features[tap])
            d_taps[tap] += gradient
        sources = features | {gradient_name(tap): array for tap, array in d_taps.items()}
        for name, array in self._backward.inputs.items():
            np.copyto(array, sources[name], casting="same_kind")
        self._backward.run()
        down, across = np.eye(canvas.height)[canvas.rows], np.eye(canvas.width)[canvas.columns]
        found: Float64 = down.T @ self._backward.outputs[IMAGE_GRADIENT] @ across
        return found

    def _features(self, image: Float32) -> dict[str, Float32]:
        np.copyto(self._forward.inputs[IMAGE], image)
        self._forward.run()
        return {tap: array.copy() for tap, array in self._forward.outputs.items()}
