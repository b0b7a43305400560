"""DevicePlan: a Plan whose buffers, kernels and sessions live on a GPU and share one stream.

Nothing here waits for the device: an evaluation is a row of launches, in order on the stream. The
provider may compute in float16; image, gradient and targets' sums stay in float32 or float64.
"""

from __future__ import annotations

import numpy as np

from nst_fast.config import PlanName
from nst_fast.cuda import DeviceArray
from nst_fast.device import Float32
from nst_fast.device_evaluators import make_evaluator
from nst_fast.encoders import Encoder
from nst_fast.forms import LOSS_SCALE
from nst_fast.graphs import IMAGE, IMAGE_GRADIENT, Shape
from nst_fast.half import split
from nst_fast.kernels.picture import PictureKernels
from nst_fast.losses import Objective, Targets, coefficients
from nst_fast.optimizers.on_device import ImageParts
from nst_fast.plan import Backend, Plan

LEAST_SCALE = 2.0**-24


class DevicePlan:
    """Loss and gradient of N images of one shape, on arrays of a GPU.

    Attributes:
        kind: "split", "fused" or "tiled".
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
        *,
        side: int | None = None,
    ) -> None:
        """Build sessions and arrays; arguments and errors as for ``Plan``.

        "auto" takes "split": a feature map is a pointer here, and our kernels fuse what a graph
        would write to memory in between. With a ``side`` the encoder sees the images in windows of
        so many pixels a side, one after another, whatever the kind.
        """
        assert backend.launcher is not None
        self._launcher = launcher = backend.launcher
        n, height, width = shape
        self.objective = objective
        self.kind: str = "split" if kind == "auto" else kind
        if side is not None:
            self.kind = "tiled"
        self._mean = np.asarray(encoder.mean, np.float32)
        half = backend.precision == "fp16"
        self.image = launcher.zeros((n, 3, height, width))
        self.gradient = launcher.zeros(self.image.shape)
        self.parts = self._make_parts() if half else None
        # That of a tiled Plan is a sum over windows.
        narrow = half and side is None
        provider_gradient = launcher.zeros(self.image.shape, np.float16 if narrow else np.float32)
        self.scale = launcher.zeros((n,))
        self._first_scale = _first_scale(height * width) if half else 1.0
        ends = {
            IMAGE: self.image if self.parts is None else self.parts.values,
            IMAGE_GRADIENT: provider_gradient,
            LOSS_SCALE: self.scale,
        }
        self._evaluator = make_evaluator(
            encoder, objective, shape, backend, ends, fused=kind == "fused", side=side
        )
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


def make_plan(
    encoder: Encoder,
    objective: Objective,
    shape: Shape,
    backend: Backend,
    kind: PlanName = "auto",
    *,
    side: int | None = None,
) -> Plan | DevicePlan:
    """Build the Plan of a backend's device; arguments and errors as for ``DevicePlan``."""
    if backend.launcher is None:
        return Plan(encoder, objective, shape, backend, kind)
    return DevicePlan(encoder, objective, shape, backend, kind, side=side)
