"""DevicePlan: a Plan whose buffers, kernels and sessions live on a GPU and share one stream.

Nothing here waits for the device: an evaluation is a row of launches, in order on the stream. The
provider may compute in float16; image, gradient and targets' sums stay in float32 or float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from nst_fast.config import PlanName
from nst_fast.cuda import DeviceArray, Launcher
from nst_fast.device import Float32, Float64
from nst_fast.encoders import Encoder
from nst_fast.forms import (
    COEFFICIENTS,
    FORMS,
    LOSS_SCALE,
    TERMS,
    fused_graph,
    target_name,
)
from nst_fast.graphs import (
    IMAGE,
    IMAGE_GRADIENT,
    Shape,
    backward_graph,
    feature_graph,
    gradient_name,
)
from nst_fast.half import read_parts, split, to_half
from nst_fast.kernels.picture import PictureKernels
from nst_fast.kernels.taps import Tap, TapKernels
from nst_fast.losses import Objective, Targets, as_matrix, coefficients, term_kinds
from nst_fast.optimizers.on_device import ImageParts
from nst_fast.plan import Backend, Plan
from nst_fast.runtime import DeviceSession

THREADS = 128  # of a block that weighs terms
LEAST_SCALE = 2.0**-24


class DeviceEvaluator(Protocol):
    """What computes the terms at the taps and the provider's gradient, in a DevicePlan's arrays.

    Attributes:
        terms: (N, K) float64, weighted.
    """

    terms: DeviceArray

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        """Copy the targets and the factor of each term, (N, K), in."""

    def run(self) -> None:
        """Enqueue one evaluation."""


class DevicePlan:
    """Loss and gradient of N images of one shape, on arrays of a GPU.

    Attributes:
        kind: "split" or "fused".
        objective: terms and weights.
        image: (N, 3, H, W) float32, nominally in [0, 1].
        parts: what a provider of float16 reads of ``image``, its values (N, 6, H, W); None where it
            reads ``image`` itself.
        gradient: (N, 3, H, W) float32, overwritten by :meth:`evaluate_picture`.
        terms: arrays (N, K) and (N, 2) float64: the weighted terms of the last evaluation, those
            at the taps and those of the picture.
        scale: (N,) float32, what the provider's gradient is multiplied by: powers of two that keep
            it within float16, 1 in the other precisions.
        overflow: (N,) int32, 1 where the provider's gradient was not finite.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        kind: PlanName = "auto",
    ) -> None:
        """Build sessions and arrays; arguments and errors as for ``Plan``.

        "auto" takes "split": a feature map is a pointer here, and our kernels fuse what a graph
        would write to memory in between.
        """
        assert backend.launcher is not None
        self._launcher = launcher = backend.launcher
        n, height, width = shape
        self.objective = objective
        self.kind = "split" if kind == "auto" else kind
        self._mean = np.asarray(encoder.mean, np.float32)
        half = backend.precision == "fp16"
        self.image = launcher.zeros((n, 3, height, width))
        self.gradient = launcher.zeros(self.image.shape)
        self.parts = self._make_parts() if half else None
        provider_gradient = launcher.zeros(self.image.shape, np.float16 if half else np.float32)
        self.scale = launcher.zeros((n,))
        self._first_scale = _first_scale(height * width) if half else 1.0
        ends = {
            IMAGE: self.image if self.parts is None else self.parts.values,
            IMAGE_GRADIENT: provider_gradient,
            LOSS_SCALE: self.scale,
        }
        make = _Fused if self.kind == "fused" else _Split
        self._evaluator: DeviceEvaluator = make(encoder, objective, shape, backend, ends)
        self._picture = PictureKernels(
            launcher,
            self.image,
            provider_gradient,
            self.gradient,
            self.scale,
            tv=objective.tv,
            range_weight=objective.range,
        )
        self.overflow: DeviceArray = self._picture.overflow
        self.terms: tuple[DeviceArray, DeviceArray] = (self._evaluator.terms, self._picture.terms)

    def _make_parts(self) -> ImageParts:
        n, channels, height, width = self.image.shape
        values = self._launcher.zeros((n, 2 * channels, height, width), np.float16)
        mean = self._launcher.zeros((channels,))
        self._launcher.upload(self._mean, mean)
        return ImageParts(values, mean)

    def set_targets(self, targets: Targets) -> None:
        """Copy the targets in and derive the factor of each term from them."""
        self._evaluator.set_targets(targets, coefficients(self.objective, targets))
        first = np.full(self.scale.shape, self._first_scale, np.float32)
        self._launcher.upload(first, self.scale)

    def set_image(self, image: Float32) -> None:
        """Copy an image (N, 3, H, W) in."""
        self._launcher.upload(image, self.image)
        if self.parts is not None:
            self._launcher.upload(split(image, self._mean), self.parts.values)

    def evaluate_taps(self) -> None:
        """Enqueue the first part of an evaluation: terms at the taps, the provider's gradient."""
        self._evaluator.run()

    def evaluate_picture(self) -> None:
        """Enqueue the rest: the terms of the picture, and ``gradient``; our kernels alone."""
        self._picture.run()

    def gradient_at(self, image: Float32) -> Float32:
        """Gradient at an image (N, 3, H, W), on the host."""
        self.set_image(image)
        self.settle_scale()
        found: Float32 = self._launcher.download(self.gradient)
        return found

    def settle_scale(self) -> None:
        """Evaluate, and lower the loss scale until the gradient fits into float16; waits."""
        while True:
            self.evaluate_taps()
            self.evaluate_picture()
            overflow = self._launcher.download(self.overflow) > 0
            scale = self._launcher.download(self.scale)
            lower = overflow & (scale > LEAST_SCALE)
            if self.parts is None or not lower.any():
                return
            self._launcher.upload(np.where(lower, scale / 16, scale), self.scale)


