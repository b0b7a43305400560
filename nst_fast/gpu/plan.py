"""DevicePlan: a Plan whose buffers, kernels and sessions live on a GPU and share one stream.

Nothing here waits for the device: an evaluation is a row of launches, in order on the stream. The
provider may compute in float16; picture, gradient and moments stay in float32, terms in float64.
"""

from __future__ import annotations

import numpy as np

from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.config import PlanName
from nst_fast.device import DeviceArray
from nst_fast.encoders import Encoder
from nst_fast.errors import ProviderError
from nst_fast.gpu.evaluators import DeviceEvaluator, Fused, Split
from nst_fast.gpu.picture import CanvasKernel, PictureKernels, pixels_shape
from nst_fast.graph.parts import IMAGE, IMAGE_GRADIENT
from nst_fast.host import Float32
from nst_fast.losses import CORNER, Anchor, Goal, Objective, Targets, Weights, make_goal
from nst_fast.losses.head import LOSS_SCALE

LEAST_SCALE = 2.0**-24


class DevicePlan:
    """Loss and gradient of N pictures of one size, on arrays of a GPU.

    Attributes:
        kind: "split", "fused" or "tiled".
        objective: terms and weights.
        canvas: where the pictures lie in what the encoder sees.
        weighted: whether cells have weights.
        image: (N, 3, H, W) float32, nominally in [0, 1].
        gradient: (N, 3, H, W) float32, overwritten by :meth:`evaluate_picture`.
        terms: arrays (N, K) and (N, 2), with a temporal term (N, 3), float64: the weighted terms of
            the last evaluation, those at the taps and those of the picture.
        loss_scale: (N,) float32, what the provider's gradient is multiplied by: powers of two that
            keep it within float16, 1 in the other precisions.
        scaled: whether the provider computes in float16.
        overflow: (N,) int32, 1 where the provider's gradient was not finite.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        canvas: Canvas,
        backend: Backend,
        kind: PlanName = "auto",
        *,
        pictures: int = 1,
        weighted: bool | None = None,
        side: int | None = None,
    ) -> None:
        """Build sessions and arrays; arguments and errors as for ``Plan``.

        "auto" takes "split": a feature map is a pointer here, and our kernels fuse what a graph
        would write to memory in between.
        """
        assert backend.launcher is not None
        if objective.distance.exact and backend.provider == "tensorrt":
            raise ProviderError(
                f"style loss {objective.style_loss} needs float64, which provider tensorrt does "
                "not have; use --provider cuda"
            )
        self._launcher = launcher = backend.launcher
        self._encoder = encoder
        self.objective, self.canvas = objective, canvas
        self.weighted = not canvas.whole if weighted is None else weighted
        self.kind: str = "split" if kind == "auto" else kind
        if side is not None:
            self.kind = "tiled"
        self.scaled = backend.precision == "fp16"
        self.image = launcher.zeros((pictures, 3, canvas.height, canvas.width))
        self.gradient = launcher.zeros(self.image.shape)
        self.loss_scale = launcher.zeros((pictures,))
        self._first_scale = _first_scale(canvas.height * canvas.width) if self.scaled else 1.0
        stored = np.float16 if self.scaled else np.float32
        shown = launcher.zeros(pixels_shape(pictures, canvas.size, stored), stored)
        mean = np.asarray(encoder.mean, np.float32)
        self._canvas = CanvasKernel(launcher, canvas, self.image, shown, mean=mean)
        # That of a tiled Plan is a sum over windows.
        summed = stored if side is None else np.float32
        d_canvas = launcher.zeros(pixels_shape(pictures, canvas.size, summed), summed)
        ends = {IMAGE: shown, IMAGE_GRADIENT: d_canvas, LOSS_SCALE: self.loss_scale}
        self._evaluator: DeviceEvaluator = (
            Fused(encoder, objective, backend, ends, weighted=self.weighted)
            if self.kind == "fused"
            else Split(encoder, objective, backend, ends, weighted=self.weighted, side=side)
        )
        self._picture = PictureKernels(
            launcher,
            canvas,
            self.image,
            d_canvas=d_canvas,
            gradient=self.gradient,
            loss_scale=self.loss_scale,
            corner=CORNER,
            temporal=objective.temporal > 0,
        )
        self.overflow: DeviceArray = self._picture.overflow
        self.terms: tuple[DeviceArray, DeviceArray] = (self._evaluator.terms, self._picture.terms)

    def set_targets(self, targets: Targets, weights: Weights, anchor: Anchor | None = None) -> Goal:
        """Derive the goal, and copy it in; arguments as for ``Plan.set_targets``."""
        if anchor is not None:
            self._launcher.upload(anchor.pixels, self._picture.anchor)
            self._launcher.upload(anchor.weights, self._picture.anchor_weights)
        elif self.objective.temporal > 0:
            self._launcher.fill(self._picture.anchor_weights, 0.0)
        goal = make_goal(self.objective, self._encoder, targets, weights, self.image.shape[0])
        self._evaluator.set_goal(goal)
        self._picture.set_weights(goal.tv, self.objective.range, self.objective.temporal)
        first = np.full(self.loss_scale.shape, self._first_scale, np.float32)
        self._launcher.upload(first, self.loss_scale)
        return goal

    def set_image(self, image: Float32) -> None:
        """Copy pictures (N, 3, H, W) in."""
        self._launcher.upload(image, self.image)

    def evaluate_taps(self) -> None:
        """Enqueue the first part of an evaluation: terms at the taps, the provider's gradient."""
        self._canvas.run()
        self._evaluator.run()

    def evaluate_picture(self) -> None:
        """Enqueue the rest: the terms of the picture, and ``gradient``; our kernels alone."""
        self._picture.run()

    def gradient_at(self, image: Float32) -> Float32:
        """Gradient at pictures (N, 3, H, W), on the host."""
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
            scale = self._launcher.download(self.loss_scale)
            lower = overflow & (scale > LEAST_SCALE)
            if not self.scaled or not lower.any():
                return
            self._launcher.upload(np.where(lower, scale / 16, scale), self.loss_scale)


def _first_scale(pixels: int) -> float:
    """A power of two near the number of pixels.

    Terms are means, so a pixel's gradient is about the loss divided by their number.
    """
    return float(2.0 ** round(np.log2(pixels)))
