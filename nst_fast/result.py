"""What a run tells: a Report of each step, and the Result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from PIL import Image

from nst_fast import images
from nst_fast.config import StyleSettings
from nst_fast.host import Float64
from nst_fast.images import Picture
from nst_fast.losses import Objective


@dataclass(frozen=True)
class Report:
    """One evaluation of the loss.

    Attributes:
        step: from 1 to ``steps``.
        steps: how many there will be.
        size: width and height of the picture at this step, in pixels; losses of different sizes
            are not comparable.
        progress: share of the run's work that is done, in (0, 1].
        loss: the weighted sum of all terms, at the step's precision.
        terms: "style", "content", "tv", and each tap's share as "style/relu1_1".
        seconds: since the run began.
        took: seconds of this step.
    """

    step: int
    steps: int
    size: tuple[int, int]
    progress: float
    loss: float
    terms: Mapping[str, float]
    seconds: float
    took: float


@dataclass(frozen=True)
class Result:
    """A picture and how it came about.

    Attributes:
        picture: the stylised picture, at full size; alpha is the content's.
        size: width and height, in pixels, at which it was optimised and evaluated: the picture's
            own, unless the run was left at a coarser scale and the picture enlarged.
        loss: at that size, clamped to [0, 1], evaluated in float32.
        terms: its parts, named as in ``Report``.
        reports: every step.
        timings: seconds by part: "prepare" (decoding, targets, sessions), "optimise" (the
            steps), "step" (median of those of ``size``), "total".
        settings: those of the run.
        environment: encoder, device, provider, precision, plan, threads and versions; "memory" is
            what the process was to take at most, in bytes (None on a GPU).
    """

    picture: Picture
    size: tuple[int, int]
    loss: float
    terms: Mapping[str, float]
    reports: Sequence[Report]
    timings: Mapping[str, float]
    settings: StyleSettings
    environment: Mapping[str, Any]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the picture atomically, in the format of the path's ending; see ``images.save``."""
        images.save(self.picture, path)

    @property
    def image(self) -> Image.Image:
        """The picture as a Pillow image, RGB or, where the content has alpha, RGBA."""
        return images.to_pillow(self.picture)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return images.encode(self.picture, "result.png")

    def summary(self) -> dict[str, Any]:
        """Everything but the pixels, JSON-able."""
        width, height = self.picture.size
        return {
            "size": [width, height],
            "evaluated_size": list(self.size),
            "steps": len(self.reports),
            "loss": self.loss,
            "terms": dict(self.terms),
            "losses": [report.loss for report in self.reports],
            "timings": dict(self.timings),
            "settings": self.settings.as_dict(),
            "environment": dict(self.environment),
        }


def named_terms(objective: Objective, terms: Float64) -> dict[str, float]:
    """Terms by name, with the sums of the style and of the content terms first."""
    values = dict(zip(objective.names(), map(float, terms), strict=True))
    groups = {"style": 0.0, "content": 0.0}
    for name, value in values.items():
        if "/" in name:
            groups[name.split("/")[0]] += value
    return groups | values
