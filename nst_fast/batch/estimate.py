"""How long a batch will take, from a few steps of one of its pictures on this machine."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from nst_fast import images
from nst_fast.batch import shapes, work
from nst_fast.batch.jobs import Engine, Job
from nst_fast.engine import Result
from nst_fast.errors import NstError
from nst_fast.schedule import scale_sizes, scale_steps

SAMPLE = 64  # pictures whose size is looked at
STEPS = 4  # of each scale that is timed


def seconds(jobs: Sequence[Job], engine: Engine, workers: int) -> float | None:
    """Seconds that the jobs will take; None where no picture of the first few can be used.

    Workers are taken to slow each other down no more than one is slowed by its own threads.
    """
    timed = next(filter(None, (_time(job, engine) for job in jobs[: STEPS * 2])), None)
    if timed is None:
        return None
    fixed, per_pixel = timed
    sample = jobs[:: max(1, len(jobs) // SAMPLE)]
    each = [fixed + per_pixel * pixels for pixels in map(_work, sample) if pixels]
    return statistics.mean(each) * len(jobs) / workers


def _work(job: Job) -> int:
    """Pixels times steps of a job; 0 where its size is not known."""
    size = shapes.probe(job)
    if size == shapes.UNKNOWN:
        return 0
    longest = max(size)
    sizes = scale_sizes(longest, min(job.settings.scales, job.settings.steps))
    steps = scale_steps(job.settings.steps, len(sizes))
    fitted = (images.fit(size, each) for each in sizes)
    return sum(w * h * n for (w, h), n in zip(fitted, steps, strict=True))


def _time(job: Job, engine: Engine) -> tuple[float, float] | None:
    """Seconds of a picture besides its steps, and of a step by pixel; the second run counts."""
    settings = job.settings
    short = replace(settings, steps=min(settings.steps, STEPS * settings.scales))
    if job.after:
        short = replace(short, init="content")
    stylizer = engine.stylizer()
    try:
        loaded = work.load(replace(job, settings=short), work.Styles())
        stylizer.stylize(loaded.content, loaded.styles, short)
        result = stylizer.stylize(loaded.content, loaded.styles, short)
    except NstError:
        return None
    return loaded.seconds + result.timings["prepare"], _per_pixel(result)


def _per_pixel(result: Result) -> float:
    took: dict[tuple[int, int], list[float]] = defaultdict(list)
    before = result.reports[0]
    for report in result.reports[1:]:
        if report.size == before.size:
            took[report.size].append(report.seconds - before.seconds)
        before = report
    measured = [statistics.median(times) / (w * h) for (w, h), times in took.items()]
    return measured[-1] if measured else result.timings["step"] / (result.size[0] * result.size[1])
