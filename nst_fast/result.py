"""What a run tells: a Report of each step, and the Result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from PIL import Image

from nst_fast import images
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.host import Float64
from nst_fast.images import Picture
from nst_fast.losses import Objective
from nst_fast.output_options import OutputOptions
from nst_fast.recipe import Inputs, Recipe, sidecar


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
        engine: options that come to the same again: "auto" is what it came to, and ``max_memory``
            is the limit where something was done to keep it, or else None.
        inputs: the files that it was made of.
        notes: what could not be done as asked, a line each: places too small for a layer.
    """

    picture: Picture
    size: tuple[int, int]
    loss: float
    terms: Mapping[str, float]
    reports: Sequence[Report]
    timings: Mapping[str, float]
    settings: StyleSettings
    environment: Mapping[str, Any]
    engine: EngineOptions
    inputs: Inputs
    notes: Sequence[str] = ()

    def save(self, path: str | PathLike[str], options: OutputOptions | None = None) -> None:
        """Write the picture atomically, in the format of the path's ending, and its sidecar.

        Args:
            path: of a PNG, JPEG, WebP or TIFF file; an existing one is replaced.
            options: how; None for the defaults.

        Raises:
            ImageError: the path cannot be written, or its format cannot hold the picture.
            SettingsError: the format does not have what the options ask for.
        """
        options = options or OutputOptions()
        images.check_output(path)
        images.write(path, self.encode(path, options))
        if options.sidecar:
            images.write(sidecar(os.fspath(path)), self.sidecar(options))

    def encode(self, path: str | PathLike[str], options: OutputOptions | None = None) -> bytes:
        """The bytes of the file that :meth:`save` would write; errors as there."""
        options = options or OutputOptions()
        xmp = self.recipe(options).to_xmp() if options.metadata else b""
        return images.encode(self.picture, os.fspath(path), options, xmp=xmp)

    def sidecar(self, options: OutputOptions | None = None) -> bytes:
        """The bytes of the sidecar that :meth:`save` would write."""
        return f"{self.recipe(options or OutputOptions()).to_json()}\n".encode()

    def recipe(self, options: OutputOptions | None = None) -> Recipe:
        """What makes the picture again, and its file where that was written with the options."""
        return Recipe(
            inputs=self.inputs,
            settings=replace(self.settings, max_seconds=None),
            engine=self.engine,
            output=options or OutputOptions(),
            environment=self.environment,
            size=self.picture.size,
            steps=len(self.reports),
            loss=self.loss,
            terms=self.terms,
            losses=tuple(report.loss for report in self.reports),
        )

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
            "notes": list(self.notes),
        }


def named_terms(objective: Objective, terms: Float64) -> dict[str, float]:
    """Terms by name, with the sums of the style and of the content terms first."""
    values = dict(zip(objective.names(), map(float, terms), strict=True))
    groups = {"style": 0.0, "content": 0.0}
    for name, value in values.items():
        if "/" in name:
            groups[name.split("/")[0]] += value
    return groups | values
