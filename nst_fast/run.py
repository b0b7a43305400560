"""Run: pictures in the making, from coarse to fine."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from nst_fast import images, reports
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import NonFiniteError, SettingsError, StateError
from nst_fast.given import Given
from nst_fast.host import Float64, cpu_model
from nst_fast.images import Picture
from nst_fast.losses import Objective
from nst_fast.masks import Masks
from nst_fast.result import Report, Result, named_terms
from nst_fast.scale import Scale
from nst_fast.schedule import Progress, check_sizes, scale_sizes, scale_steps, steps_left
from nst_fast.starts import initial
from nst_fast.state import Course, Saving, State, identity
from nst_fast.workspace import Workspace

logger = logging.getLogger(__name__)
MOVED_OVER = 8  # steps: L-BFGS refuses some, after which nothing has moved


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
        notes: what could not be done as asked, a line each.
    """

    def __init__(
        self,
        workspace: Workspace,
        contents: Sequence[Picture],
        styles: Sequence[Picture],
        settings: StyleSettings,
        *,
        start: Picture | None = None,
        masks: Masks | None = None,
        anchor: Picture | None = None,
        temporal_weight: float = 0.0,
        began: float | None = None,
        saving: Saving | None = None,
        state: State | None = None,
    ) -> None:
        """Prepare the coarsest scale, or that of a state; see ``Stylizer.start``.

        Args:
            workspace: where Plans come from and go back to.
            contents: as for ``Given``, like the pictures below.
            styles: of all of them.
            settings: of the run.
            start: what all of them start from.
            masks: which style goes where.
            anchor: what they stay close to.
            temporal_weight: of staying close; with 0 there is no such term.
            began: when its time began, as ``time.perf_counter`` counts; None: now.
            saving: where its state is saved, and how often; None: nowhere.
            state: of the same run, to go on from.
        """
        self.settings = settings
        self.reports: list[Report] = []
        self.notes: list[str] = []
        self._workspace = workspace
        self._objective = Objective.from_settings(settings, workspace.encoder, temporal_weight)
        self._began = began = time.perf_counter() if began is None else began
        self._given = given = Given(contents, styles, start, masks, anchor)
        self._saving = saving
        self._inputs = given.inputs(temporal_weight)
        first = given.contents[0].size
        if given.masks is not None:
            given.masks.check(first)
        longest = settings.size or max(first)
        check_sizes(given.contents, given.styles, longest, settings)
        self._size = images.fit(first, longest)
        sizes = scale_sizes(longest, min(settings.scales, settings.steps))
        steps = scale_steps(settings.steps, len(sizes))
        self._progress = Progress(given.contents[0], sizes, steps)
        self.memory = workspace.budget(
            settings,
            sizes,
            content=first,
            styles=[style.size for style in given.styles],
            others=[other.size for other in given.others.values()],
            anchored=given.anchor is not None,
            masks=given.masks,
        )
        if self.memory is not None:
            logger.log(logging.WARNING if self.memory.tight else logging.INFO, "%s", self.memory)
        self._seen = given.seen(settings.colour)
        self._over = False  # the time is
        self._evaluations: list[tuple[Objective, Float64]] = []  # (N, K) terms of each step
        self._untold: deque[Report] = deque()  # that nobody has had from the iterator yet
        self._spent = 0.0  # seconds, before a state was saved
        self._preparing = time.perf_counter() - began
        self._results: list[Result] | None = None
        self._scale: Scale | None = None
        if state is None:
            self._open_next(None)
        else:
            self._go_on(state)

    def __iter__(self) -> Iterator[Report]:
        """Optimise; yields a report after each step, each once.

        Raises:
            NonFiniteError: loss or gradient became infinite or NaN; names the step.
        """
        while self._untold or not self.finished:
            if self._untold:
                yield self._untold.popleft()
                continue
            if self._progress.left == 0:
                self._open_next(self._open_scale().pictures())
            scale, before = self._open_scale(), len(self.reports)
            most = self._stretch(0)
            # Where a state will be saved, no step may be under way.
            saved = self._saving is not None and self._saving.due(before, before + most)
            beyond = 0 if saved else self._stretch(most)
            began = time.perf_counter()
            try:
                evaluations = scale.advance(most, beyond)
            except NonFiniteError as error:
                raise NonFiniteError(f"step {before + 1}: {error}") from None
            self._take(scale, evaluations, time.perf_counter() - began)
            self._skip(scale)
            self._save_if_due(before)

    @property
    def finished(self) -> bool:
        """Whether every step was taken that the settings ask for."""
        return self._over or self.steps_left == 0

    @property
    def steps_left(self) -> int:
        """How many steps there are to take, whatever ``max_seconds`` says."""
        return self._progress.steps_left

    def stop(self) -> None:
        """Take no further step; the result then needs no memory beside what the steps took.

        Where the state is saved on the way, it is saved once more.
        """
        if not self.finished:
            self._over = True
            self._save_if_due(len(self.reports))

    def _stretch(self, ahead: int) -> int:
        """Steps, after ``ahead`` more at this size, until something is looked at or saved."""
        ends = [self._progress.left - ahead]
        if self.settings.until is not None:
            ends.append(MOVED_OVER - (self._progress.taken[-1] + ahead) % MOVED_OVER)
        if self._saving is not None:
            ends.append(self._saving.left(len(self.reports) + ahead))
        return min(ends)

    def _take(self, scale: Scale, evaluations: Sequence[Float64], seconds: float) -> None:
        """Report steps that took so long together."""
        for terms in evaluations:
            self.reports.append(self._report(scale, terms, seconds / len(evaluations)))
            self._untold.append(self.reports[-1])
            self._evaluations.append((scale.objective, terms))
        self._results = None

    def _skip(self, scale: Scale) -> None:
        """Leave out the steps that ``max_seconds`` and ``until`` do without."""
        budget, until = self.settings.max_seconds, self.settings.until
        if budget is not None and time.perf_counter() - self._began >= budget:
            self._over = True
        if until is None or not self._progress.left or self._progress.taken[-1] % MOVED_OVER:
            return
        if 255 * scale.movement() < until:
            self._progress.left = 0

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
        return self._open_scale().paintings()[0]

    def results(self) -> list[Result]:
        """That of each picture, in the order of the contents; errors as for ``result``."""
        if self._results is None:
            self._results = self._make_results()
        return self._results

    def picture(self) -> Picture:
        """The best picture so far, at full size, as it would be saved. Does not disturb.

        Raises:
            SettingsError: the run is closed.
        """
        return self._at_full_size(0, self._open_scale().look()[0])

    def save(self, path: str | PathLike[str]) -> None:
        """Save the state atomically, for ``Stylizer.start(…, resume=path)`` to go on from.

        On a GPU the steps that are under way are waited for, and are among the reports then.

        Raises:
            StateError: the file cannot be written.
            SettingsError: the run is closed, its last result was taken, or it has several pictures.
        """
        if len(self._given.contents) > 1:
            raise SettingsError("the state of several pictures together cannot be saved")
        scale = self._open_scale()
        began = time.perf_counter()
        if under_way := scale.settle():
            self._take(scale, under_way, time.perf_counter() - began)
            self._skip(scale)
        kinds, told = reports.pack(self.reports)
        course = Course(
            steps=self.settings.steps,
            taken=self._progress.taken,
            left=self._progress.left,
            kinds=kinds,
            notes=self.notes,
            seconds=self._seconds(),
            preparing=self._preparing,
            processor=cpu_model(),
        )
        here = self._identity() | scale.computed
        State(os.fspath(path), here, course, {**scale.state(), **told}).save()

    def _save_if_due(self, before: int) -> None:
        """Save the state where the steps after ``before`` came by one to save at, or are the last.

        A disk that is full must not end what it was to be saved from.
        """
        saving = self._saving
        if saving is not None and (self._over or saving.due(before, len(self.reports))):
            try:
                self.save(saving.path)
            except StateError as error:
                logger.warning("%s; the run goes on without", error)

    def _identity(self) -> dict[str, Any]:
        own = {"temporal_weight": self._objective.temporal}
        return identity(self.settings, self._workspace.environment, self._given.digests()) | own

    def _go_on(self, state: State) -> None:
        """Continue where a state was saved; there may be other steps to take than there were."""
        course = state.course
        state.check(self._identity())
        count = len(scale_sizes(max(self._size), min(self.settings.scales, course.steps)))
        before = scale_steps(course.steps, count)
        left = steps_left(course.taken, course.left, before, self._progress.steps)
        if left is None:
            raise StateError(
                f"{state.source}: with --steps {self.settings.steps} its sizes would have had "
                f"others; give {course.steps}"
            )
        if course.processor != cpu_model():
            logger.warning("%s is from another processor: the last bits may differ", state.source)
        *done, here = course.taken
        self._progress.taken, self.notes = done, list(course.notes)
        self.reports = list(reports.unpack(state, self.settings.steps))
        self._spent = course.seconds
        self._open_next(None, state)
        self._progress.taken[-1], self._progress.left = here, left
        self._preparing += course.preparing

    def _report(self, scale: Scale, terms: Float64, took: float) -> Report:
        self._progress.take()
        mean = terms.mean(axis=0)
        return Report(
            step=len(self.reports) + 1,
            steps=self.settings.steps,
            size=scale.size,
            progress=self._progress.share,
            loss=float(mean.sum()),
            terms=named_terms(scale.objective, mean),
            seconds=self._seconds(),
            took=took,
        )

    def _seconds(self) -> float:
        """Since the run began, without the time when it was nothing but a file."""
        return self._spent + time.perf_counter() - self._began

    def _open_next(self, pictures: Sequence[Picture] | None, state: State | None = None) -> None:
        """Move to the next scale, from ``pictures``, what the settings say, or a state there."""
        began = time.perf_counter()
        seen, settings = self._seen, self.settings
        kernels = self._workspace.backend.kernels
        place = len(self._progress.taken)
        size = images.fit(self._given.contents[0].size, self._progress.sizes[place])
        contents = [images.resize(content, *size) for content in seen.contents]
        scale = Scale(
            self._workspace,
            settings,
            self._objective,
            contents,
            seen.styles,
            starts=pictures
            or (contents if state else initial(settings, contents, seen.start, kernels)),
            share=None if self.memory is None else self.memory.shares[place],
            masks=seen.masks,
            anchor=seen.anchor,
            state=state,
        )
        if state is not None:
            state.check(scale.computed)
        else:
            self.notes += scale.notes
        # Only now: whatever goes wrong above, the scale before still has its picture.
        self.close()
        self._scale = scale
        self._progress.enter()
        self._preparing += time.perf_counter() - began

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
            results.append(
                Result(
                    picture=self._at_full_size(index, found),
                    size=scale.size,
                    loss=float(terms.sum()),
                    terms=named_terms(scale.objective, terms),
                    reports=reports.of_one(self.reports, self._evaluations, index),
                    timings=timings | {"total": self._seconds()},
                    settings=self.settings,
                    environment=self._environment(scale),
                    engine=self._engine(),
                    inputs=self._inputs[index],
                    notes=tuple(self.notes),
                )
            )
        return results

    def _environment(self, scale: Scale) -> dict[str, Any]:
        memory = None if self.memory is None else int(self.memory.needed)
        return {**self._workspace.environment, "plan": scale.kind, "memory": memory}

    def _engine(self) -> EngineOptions:
        """That of the workspace; with a limit where the last bits depend on how that was kept."""
        memory = self.memory
        limit = memory.limit if memory is not None and memory.tight else None
        return replace(self._workspace.engine, max_memory=limit)

    def _at_full_size(self, index: int, found: Picture) -> Picture:
        return self._given.finished(index, found, self._size, self.settings.colour)
