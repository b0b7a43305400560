"""Refuse a provider that computes a wrong gradient, before it makes a wrong picture.

Providers evaluate rarely used operators wrongly now and then, without an error. The first
time that a process uses an encoder on a provider at a precision, the Plan's gradient of a
small picture is compared with that of the exported graphs as they were written, on
onnxruntime's CPU provider in float32, with the loss head in numpy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nst_fast.config import PlanName
from nst_fast.device import Float32, give_memory_back
from nst_fast.device_plan import make_plan
from nst_fast.encoders import Encoder
from nst_fast.errors import ProviderError
from nst_fast.graphs import (
    IMAGE,
    IMAGE_GRADIENT,
    Shape,
    backward_graph,
    feature_graph,
    gradient_name,
)
from nst_fast.losses import Objective, Targets, coefficients, style_target
from nst_fast.plan import Backend
from nst_fast.runtime import Session

# Relative error of the gradient. A swapped mask or a wrong constant gives 0.25 and more; rounding
# to bfloat16 flips ReLUs that are nearly 0, most of all in a narrow encoder.
MOST_ERROR = {"fp32": 0.01, "tf32": 0.05, "fp16": 0.05, "bf16": 0.2}
CELLS = 4  # cells of the deepest tap, a side
_passed: set[tuple[str, str, str, str, tuple[str, ...]]] = set()


def ensure_gradient(
    encoder: Encoder, objective: Objective, backend: Backend, kind: PlanName
) -> None:
    """Check the gradient of a Plan of this kind; at once where it has passed before.

    Raises:
        ProviderError: the gradient is wrong; the message names the provider and the remedy.
    """
    key = (encoder.digest, backend.provider, backend.precision, kind, tuple(objective.names()))
    if key in _passed:
        return
    error = gradient_error(encoder, objective, backend, kind)
    give_memory_back()  # its sessions hold the weights several times over
    if not error <= MOST_ERROR[backend.precision]:
        raise ProviderError(
            f"provider {backend.provider} computes a wrong gradient in {backend.precision} "
            f"(relative error {error:.3f}); use --provider cpu --precision fp32"
        )
    _passed.add(key)


def gradient_error(
    encoder: Encoder, objective: Objective, backend: Backend, kind: PlanName
) -> float:
    """Relative error of a Plan's gradient, ‖found − expected‖/‖expected‖, on a small picture."""
    objective = replace(objective, tv=0.0, range=0.0)
    side = CELLS * max(encoder.taps[tap].stride for tap in objective.taps)
    shape = (1, side, side)
    plan = make_plan(encoder, objective, shape, backend, kind)
    reference = _Reference(encoder, objective, shape)
    image, content, style = (_smooth_picture(side, seed) for seed in range(3))
    targets = Targets(
        style=style_target(reference.features(style), list(objective.style), backend.kernels),
        content={tap: reference.features(content)[tap] for tap in objective.content},
    )
    plan.set_targets(targets)
    plan.gradient_at(content)  # a captured run must not repeat this one's result
    found = plan.gradient_at(image)
    expected = reference.gradient(image, targets)
    difference = found.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def _smooth_picture(side: int, seed: int) -> Float32:
    """Random waves: like a photograph, most of the energy is in the low frequencies."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    picture = np.full((3, side, side), 0.5)
    for order in range(1, 9):
        fx, fy = rng.uniform(-order, order, 2)
        phase = rng.uniform(0, 2 * np.pi, 3)[:, None, None]
        amplitude = rng.uniform(0.1, 0.3, 3)[:, None, None] / order
        picture += amplitude * np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    # Scaled, not clipped: flat areas would be ties for max pooling.
    low, high = picture.min(), picture.max()
    scaled: Float32 = (0.9 * (picture - low) / (high - low) + 0.05)[None].astype(np.float32)
    return scaled


class _Reference:
    """The exported graphs as they are, on the CPU provider, with the loss head in numpy."""

    def __init__(self, encoder: Encoder, objective: Objective, shape: Shape) -> None:
        self._objective = objective
        backward = backward_graph(encoder, objective.taps, shape)
        needed = [name for name in backward.inputs if name in encoder.taps]
        forward = feature_graph(encoder, dict.fromkeys((*needed, *objective.taps)), shape)
        self._forward = Session(forward, provider="cpu", precision="fp32", threads=1)
        self._backward = Session(backward, provider="cpu", precision="fp32", threads=1)

    def features(self, image: Float32) -> dict[str, Float32]:
        np.copyto(self._forward.inputs[IMAGE], image)
        self._forward.run()
        return {tap: array.copy() for tap, array in self._forward.outputs.items()}

    def gradient(self, image: Float32, targets: Targets) -> Float32:
        features = self.features(image)
        factors = iter(coefficients(self._objective, targets)[0])
        d_taps = {tap: np.zeros_like(features[tap]) for tap in self._objective.taps}
        for tap in self._objective.style:
            matrix = features[tap][0].reshape(features[tap].shape[1], -1)
            residual = matrix @ matrix.T / matrix.size - targets.style[tap][0]
            d_style = next(factors) * 4 / matrix.size * residual @ matrix
            d_taps[tap] += d_style.reshape(features[tap].shape)
        for tap in self._objective.content:
            difference = features[tap] - targets.content[tap]
            d_taps[tap] += next(factors) * 2 / difference.size * difference
        sources = features | {gradient_name(tap): array for tap, array in d_taps.items()}
        for name, array in self._backward.inputs.items():
            np.copyto(array, sources[name])
        self._backward.run()
        return self._backward.outputs[IMAGE_GRADIENT]
