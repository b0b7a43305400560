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
from nst_fast.losses import (
    Anchor,
    Objective,
    PictureTerms,
    Targets,
    Weights,
    exact_terms,
    region_of,
    tap_of,
    variation,
)
from nst_fast.masks import Masks, Placed, cell_weights, in_regions
from nst_fast.memory import Share
from nst_fast.plan import AnyPlan
from nst_fast.state import Arrays, State
from nst_fast.styles import blend_shares, ordinal, style_scales
from nst_fast.workspace import Workspace

BEFORE = "before"  # of the arrays of a state
# What a Plan is asked for by: objective, canvas, how many pictures, whether cells have weights.
PlanOf = tuple[Objective, Canvas, int, bool]


class Scale:
    """Pictures being optimised at one size.

    Attributes:
        size: width and height, in pixels.
        kind: of the Plan, "fused", "split" or "tiled".
        objective: its terms, which depend on the size where there are masks.
        notes: what was left out at this size, a line each.
        computed: how, by names that the state of a run has: the kind, the sides of the windows, and
            the pairs that are remembered.
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
        masks: Masks | None = None,
        anchor: Picture | None = None,
        state: State | None = None,
    ) -> None:
        """Compute the targets and start from ``starts``, or from a transfer, or go on.

        Args:
            workspace: where Plans come from and go back to.
            settings: of the run.
            objective: of the run, of the whole picture.
            contents: N, from ``images.resize``: at the size to optimise, nothing hidden in them;
                more than one on a GPU only.
            styles: at any size; they are resized to the contents' longest side times
                ``settings.style_scale``.
            starts: one for each content, resized to its size; None for a transfer.
            share: of the memory; None: nothing is done to take less.
            masks: which style goes where; None: all of them everywhere.
            anchor: what takes the place of the starts as far as it is opaque, and what the pictures
                stay close to there; resized to their size.
            state: to go on from, whatever the start; of the same pictures at this size.

        Raises:
            SettingsError: every region is too small for every style layer.
            StateError: the state does not fit.
        """
        share = share or Share(None, None, settings.history)
        self._share = share
        self.size = contents[0].size
        self._alphas = [content.alpha for content in contents]
        self._workspace = workspace
        self._settings = settings
        width, height = self.size
        placed = None if masks is None else masks.at(width, height)
        self._apart = masks is not None and bool(masks.styles)  # each style in a region of its own
        self._canvas = canvas = self._around(height, width, objective)
        self.objective, self._weights, small = self._place(objective, canvas, placed, self._alphas)
        self.notes = [self._note(region, taps) for region, taps in small.items()]
        some = placed is not None or any(alpha is not None for alpha in self._alphas)
        plan_of = self.objective, canvas, len(contents), some or not canvas.whole
        tensor = _tensor(contents)
        kept = None if placed is None else placed.kept
        self._kept = None if kept is None else (kept, tensor)
        del placed  # large, and done with
        targets, image = self._prepare(
            plan_of, contents, tensor, styles, starts=starts, masks=masks
        )
        self._anchor: Anchor | None = None
        if anchor is not None:
            self._anchor = _anchor(images.resize(anchor, *self.size), len(contents))
            image += self._anchor.weights[:, None] * (self._anchor.pixels - image)
        plan, loop = self._begin(plan_of, targets, image, state)
        self.kind = plan.kind
        self._plan: AnyPlan | None = plan
        self._loop: Loop | None = loop
        self._before: Float32 | None = None  # at the last call of `movement`
        if state is not None and BEFORE in state.arrays:
            self._before = np.empty(image.shape, np.float32)
            state.into({BEFORE: self._before})
        self._ended: Float32 | None = None  # the images, once no step will follow

    def _prepare(
        self,
        plan_of: PlanOf,
        contents: Sequence[Picture],
        tensor: Float32,
        styles: Sequence[Picture],
        *,
        starts: Sequence[Picture] | None,
        masks: Masks | None,
    ) -> tuple[Targets, Float32]:
        """Targets, and the images to start from; the Plan is made ready beside them.

        ``tensor`` is that of the contents.
        """
        with ThreadPoolExecutor(1) as beside:
            whole = not self._share.side
            ahead = beside.submit(self._workspace.prepare_plan, *plan_of) if whole else None
            asked = self._style_targets(styles, self.objective, max(self.size))
            targets = replace(asked, content=self._content_targets(tensor))
            image = (
                self._transferred(contents, styles, masks, targets)
                if starts is None
                else _tensor([images.resize(start, *self.size) for start in starts])
            )
            if ahead is not None:
                ahead.result()
        return targets, image

    def _begin(
        self, plan_of: PlanOf, targets: Targets, image: Float32, state: State | None
    ) -> tuple[AnyPlan, Loop]:
        """The Plan, in windows where it does not fit otherwise, and the loop on it."""
        workspace, share = self._workspace, self._share

        def begin(side: int | None) -> tuple[AnyPlan, Loop]:
            plan = workspace.take_plan(*plan_of, side)
            self.computed = {"plan": plan.kind, "window": side}
            self.computed |= {"style_window": share.style_side, "pairs": share.pairs}
            self._goal = plan.set_targets(targets, self._weights, self._anchor)
            taken = replace(self._settings, history=share.pairs)
            loop = make_loop(plan, taken, workspace.backend, image)
            if state is not None:
                loop.restore(state)
            return plan, loop

        objective, canvas, count, _ = plan_of
        return workspace.attempt(objective, (count, *canvas.size), begin, share.side)

    def advance(self, most: int, beyond: int = 0) -> list[Float64]:
        """Take at least one step, at most ``most``; the terms (N, K) of each, before its move.

        On a GPU up to ``beyond`` more may be under way behind them; see ``Loop.advance``.

        Raises:
            NonFiniteError: loss or gradient is infinite or NaN at the first of these steps.
        """
        assert self._loop is not None
        return self._loop.advance(most, beyond)

    def settle(self) -> list[Float64]:
        """Wait for the steps that are under way, and tell of them as :meth:`advance` does."""
        return [] if self._loop is None else self._loop.settle()

    def pictures(self) -> list[Picture]:
        """End, and give the last accepted point of each picture, clamped.

        Without transparency: what was painted where nothing shows is for the next size to go on.
        """
        return _pictures(self._end())

    def paintings(self) -> list[Picture]:
        """The same. Does not disturb."""
        return _pictures(self._best())

    def look(self) -> list[Picture]:
        """The last accepted point of each picture, for somebody to see. Does not disturb."""
        return self._as_pictures(self._finished(self._best()))

    def movement(self) -> float:
        """How far the pictures have come since the last call: a root mean square of pixels.

        Infinite at the first call. Does not disturb.
        """
        image, before = self._best(), self._before
        self._before = image
        if before is None:
            return math.inf
        return float(np.sqrt(np.mean(np.square(image - before), dtype=np.float64)))

    def state(self) -> Arrays:
        """All that the next steps depend on; to be used before the next one, once settled.

        Raises:
            SettingsError: no step can follow.
        """
        if self._loop is None:
            raise SettingsError("the run is over; save its state before its result is taken")
        before = {} if self._before is None else {BEFORE: self._before}
        return {**self._loop.state(), **before}

    def evaluate(self, *, last: bool = False) -> list[tuple[Picture, Float64]]:
        """The same, each with its terms (K,) in float32.

        Does not disturb, unless no step will follow (``last``): the Plan is returned before the
        evaluation takes its memory. Where that fails, a further call tries again.
        """
        image = self._finished(self._end() if last else self._best())
        return list(zip(self._as_pictures(image), self._terms(image), strict=True))

    def _terms(self, image: Float32) -> Float64:
        """The weighted terms (N, K) of pictures (N, 3, H, W), in float32."""
        objective, count = self.objective, len(image)
        kernels = self._workspace.backend.kernels
        found = self._measure(image)
        terms = np.zeros((count, len(objective.names())))
        at_taps = len(objective.terms)
        terms[:, :at_taps] = exact_terms(objective, found, self._goal)
        picture = PictureTerms(objective, self._goal, image.shape, kernels, self._anchor)
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

    def _finished(self, image: Float32) -> Float32:
        """Pictures (N, 3, H, W) under the photograph, where it stays."""
        if self._kept is None:
            return image
        share, contents = self._kept
        found: Float32 = image + share * (contents - image)
        return found

    def _as_pictures(self, image: Float32) -> list[Picture]:
        return [
            replace(picture, alpha=alpha)
            for picture, alpha in zip(_pictures(image), self._alphas, strict=True)
        ]

    def close(self) -> None:
        """Return the Plan; no step can follow. Safe to call twice."""
        if self._loop is not None:
            self._loop.settle()  # nothing that is under way may lose its memory
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
        """Of the cells of each tap; transparent pixels count as far as they show."""
        return cell_weights(objective.taps, self._strides, canvas, alphas)

    @property
    def _strides(self) -> dict[str, int]:
        return {name: tap.stride for name, tap in self._workspace.encoder.taps.items()}

    def _place(
        self,
        objective: Objective,
        canvas: Canvas,
        placed: Placed | None,
        alphas: Sequence[Float32 | None],
    ) -> tuple[Objective, Weights, dict[int, list[str]]]:
        """What ``in_regions`` makes of an objective; without masks it stays as it is."""
        if placed is None:
            return objective, self._cell_weights(canvas, alphas, objective), {}
        found = in_regions(objective, self._strides, canvas, placed.shares, alphas)
        if objective.style and not found[0].style:
            raise SettingsError(
                "the masks leave too small a place for every style layer; "
                "give larger ones, or a larger size"
            )
        return found

    def _note(self, region: int, taps: Sequence[str]) -> str:
        width, height = self.size
        whose = f"the {ordinal(region)} style" if self._apart else "the style"
        return (
            f"at {width}×{height} pixels the place of {whose} is too small for "
            f"{', '.join(taps)}: left out there"
        )

    def _content_targets(self, tensor: Float32) -> dict[str, Float32]:
        if not self.objective.content:
            return {}
        found = self._measure(tensor)
        return {tap: features.copy() for tap, features in found.content.items()}

    def _measure(self, image: Float32) -> Targets:
        """What pictures of this size have at the taps; overwritten by the next call."""
        canvas = self._canvas.extend(image)
        return self._workspace.measure(canvas, self.objective, self._weights, self._share.side)

    def _style_targets(
        self, styles: Sequence[Picture], objective: Objective, longest: int
    ) -> Targets:
        """What styles ask for at the style sites: all of them together, or one in its region.

        ``longest`` is the longest side of the picture that asks.
        """
        count = len(styles)
        scales = style_scales(self._settings.style_scale, count)
        sizes = [max(1, round(longest * scale)) for scale in scales]
        asked = [self._asked(*of, objective.whole) for of in zip(styles, sizes, strict=True)]
        shares = blend_shares(self._settings.style_blend, count)
        strength = sum(s * one.variation for s, one in zip(shares, asked, strict=True))
        targets: dict[str, Float32] = {}
        for region in dict.fromkeys(map(region_of, objective.style)):
            sites = [site for site in objective.style if region_of(site) == region]
            if self._apart:
                shares = [float(place == region) for place in range(1, count + 1)]
            for one, share in zip(asked, shares, strict=True):
                if share == 0:
                    continue
                for site in sites:
                    part = np.float32(share) * one.style[tap_of(site)]
                    targets[site] = targets.get(site, np.float32(0.0)) + part
        return Targets(targets, {}, strength)

    def _asked(self, style: Picture, longest: int, objective: Objective) -> Targets:
        """What one style asks for; computed once for all pictures of the workspace."""
        side = self._share.style_side

        def compute() -> Targets:
            picture = images.resize(style, *images.fit(style.size, longest))
            width, height = picture.size
            canvas = self._around(height, width, objective)
            weights = self._cell_weights(canvas, [picture.alpha], objective)
            tensor = canvas.extend(_tensor([picture]))
            moments = {}
            if objective.style:
                found = self._workspace.measure(tensor, objective, weights, side)
                moments = {tap: array.copy() for tap, array in found.style.items()}
            return Targets(moments, {}, variation(picture.pixels, picture.alpha))

        taps = objective.taps, tuple(objective.style)
        key = style.digest, longest, self._settings.margin, taps, side
        return self._workspace.style_targets(key, compute)

    def _transferred(
        self,
        contents: Sequence[Picture],
        styles: Sequence[Picture],
        masks: Masks | None,
        targets: Targets,
    ) -> Float32:
        """Starts that have the style's moments already, as far as the decoders lead.

        They are made at the size that the memory holds, and enlarged.
        """
        objective, style = self.objective.whole, targets.style
        longest = self._share.start or max(self.size)
        smaller = longest < max(self.size)
        taps = {decoder.tap: 1.0 for decoder in self._workspace.encoder.decoders}
        if smaller or masks is not None or not taps.keys() <= style.keys():
            objective = replace(objective, style=taps, content={})
        small = contents
        if smaller:
            small = [images.resize(each, *images.fit(self.size, longest)) for each in contents]
        width, height = small[0].size
        placed = None if masks is None else masks.at(width, height)
        canvas = self._around(height, width, objective)
        alphas = [each.alpha for each in small]
        objective, weights, _ = self._place(objective, canvas, placed, alphas)
        if smaller or objective.style.keys() != style.keys():
            style = self._style_targets(styles, objective, longest).style
        make = self._workspace.transfer(canvas, len(contents))
        regions = None
        if placed is not None:
            regions = {
                site: canvas.shares(self._strides[tap_of(site)], placed.shares[region_of(site) - 1])
                for site in objective.style
            }
        starts = make(_tensor(small), style, weights, self._settings.transfer_share, regions)
        return _tensor([images.resize(each, *self.size) for each in _pictures(starts)])


def _pictures(tensor: Float32) -> list[Picture]:
    """Those of (N, 3, H, W)."""
    return [Picture(np.ascontiguousarray(pixels)) for pixels in tensor.transpose(0, 2, 3, 1)]


def _tensor(pictures: Sequence[Picture]) -> Float32:
    """Pictures of one size as (N, 3, H, W)."""
    return np.concatenate([images.to_tensor(picture.pixels) for picture in pictures])


def _anchor(picture: Picture, count: int) -> Anchor:
    """A picture as the anchor of ``count`` of its size."""
    height, width = picture.pixels.shape[:2]
    opacity = np.ones((height, width), np.float32) if picture.alpha is None else picture.alpha
    return Anchor(_tensor([picture] * count), np.stack([opacity] * count))
