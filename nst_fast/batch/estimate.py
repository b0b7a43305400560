"""How long a batch will take, from a few steps of one of its pictures on this machine."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from nst_fast import images
from nst_fast.batch import shapes, work
from nst_fast.batch.jobs import Job
from nst_fast.config import EngineOptions
from nst_fast.errors import NstError
from nst_fast.schedule import scale_sizes, scale_steps
from nst_fast.stylizer import Result, Stylizer

SAMPLE = 64  # pictures whose size is looked at
TRIES = 8  # pictures that are tried until one of them can be timed
STEPS = 4  # of each scale that is timed


class Timed(NamedTuple):
    """One picture: seconds besides its steps, seconds of a step by pixel, its width and height."""

    fixed: float
    per_pixel: float
    size: shapes.Shape


def seconds(jobs: Sequence[Job], engine: EngineOptions, workers: int) -> float | None:
    """Seconds that the jobs will take; None where no picture of the first few can be used.

    Workers are taken to slow each other down no more than one is slowed by its own threads.
    Pictures whose size their first bytes do not tell count as large as the one that is timed.
    """
    timed = next(filter(None, (_time(job, engine) for job in jobs[:TRIES])), None)
    if timed is None:
        return None
    each = []
    for job in jobs[:: max(1, len(jobs) // SAMPLE)]:
        size = shapes.probe(job)
        spent = _pixel_steps(job, timed.size if size == shapes.UNKNOWN else size)
        each.append(timed.fixed + timed.per_pixel * spent)
    return statistics.mean(each) * len(jobs) / workers


def _pixel_steps(job: Job, size: shapes.Shape) -> int:
    """Pixels times steps of a job whose picture has this width and height."""
    longest = max(size)
    sizes = scale_sizes(longest, min(job.settings.scales, job.settings.steps))
    steps = scale_steps(job.settings.steps, len(sizes))
    fitted = (images.fit(size, each) for each in sizes)
    return sum(w * h * n for (w, h), n in zip(fitted, steps, strict=True))


def _time(job: Job, engine: EngineOptions) -> Timed | None:
    """Time one picture, the second run of two; None where it cannot be used."""
    settings = job.settings
    short = replace(settings, steps=min(settings.steps, STEPS * (2**settings.scales - 1)))
    if job.after:
        short = replace(short, init="content")
    stylizer = Stylizer(engine)
    try:
        loaded = work.load(replace(job, settings=short), work.StyleCache())
        stylizer.stylize(loaded.content, loaded.styles, short, **loaded.masks)
        result = stylizer.stylize(loaded.content, loaded.styles, short, **loaded.masks)
    except NstError:
        return None
    return Timed(loaded.seconds + result.timings["prepare"], _per_pixel(result), result.size)


def _per_pixel(result: Result) -> float:
    took: dict[tuple[int, int], list[float]] = defaultdict(list)
    before = result.reports[0]
    for report in result.reports[1:]:
        if report.size == before.size:
            took[report.size].append(report.seconds - before.seconds)
        before = report
    measured = [statistics.median(times) / (w * h) for (w, h), times in took.items()]
    return measured[-1] if measured else result.timings["step"] / (result.size[0] * result.size[1])
