"""Plan: all that depends on encoder, canvas, objective, provider and precision; built once.

A Plan owns the picture being optimised and its gradient, and evaluates the loss and the gradient of
N pictures at once. It knows moments and the way back from them, and no loss (``nst_fast.losses``).
Two kinds give the same numbers: "fused" runs forward, loss head and backward as one graph; "split"
runs forward, our kernels, and backward, for pictures that are too large for the memory in windows.
Which one is the default for a provider is what was measured (docs/architecture.md).
"""

from __future__ import annotations

import numpy as np

from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.config import PlanName
from nst_fast.encoders import Encoder
from nst_fast.errors import NstError, SettingsError
from nst_fast.evaluators import Evaluator, Fused, Split
from nst_fast.gpu.plan import DevicePlan
from nst_fast.host import Float32, Float64, aligned_zeros
from nst_fast.library import Provider
from nst_fast.losses import Anchor, Goal, Objective, PictureTerms, Targets, Weights, make_goal
from nst_fast.tiles import cut, halo
from nst_fast.windows import Windows


class Plan:
    """Loss and gradient of N pictures of one size, in buffers allocated once.

    Attributes:
        kind: "fused", "split" or "tiled".
        image: (N, 3, H, W) float32, nominally in [0, 1]; write it, then call
            :meth:`value_and_grad`.
        gradient: (N, 3, H, W) float32, overwritten by :meth:`value_and_grad`.
        terms: (N, K) float64, the weighted terms of the last evaluation, in the order of
            ``objective.names()``.
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
        """Build sessions and buffers.

        Args:
            encoder: the pack to run.
            objective: terms and weights.
            canvas: where the pictures lie in what the encoder sees.
            backend: where to compute.
            kind: "auto" takes the faster one, which is "fused" on every CPU provider where it can
                evaluate the style loss.
            pictures: N.
            weighted: whether cells have weights; None: where the pictures do not fill the canvas.
            side: of the windows that the encoder sees, in pixels, whatever the kind; None: whole
                canvases.

        Raises:
            ProviderError: a session could not be created.
            SettingsError: one graph cannot evaluate the style loss on this provider.
        """
        self.objective, self.canvas = objective, canvas
        self.weighted = not canvas.whole if weighted is None else weighted
        self.kind = _kind(kind, objective, backend.provider) if side is None else "tiled"
        self.image = aligned_zeros((pictures, 3, canvas.height, canvas.width))
        self.gradient = aligned_zeros(self.image.shape)
        self.terms = np.zeros((pictures, len(objective.names())))
        self._encoder, self._kernels = encoder, backend.kernels
        tiling = cut(*canvas.size, side or max(canvas.size), halo(encoder, objective.taps))
        windows = Windows(self.image, self.gradient, canvas, tiling, backend.kernels)
        self._evaluator = self._make_evaluator(backend, windows)
        self._picture_terms: PictureTerms | None = None

    def _make_evaluator(self, backend: Backend, windows: Windows) -> Evaluator:
        if self.kind == "fused":
            return Fused(self._encoder, self.objective, backend, windows, self.weighted)
        return Split(self._encoder, self.objective, backend, windows)

    def set_targets(self, targets: Targets, weights: Weights, anchor: Anchor | None = None) -> Goal:
        """Derive the goal from targets and the weights of the taps' cells.

        In windows both are read at every evaluation: leave the arrays as they are. The anchor is
        that of the temporal term, if there is one; None: that term is 0.
        """
        shape, kernels = self.image.shape, self._kernels
        goal = make_goal(self.objective, self._encoder, targets, weights, len(self.image))
        self._picture_terms = PictureTerms(self.objective, goal, shape, kernels, anchor)
        self._evaluator.set_goal(goal)
        return goal

    def gradient_at(self, image: Float32) -> Float32:
        """Gradient at pictures (N, 3, H, W), overwritten by the next evaluation."""
        np.copyto(self.image, image)
        self.value_and_grad()
        return self.gradient

    def value_and_grad(self) -> Float64:
        """Evaluate at ``image``: fill ``gradient`` and ``terms``, return the loss (N,).

        Raises:
            NstError: it has no targets yet.
        """
        if self._picture_terms is None:
            raise NstError("a Plan has nothing to compare with: call set_targets first")
        at_taps = len(self.objective.terms)
        self._evaluator.run(self.terms[:, :at_taps])
        self._picture_terms.add(self.image, self.gradient, self.terms[:, at_taps:])
        total: Float64 = self.terms.sum(axis=1)
        return total


def _kind(asked: PlanName, objective: Objective, provider: Provider) -> str:
    """The kind of a Plan for whole canvases on the CPU."""
    able = provider == "cpu" or not objective.distance.exact
    if asked == "fused" and not able:
        raise SettingsError(
            f"plan fused: style loss {objective.style_loss} needs float64, which provider "
            f"{provider} does not have; use --plan split, or --provider cpu"
        )
    if asked == "auto":
        return "fused" if able else "split"
    return asked


AnyPlan = Plan | DevicePlan


def make_plan(
    encoder: Encoder,
    objective: Objective,
    canvas: Canvas,
    backend: Backend,
    kind: PlanName = "auto",
    *,
    pictures: int = 1,
    weighted: bool | None = None,
    side: int | None = None,
) -> AnyPlan:
    """Build the Plan of a backend's device; arguments and errors as for ``Plan``."""
    make = Plan if backend.launcher is None else DevicePlan
    return make(
        encoder,
        objective,
        canvas,
        backend,
        kind,
        pictures=pictures,
        weighted=weighted,
        side=side,
    )
