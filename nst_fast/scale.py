"""One size of a run: its targets, its Plan and its optimiser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nst_fast import images
from nst_fast.config import StyleSettings
from nst_fast.device import Float32, Float64
from nst_fast.errors import SettingsError
from nst_fast.images import Picture
from nst_fast.kernels import Kernels
from nst_fast.losses import Objective, Targets, style_target
from nst_fast.optimizers import Adam, Lbfgs, Optimizer
from nst_fast.workspace import Workspace


class Scale:
    """A picture being optimised at one size.

    Attributes:
        content: the content picture at this size.
        terms: (K,) weighted terms of the last evaluation.
    """

    def __init__(
        self,
        workspace: Workspace,
        settings: StyleSettings,
        objective: Objective,
        content: Picture,
        styles: Sequence[Picture],
        *,
        start: Picture,
    ) -> None:
        """Compute the targets and start from ``start``.

        Args:
            workspace: where Plans come from and go back to.
            settings: of the run.
            objective: of the run.
            content: at the size to optimise.
            styles: at any size; they are resized to the content's longest side times
                ``settings.style_scale``.
            start: resized to the content's size.
        """
        self.content = content
        self._workspace = workspace
        self._objective = objective
        self._stride = max(workspace.encoder.taps[tap].stride for tap in objective.taps)
        tensor = self._tensor(content)
        self._targets = Targets(
            style=self._style_targets(styles, settings), content=self._content_targets(tensor)
        )
        self._plan = workspace.take_plan(objective, *tensor.shape[2:])
        self._plan.set_targets(self._targets)
        self.terms: Float64 = self._plan.terms[0]
        np.copyto(self._plan.image, self._tensor(images.resize(start, *content.size)))
        self._optimizer = _optimizer(settings, self._plan.image, workspace.backend.kernels)

    @property
    def kind(self) -> str:
        """The Plan's kind, "fused" or "split"."""
        return self._plan.kind

    @property
    def pixels(self) -> int:
        """How many pixels the picture has at this size."""
        width, height = self.content.size
        return width * height

    def step(self) -> float:
        """Evaluate the loss and move the image; returns the loss before the move.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN.
        """
        loss = float(self._plan.value_and_grad()[0])
        self._optimizer.step(loss, self._plan.gradient.reshape(-1))
        return loss

    def evaluate(self) -> tuple[Picture, Float64]:
        """The best picture so far, clamped, and its terms (K,) in float32; does not disturb."""
        image = self._plan.image
        trial = image.copy()
        try:
            self._optimizer.settle()
            self._workspace.backend.kernels.clamp(image, 0.0, 1.0)
            features = self._workspace.features(image, self._objective.taps)
            terms: Float64 = self._plan.exact_terms(features, self._targets)[0]
            width, height = self.content.size
            pixels = np.ascontiguousarray(images.from_tensor(image)[:height, :width])
        finally:
            np.copyto(image, trial)
        return Picture(pixels, self.content.alpha), terms

    def close(self) -> None:
        """Return the Plan; the Scale cannot be used any more."""
        self._workspace.give_plan(self._plan)

    def _tensor(self, picture: Picture) -> Float32:
        """(1, 3, H, W), padded so that every tap has whole cells."""
        return images.pad_to_multiple(images.to_tensor(picture.pixels), self._stride)

    def _content_targets(self, tensor: Float32) -> dict[str, Float32]:
        if not self._objective.content:
            return {}
        features = self._workspace.features(tensor, self._objective.taps)
        return {tap: features[tap].copy() for tap in self._objective.content}

    def _style_targets(
        self, styles: Sequence[Picture], settings: StyleSettings
    ) -> dict[str, Float32]:
        if not self._objective.style:
            return {}
        longest = max(1, round(max(self.content.size) * settings.style_scale))
        shares = blend_shares(settings.style_blend, len(styles))
        targets: dict[str, Float32] = {}
        for style, share in zip(styles, shares, strict=True):
            for tap, gram in self._grams(style, longest).items():
                targets[tap] = targets.get(tap, np.float32(0.0)) + np.float32(share) * gram
        return targets

    def _grams(self, style: Picture, longest: int) -> dict[str, Float32]:
        """Gram matrices of one style; computed once for all pictures of the workspace."""

        def compute() -> dict[str, Float32]:
            picture = images.resize(style, *images.fit(style.size, longest))
            features = self._workspace.features(self._tensor(picture), self._objective.taps)
            kernels = self._workspace.backend.kernels
            return style_target(
                features, list(self._objective.style), kernels, self._opacity(picture)
            )

        key = (style.digest, longest, self._objective.taps, tuple(self._objective.style))
        return self._workspace.style_grams(key, compute)

    def _opacity(self, picture: Picture) -> Float32 | None:
        if picture.alpha is None:
            return None
        padded: Float32 = images.pad_to_multiple(picture.alpha[None, None], self._stride)[0, 0]
        return padded


def blend_shares(blend: Sequence[float], count: int) -> list[float]:
    """Shares of ``count`` style pictures, summing to 1; equal where ``blend`` is empty.

    Raises:
        SettingsError: there are not as many shares as pictures.
    """
    weights = list(blend) or [1.0] * count
    if len(weights) != count:
        raise SettingsError(f"style_blend has {len(weights)} shares for {count} style pictures")
    return [weight / sum(weights) for weight in weights]


def _optimizer(settings: StyleSettings, image: Float32, kernels: Kernels) -> Optimizer:
    x = image.reshape(-1)
    if settings.optimizer == "adam":
        return Adam(x, kernels, learning_rate=settings.learning_rate)
    return Lbfgs(x, kernels, history=settings.history)
