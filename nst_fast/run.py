"""Run: pictures in the making, from coarse to fine."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nst_fast import colour, images
from nst_fast.config import MAX_SIZE, StyleSettings
from nst_fast.errors import NonFiniteError, SettingsError
from nst_fast.host import Float64
from nst_fast.images import Picture
from nst_fast.losses import Objective
from nst_fast.result import Report, Result, named_terms
from nst_fast.scale import Scale
from nst_fast.schedule import scale_sizes, scale_steps
from nst_fast.workspace import Workspace

logger = logging.getLogger(__name__)
MOVED_OVER = 8  # steps: L-BFGS refuses some, after which nothing has moved
THINNEST = 8  # pixels: the shorter side of a picture once it is resized


class Run:
    """A picture in the making: iterate to optimise, ask for the result at any time.

    Each iteration is one evaluation of the loss and one move of the optimiser. Leave the loop
    early, or let an exception through: ``result`` still gives the best picture so far, which
    is the last point that the optimiser accepted (L-BFGS accepts what lowers the loss, Adam every
    point). Use it as a context manager, or call ``close``, to return its buffers to the
    Stylizer.

    On a GPU it can be several pictures of one size, each with its own content and optimiser, side
    by side in every step; reports then tell means over them.

    Attributes:
        settings: of the run.
        reports: every step so far.
        memory: what the run takes of it; None on a GPU.
    """

    def __init__(
        self,
        workspace: Workspace,
        contents: Sequence[Picture],
        styles: Sequence[Picture],
        settings: StyleSettings,
        *,
        start: Picture | None = None,
        anchor: Picture | None = None,
        temporal_weight: float = 0.0,
        began: float | None = None,
    ) -> None:
        """Prepare the coarsest scale; see ``Stylizer.start``.

        Args:
            workspace: where Plans come from and go back to.
            contents: pictures of one size; more than one on a GPU only, and not where the colours
                of the styles depend on the content.
            styles: of all of them.
            settings: of the run.
            start: what all of them start from, resized to their size; None for what
                ``settings.init`` says.
            anchor: what all of them stay close to as far as it is opaque, resized to their size.
            temporal_weight: of that; with 0 there is no temporal term, and no anchor.
            began: when its time began, as ``time.perf_counter`` counts; None: now.
        """
        self.settings = settings
        self.reports: list[Report] = []
        self._workspace = workspace
        self._objective = Objective.from_settings(settings, workspace.encoder, temporal_weight)
        self._began = began = time.perf_counter() if began is None else began
        self._contents = contents
        first = contents[0].size
        longest = settings.size or max(first)
        _check_sizes(contents, styles, longest, settings)
        self._size = images.fit(first, longest)
        sizes = scale_sizes(longest, min(settings.scales, settings.steps))
        steps = scale_steps(settings.steps, len(sizes))
        self._todo = deque(zip(sizes, steps, strict=True))
        self.memory = workspace.budget(
            settings,
            sizes,
            content=first,
            styles=[style.size for style in styles],
            others=[other.size for other in (start, anchor) if other is not None],
            anchored=anchor is not None,
        )
        if self.memory is not None:
            logger.log(logging.WARNING if self.memory.tight else logging.INFO, "%s", self.memory)
        self._seen = [colour.seen(content, settings.colour) for content in contents]
        self._styles = [colour.of_style(style, contents[0], settings.colour) for style in styles]
        self._start = None if start is None else colour.seen(start, settings.colour)
        self._anchor = None if anchor is None else colour.seen(anchor, settings.colour)
        squares = [images.fit(first, size) for size in sizes]
        # Pixels times steps: what is done, and what there is to do.
        self._work = [0, sum(w * h * n for (w, h), n in zip(squares, steps, strict=True))]
        self._evaluations: list[Float64] = []  # (N, K) terms of each step
        self._preparing = time.perf_counter() - began
        self._results: list[Result] | None = None
        self._scale: Scale | None = None
        self._open_next(None)

    def __iter__(self) -> Iterator[Report]:
        """Optimise; yields a report after each step.

        Raises:
            NonFiniteError: loss or gradient became infinite or NaN; names the step.
        """
        while not self.finished:
            if self._left == 0:
                self._open_next(self._open_scale().pictures())
            scale = self._open_scale()
            began = time.perf_counter()
            try:
                most = self._left if self.settings.until is None else self._to_check()
                evaluations = scale.advance(min(self._left, most))
            except NonFiniteError as error:
                raise NonFiniteError(f"step {len(self.reports) + 1}: {error}") from None
            took = (time.perf_counter() - began) / len(evaluations)
            first = len(self.reports) + 1
            reports = [
                self._report(scale, step, terms, took)
                for step, terms in enumerate(evaluations, first)
            ]
            self._left -= len(reports)
            self._evaluations += evaluations
            self.reports += reports
            self._results = None
            self._skip(scale)
            yield from reports

    @property
    def finished(self) -> bool:
        """Whether every step was taken that the settings ask for."""
        return self._left == 0 and not self._todo

    def stop(self) -> None:
        """Take no further step; the result then needs no memory beside what the steps took."""
        self._left = 0
        self._todo.clear()

    def _skip(self, scale: Scale) -> None:
        """Leave out the steps that ``max_seconds`` and ``until`` do without."""
        budget, until = self.settings.max_seconds, self.settings.until
        if budget is not None and time.perf_counter() - self._began >= budget:
            self.stop()
        if until is None or not self._left or self._to_check() != MOVED_OVER:
            return
        if 255 * scale.movement() < until:
            self._work[0] += self._left * scale.pixels
            self._left = 0

    def _to_check(self) -> int:
        """Steps until the movement is looked at again."""
        return MOVED_OVER - (self._steps_here - self._left) % MOVED_OVER

    def __enter__(self) -> Run:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Return the buffers."""
        self.close()

    def close(self) -> None:
        """Return the buffers to the Stylizer; a result taken before stays. Safe to call twice."""
        if self._scale is not None:
            self._scale.close()
            self._scale = None

    def result(self) -> Result:
        """The best picture so far, at full size, with its loss evaluated in float32.

        Raises:
            SettingsError: the run is closed and no result was taken before.
        """
        return self.results()[0]

    def painting(self) -> Picture:
        """The best picture so far as it is optimised: opaque, and before ``colour`` is put back.

        What the next frame of a film starts from. At the size of the scale at hand.

        Raises:
            SettingsError: the run is closed.
        """
        return self._open_scale().pictures()[0]

    def results(self) -> list[Result]:
        """That of each picture, in the order of the contents; errors as for ``result``."""
        if self._results is None:
            self._results = self._make_results()
        return self._results

    def _report(self, scale: Scale, step: int, terms: Float64, took: float) -> Report:
        self._work[0] += scale.pixels
        mean = terms.mean(axis=0)
        return Report(
            step=step,
            steps=self.settings.steps,
            size=scale.size,
            progress=self._work[0] / self._work[1],
            loss=float(mean.sum()),
            terms=named_terms(self._objective, mean),
            seconds=time.perf_counter() - self._began,
            took=took,
        )

    def _open_next(self, pictures: Sequence[Picture] | None) -> None:
        """Move to the next scale, from ``pictures`` or from what the settings say."""
        began = time.perf_counter()
        longest, steps = self._todo[0]
        size = images.fit(self._contents[0].size, longest)
        contents = [images.resize(content, *size) for content in self._seen]
        starts = pictures or self._initial(contents)
        scale = Scale(
            self._workspace,
            self.settings,
            self._objective,
            contents,
            self._styles,
            starts=starts,
            share=None if self.memory is None else self.memory.shares[-len(self._todo)],
            anchor=self._anchor,
        )
        # Only now: whatever goes wrong above, the scale before still has its picture.
        self.close()
        self._scale, self._left, self._steps_here = scale, steps, steps
        self._todo.popleft()
        self._preparing += time.perf_counter() - began

    def _initial(self, contents: Sequence[Picture]) -> list[Picture] | None:
        """Where each picture starts; None for a transfer."""
        if self._start is not None:
            return [self._start] * len(contents)
        if self.settings.init == "transfer":
            return None
        if self.settings.init == "content":
            return list(contents)
        rng = np.random.default_rng(self.settings.seed)
        noise = rng.standard_normal(contents[0].pixels.shape, dtype=np.float32)
        start = Picture(np.clip(np.float32(0.5) + np.float32(0.15) * noise, 0, 1))
        return [start] * len(contents)

    def _open_scale(self) -> Scale:
        if self._scale is None:
            raise SettingsError("the run is closed; start another one")
        return self._scale

    def _make_results(self) -> list[Result]:
        scale = self._open_scale()
        here = [report.took for report in self.reports if report.size == scale.size]
        timings = {
            "prepare": self._preparing,
            "optimise": sum(report.took for report in self.reports),
            "step": float(np.median(here)) if here else 0.0,
        }
        results = []
        for index, (found, terms) in enumerate(scale.evaluate(last=self.finished)):
            pixels = images.resize(Picture(found.pixels), *self._size).pixels
            # From the content: no scale before has made it coarser.
            content = images.resize(self._contents[index], *self._size)
            pixels = colour.finished(pixels, content.pixels, self.settings.colour)
            # Without what was painted where nothing shows: programs that scale it would see it.
            picture = images.resize(Picture(pixels, content.alpha), *self._size)
            results.append(
                Result(
                    picture=picture,
                    size=scale.size,
                    loss=float(terms.sum()),
                    terms=named_terms(self._objective, terms),
                    reports=self._reports_of(index),
                    timings=timings | {"total": time.perf_counter() - self._began},
                    settings=self.settings,
                    environment=self._environment(scale),
                )
            )
        return results

    def _environment(self, scale: Scale) -> dict[str, Any]:
        memory = None if self.memory is None else int(self.memory.needed)
        return {**self._workspace.environment, "plan": scale.kind, "memory": memory}

    def _reports_of(self, index: int) -> tuple[Report, ...]:
        """The reports with the losses of one picture."""
        if len(self._contents) == 1:
            return tuple(self.reports)
        own = [terms[index] for terms in self._evaluations]
        return tuple(
            replace(report, loss=float(terms.sum()), terms=named_terms(self._objective, terms))
            for report, terms in zip(self.reports, own, strict=True)
        )


def _check_sizes(
    contents: Sequence[Picture], styles: Sequence[Picture], longest: int, settings: StyleSettings
) -> None:
    """Refuse sizes beyond the limits before anything large is allocated."""
    if longest > MAX_SIZE:
        raise SettingsError(f"size: {longest} pixels are more than {MAX_SIZE}; give a smaller size")
    if longest * settings.style_scale > MAX_SIZE:
        raise SettingsError(f"style_scale: the style would be above {MAX_SIZE} pixels; lower it")
    style_size = max(1, round(longest * settings.style_scale))
    pictures = [("content", content, longest) for content in contents]
    pictures += [("style", style, style_size) for style in styles]
    for role, picture, size in pictures:
        if min(images.fit(picture.size, size)) < THINNEST:
            width, height = picture.size
            raise SettingsError(
                f"size: at {size} pixels the {role} picture ({width}×{height}) has a side below "
                f"{THINNEST}; give a larger size"
                + (" or style_scale" if role == "style" and settings.style_scale != 1 else "")
            )
