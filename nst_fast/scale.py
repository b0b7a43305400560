"""One size of a run: its targets and its loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nst_fast import images
from nst_fast.config import StyleSettings
from nst_fast.device import Float32, Float64
from nst_fast.device_plan import DevicePlan
from nst_fast.errors import SettingsError
from nst_fast.images import Picture
from nst_fast.loops import Loop, make_loop
from nst_fast.losses import Objective, Targets, exact_terms, style_target
from nst_fast.plan import Plan
from nst_fast.workspace import Workspace


class Scale:
    """Pictures being optimised at one size.

    Attributes:
        size: width and height, in pixels.
        kind: of the Plan, "fused", "split" or "tiled".
    """

    def __init__(
        self,
        workspace: Workspace,
        settings: StyleSettings,
        objective: Objective,
        contents: Sequence[Picture],
        styles: Sequence[Picture],
        *,
        starts: Sequence[Picture],
    ) -> None:
        """Compute the targets and start from ``starts``.

        Args:
            workspace: where Plans come from and go back to.
            settings: of the run.
            objective: of the run.
            contents: N, at the size to optimise; more than one on a GPU only.
            styles: at any size; they are resized to the contents' longest side times
                ``settings.style_scale``.
            starts: one for each content, resized to its size.
        """
        self.size = contents[0].size
        self._alphas = [content.alpha for content in contents]
        self._workspace = workspace
        self._objective = objective
        self._stride = max(workspace.encoder.taps[tap].stride for tap in objective.taps)
        tensor = self._tensors(contents)
        n, _, height, width = tensor.shape
        self._targets = Targets(
            style=self._style_targets(styles, settings, n), content=self._content_targets(tensor)
        )
        shape = (n, height, width)
        image = self._tensors([images.resize(start, *self.size) for start in starts])

        def begin(side: int | None) -> tuple[Plan | DevicePlan, Loop]:
            plan = workspace.take_plan(objective, shape, side)
            plan.set_targets(self._targets)
            return plan, make_loop(plan, settings, workspace.backend, image)

        plan, loop = workspace.fit(objective, shape, begin)
        self.kind = plan.kind
        self._plan: Plan | DevicePlan | None = plan
        self._loop: Loop | None = loop
        self._ended: Float32 | None = None  # the images, once no step will follow

    @property
    def pixels(self) -> int:
        """How many pixels a picture has at this size."""
        width, height = self.size
        return width * height

    def advance(self, most: int) -> list[Float64]:
        """Take at least one step, at most ``most``; the terms (N, K) of each, before its move.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN at the first of these steps.
        """
        assert self._loop is not None
        return self._loop.advance(most)

    def pictures(self) -> list[Picture]:
        """The last accepted point of each picture, clamped. Does not disturb."""
        return self._cropped(self._best())

    def evaluate(self, *, last: bool = False) -> list[tuple[Picture, Float64]]:
        """The same, each with its terms (K,) in float32.

        Does not disturb, unless no step will follow (``last``): the Plan is returned before the
        evaluation takes its memory. Where that fails, a further call tries again.
        """
        image = self._best()
        if last:
            self._ended = image
            self.close()
        kernels = self._workspace.backend.kernels
        found = self._workspace.measure(image, self._objective)
        terms = exact_terms(self._objective, image, found, self._targets, kernels)
        return list(zip(self._cropped(image), terms, strict=True))

    def _best(self) -> Float32:
        if self._ended is not None:
            return self._ended
        assert self._loop is not None
        image = self._loop.best()
        self._workspace.backend.kernels.clamp(image, 0.0, 1.0)
        return image

    def _cropped(self, image: Float32) -> list[Picture]:
        width, height = self.size
        return [
            Picture(np.ascontiguousarray(pixels[:height, :width]), alpha)
            for pixels, alpha in zip(image.transpose(0, 2, 3, 1), self._alphas, strict=True)
        ]

    def close(self) -> None:
        """Return the Plan; no step can follow. Safe to call twice."""
        if self._plan is not None:
            self._workspace.give_plan(self._plan)
        self._plan = self._loop = None

    def _tensors(self, pictures: Sequence[Picture]) -> Float32:
        """(N, 3, H, W), padded so that every tap has whole cells."""
        stacked = np.concatenate([images.to_tensor(picture.pixels) for picture in pictures])
        return images.pad_to_multiple(stacked, self._stride)

    def _content_targets(self, tensor: Float32) -> dict[str, Float32]:
        if not self._objective.content:
            return {}
        found = self._workspace.measure(tensor, self._objective)
        return {tap: features.copy() for tap, features in found.content.items()}

    def _style_targets(
        self, styles: Sequence[Picture], settings: StyleSettings, count: int
    ) -> dict[str, Float32]:
        if not self._objective.style:
            return {}
        longest = max(1, round(max(self.size) * settings.style_scale))
        shares = blend_shares(settings.style_blend, len(styles))
        targets: dict[str, Float32] = {}
        for style, share in zip(styles, shares, strict=True):
            for tap, gram in self._grams(style, longest).items():
                targets[tap] = targets.get(tap, np.float32(0.0)) + np.float32(share) * gram
        return {tap: np.repeat(gram, count, axis=0) for tap, gram in targets.items()}

    def _grams(self, style: Picture, longest: int) -> dict[str, Float32]:
        """Gram matrices of one style; computed once for all pictures of the workspace."""

        def compute() -> dict[str, Float32]:
            picture = images.resize(style, *images.fit(style.size, longest))
            tensor, opacity = self._tensors([picture]), self._opacity(picture)
            if opacity is None:
                found = self._workspace.measure(tensor, self._objective)
                return {tap: gram.copy() for tap, gram in found.style.items()}
            taps = list(self._objective.style)
            kernels = self._workspace.backend.kernels
            return style_target(self._workspace.features(tensor, taps), taps, kernels, opacity)

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
