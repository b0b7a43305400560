"""One size of a run: its targets and its loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from nst_fast import images
from nst_fast.canvas import Canvas
from nst_fast.config import StyleSettings
from nst_fast.errors import SettingsError
from nst_fast.host import Float32, Float64
from nst_fast.images import Picture
from nst_fast.loop import Loop, make_loop
from nst_fast.losses import Anchor, Objective, PictureTerms, Targets, Weights, exact_terms
from nst_fast.memory import Share
from nst_fast.plan import AnyPlan
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
        starts: Sequence[Picture] | None,
        share: Share | None = None,
        anchor: Picture | None = None,
    ) -> None:
        """Compute the targets and start from ``starts``, or from a transfer.

        Args:
            workspace: where Plans come from and go back to.
            settings: of the run.
            objective: of the run.
            contents: N, from ``images.resize``: at the size to optimise, nothing hidden in them;
                more than one on a GPU only.
            styles: at any size; they are resized to the contents' longest side times
                ``settings.style_scale``.
            starts: one for each content, resized to its size; None for a transfer.
            share: of the memory; None: nothing is done to take less.
            anchor: what all of them stay close to as far as it is opaque, resized to their size.
        """
        share = share or Share(None, None, settings.history)
        self._share = share
        self.size = contents[0].size
        self._alphas = [content.alpha for content in contents]
        self._workspace = workspace
        self._objective = objective
        self._settings = settings
        width, height = self.size
        self._canvas = canvas = self._around(height, width, objective)
        self._weights = self._cell_weights(canvas, self._alphas, objective)
        weighted = not canvas.whole or any(alpha is not None for alpha in self._alphas)
        plan_of = objective, canvas, len(contents), weighted
        tensor = _tensor(contents)
        with ThreadPoolExecutor(1) as beside:
            ahead = None if share.side else beside.submit(workspace.prepare_plan, *plan_of)
            targets = Targets(
                style=self._style_targets(styles, objective, max(self.size)),
                content=self._content_targets(tensor),
            )
            image = (
                self._transferred(contents, styles, targets)
                if starts is None
                else _tensor([images.resize(start, *self.size) for start in starts])
            )
            if ahead is not None:
                ahead.result()
        self._anchor = None if anchor is None else _anchor(images.resize(anchor, *self.size), image)

        def begin(side: int | None) -> tuple[AnyPlan, Loop]:
            plan = workspace.take_plan(*plan_of, side)
            self._goal = plan.set_targets(targets, self._weights, self._anchor)
            taken = replace(settings, history=share.pairs)
            return plan, make_loop(plan, taken, workspace.backend, image)

        shape = len(contents), *canvas.size
        plan, loop = workspace.attempt(objective, shape, begin, share.side)
        self.kind = plan.kind
        self._plan: AnyPlan | None = plan
        self._loop: Loop | None = loop
        self._before: Float32 | None = None  # at the last call of `movement`
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
        """End, and give the last accepted point of each picture, clamped.

        Without transparency: what was painted where nothing shows is for the next size to go on.
        """
        return _pictures(self._end())

    def movement(self) -> float:
        """How far the pictures have come since the last call: a root mean square of pixels.

        Infinite at the first call. Does not disturb.
        """
        image, before = self._best(), self._before
        self._before = image
        if before is None:
            return math.inf
        return float(np.sqrt(np.mean(np.square(image - before), dtype=np.float64)))

    def evaluate(self, *, last: bool = False) -> list[tuple[Picture, Float64]]:
        """The same, each with its terms (K,) in float32.

        Does not disturb, unless no step will follow (``last``): the Plan is returned before the
        evaluation takes its memory. Where that fails, a further call tries again.
        """
        image = self._end() if last else self._best()
        shown = [
            replace(picture, alpha=alpha)
            for picture, alpha in zip(_pictures(image), self._alphas, strict=True)
        ]
        return list(zip(shown, self._terms(image), strict=True))

    def _terms(self, image: Float32) -> Float64:
        """The weighted terms (N, K) of pictures (N, 3, H, W), in float32."""
        objective, count = self._objective, len(image)
        kernels = self._workspace.backend.kernels
        found = self._measure(image)
        terms = np.zeros((count, len(objective.names())))
        at_taps = len(objective.terms)
        terms[:, :at_taps] = exact_terms(objective, found, self._goal)
        picture = PictureTerms(objective, image.shape, kernels, self._anchor)
        picture.add(image, np.zeros_like(image), terms[:, at_taps:])
        return terms

    def _best(self) -> Float32:
        if self._ended is not None:
            return self._ended
        assert self._loop is not None
        image = self._loop.best()
        self._workspace.backend.kernels.clamp(image, 0.0, 1.0)
        return image

    def _end(self) -> Float32:
        """The best images, and no step after them: the Plan's memory is for what follows."""
        self._ended = self._best()
        self.close()
        return self._ended

    def close(self) -> None:
        """Return the Plan; no step can follow. Safe to call twice."""
        if self._plan is not None:
            self._workspace.give_plan(self._plan)
        self._plan = self._loop = None

    def _around(self, height: int, width: int, objective: Objective) -> Canvas:
        """The canvas of a picture of that size."""
        taps = self._workspace.encoder.taps
        stride = max(taps[tap].stride for tap in objective.taps)
        return Canvas.around(height, width, margin=self._settings.margin, stride=stride)

    def _cell_weights(
        self, canvas: Canvas, alphas: Sequence[Float32 | None], objective: Objective
    ) -> Weights:
        """Of the cells of each tap, (N, H/s, W/s); transparent pixels count as far as they show."""
        taps = self._workspace.encoder.taps
        return {
            tap: np.stack([canvas.weights(taps[tap].stride, alpha) for alpha in alphas])
            for tap in objective.taps
        }

    def _content_targets(self, tensor: Float32) -> dict[str, Float32]:
        if not self._objective.content:
            return {}
        found = self._measure(tensor)
        return {tap: features.copy() for tap, features in found.content.items()}

    def _measure(self, image: Float32) -> Targets:
        """What pictures of this size have at the taps; overwritten by the next call."""
        canvas = self._canvas.extend(image)
        return self._workspace.measure(canvas, self._objective, self._weights, self._share.side)

    def _style_targets(
        self, styles: Sequence[Picture], objective: Objective, size: int
    ) -> dict[str, Float32]:
        """Moments of all styles together, at the style taps of an objective, for a longest side."""
        if not objective.style:
            return {}
        longest = max(1, round(size * self._settings.style_scale))
        shares = blend_shares(self._settings.style_blend, len(styles))
        targets: dict[str, Float32] = {}
        for style, share in zip(styles, shares, strict=True):
            for tap, moments in self._moments(style, longest, objective).items():
                targets[tap] = targets.get(tap, np.float32(0.0)) + np.float32(share) * moments
        return targets

    def _moments(self, style: Picture, longest: int, objective: Objective) -> dict[str, Float32]:
        """Moments of one style; computed once for all pictures of the workspace."""

        def compute() -> dict[str, Float32]:
            picture = images.resize(style, *images.fit(style.size, longest))
            width, height = picture.size
            canvas = self._around(height, width, objective)
            weights = self._cell_weights(canvas, [picture.alpha], objective)
            tensor = canvas.extend(_tensor([picture]))
            side = self._share.style_side
            found = self._workspace.measure(tensor, objective, weights, side)
            return {tap: moments.copy() for tap, moments in found.style.items()}

        taps = objective.taps, tuple(objective.style)
        key = style.digest, longest, self._settings.margin, taps
        return self._workspace.style_moments(key, compute)

    def _transferred(
        self, contents: Sequence[Picture], styles: Sequence[Picture], targets: Targets
    ) -> Float32:
        """Starts that have the style's moments already, as far as the decoders lead.

        They are made at the size that the memory holds, and enlarged.
        """
        objective, style = self._objective, targets.style
        size = self._share.start or max(self.size)
        taps = {decoder.tap: 1.0 for decoder in self._workspace.encoder.decoders}
        if size < max(self.size) or not taps.keys() <= style.keys():
            objective = replace(objective, style=taps, content={})
            style = self._style_targets(styles, objective, size)
        small = contents
        if size < max(self.size):
            small = [images.resize(each, *images.fit(self.size, size)) for each in contents]
        width, height = small[0].size
        canvas = self._around(height, width, objective)
        weights = self._cell_weights(canvas, [each.alpha for each in small], objective)
        make = self._workspace.transfer(canvas, len(contents))
        starts = make(_tensor(small), style, weights, self._settings.transfer_share)
        return _tensor([images.resize(each, *self.size) for each in _pictures(starts)])