def _first_scale(pixels: int) -> float:
    """A power of two near the number of pixels.

    Terms are means, so a pixel's gradient is about the loss divided by their number.
    """
    return float(2.0 ** round(np.log2(pixels)))


class _Split:
    """Forward session, our kernels, backward session; feature maps stay where they are."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        ends: Mapping[str, DeviceArray],
    ) -> None:
        launcher = backend.launcher
        assert launcher is not None
        self._launcher = launcher
        self._objective = objective
        taps = [tap for tap in encoder.taps if tap in objective.taps]
        backward = backward_graph(encoder, taps, shape)
        activations = [name for name in backward.inputs if name in encoder.taps]
        forward = feature_graph(encoder, dict.fromkeys((*activations, *taps)), shape)
        if backend.precision == "fp16":
            read_parts(forward)
            to_half(forward)
            to_half(backward)
        self._forward = _session(forward, backend, ends)
        features = self._forward.outputs
        self._backward = _session(backward, backend, {**features, **ends})
        self._taps = {
            tap: _tap(launcher, objective, tap, features[tap], self._backward.inputs)
            for tap in taps
        }
        kernels = TapKernels(
            launcher, list(self._taps.values()), backend.precision, ends[LOSS_SCALE]
        )
        self._factors, self.terms = kernels.factors, kernels.terms
        self._run_kernels: Callable[[], None] = launcher.capture(kernels.run)

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        upload = self._launcher.upload
        upload(factors, self._factors)
        for tap, gram in targets.style.items():
            upload(gram, self._taps[tap].style)
        for tap, features in targets.content.items():
            content = self._taps[tap].content
            assert content is not None
            upload(as_matrix(features).astype(content.dtype), content)

    def run(self) -> None:
        self._forward.run()
        self._run_kernels()
        self._backward.run()


def _tap(
    launcher: Launcher,
    objective: Objective,
    tap: str,
    features: DeviceArray,
    gradients: Mapping[str, DeviceArray],
) -> Tap:
    n, channels = features.shape[:2]
    matrix = as_matrix(features)
    has_style, has_content = tap in objective.style, tap in objective.content
    return Tap(
        features=matrix,
        gradient=as_matrix(gradients[gradient_name(tap)]),
        style=launcher.zeros((n, channels, channels)) if has_style else None,
        content=launcher.zeros(matrix.shape, matrix.dtype) if has_content else None,
    )


class _Fused:
    """One session for forward, loss head and backward."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        ends: Mapping[str, DeviceArray],
    ) -> None:
        launcher = backend.launcher
        assert launcher is not None
        self._launcher = launcher
        form = FORMS[backend.provider, backend.precision]
        graph = fused_graph(encoder, list(objective.style), list(objective.content), shape, form)
        self._session = _session(graph, backend, ends)
        count = len(term_kinds(objective))
        self._factors = launcher.zeros((shape[0], count), np.float64)
        self.terms = launcher.zeros((shape[0], count), np.float64)

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        upload, inputs = self._launcher.upload, self._session.inputs
        upload(factors, self._factors)
        upload(factors.astype(np.float32), inputs[COEFFICIENTS])
        for tap, gram in targets.style.items():
            upload(gram, inputs[target_name(tap, "style")])
        for tap, features in targets.content.items():
            upload(features, inputs[target_name(tap, "content")])

    def run(self) -> None:
        self._session.run()
        count = self.terms.size
        arguments: list[Any] = [self._session.outputs[TERMS], self._factors, self.terms]
        self._launcher.launch(
            "weigh_terms",
            (-(-count // THREADS), 1, 1),
            THREADS,
            [*arguments, np.int32(count)],
        )


def _session(graph: Any, backend: Backend, buffers: Mapping[str, DeviceArray]) -> DeviceSession:
    assert backend.launcher is not None
    return DeviceSession(
        graph,
        provider=backend.provider,
        precision=backend.precision,
        launcher=backend.launcher,
        buffers=buffers,
    )


def make_plan(
    encoder: Encoder,
    objective: Objective,
    shape: Shape,
    backend: Backend,
    kind: PlanName = "auto",
) -> Plan | DevicePlan:
    """Build the Plan of a backend's device; arguments and errors as for ``Plan``."""
    make = Plan if backend.launcher is None else DevicePlan
    return make(encoder, objective, shape, backend, kind)