def _pictures(tensor: Float32) -> list[Picture]:
    """Those of (N, 3, H, W)."""
    return [Picture(np.ascontiguousarray(pixels)) for pixels in tensor.transpose(0, 2, 3, 1)]


def _tensor(pictures: Sequence[Picture]) -> Float32:
    """Pictures of one size as (N, 3, H, W)."""
    return np.concatenate([images.to_tensor(picture.pixels) for picture in pictures])


def _anchor(picture: Picture, images: Float32) -> Anchor:
    """A picture of the size of N images, (N, 3, H, W), as the anchor of all of them."""
    height, width = picture.pixels.shape[:2]
    opacity = np.ones((height, width), np.float32) if picture.alpha is None else picture.alpha
    return Anchor(
        np.repeat(_tensor([picture]), len(images), axis=0),
        np.repeat(opacity[None], len(images), axis=0),
    )


def blend_shares(blend: Sequence[float], count: int) -> list[float]:
    """Shares of ``count`` style pictures, summing to 1; equal where ``blend`` is empty.

    Raises:
        SettingsError: there are not as many shares as pictures.
    """
    weights = list(blend) or [1.0] * count
    if len(weights) != count:
        raise SettingsError(f"style_blend has {len(weights)} shares for {count} style pictures")
    return [weight / sum(weights) for weight in weights]
