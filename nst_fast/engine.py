"""Stylizer: pictures in, a picture out. Sizes, targets, the optimisation loop, and its report.

>>> stylizer = Stylizer()                                             # doctest: +SKIP
>>> result = stylizer.stylize("photo.jpg", "painting.jpg")            # doctest: +SKIP
>>> result.save("stylised.png")                                       # doctest: +SKIP
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from typing import Any, get_args

import numpy as np
from PIL import Image

from nst_fast import encoders, images
from nst_fast.config import (
    DEFAULT_ENCODER,
    MAX_SIZE,
    PlanName,
    PrecisionName,
    ProviderName,
    StyleSettings,
    check_choice,
)
from nst_fast.device import Float32, Float64, usable_cores
from nst_fast.encoders import Encoder
from nst_fast.errors import NonFiniteError, SettingsError
from nst_fast.images import ImageLike, Picture
from nst_fast.kernels import cpu_kernels
from nst_fast.losses import Objective
from nst_fast.plan import Backend
from nst_fast.runtime import choose, versions
from nst_fast.scale import Scale, blend_shares
from nst_fast.schedule import scale_sizes, scale_steps
from nst_fast.workspace import Workspace

THINNEST = 8  # pixels: the shorter side of a picture once it is resized
Styles = ImageLike | Sequence[ImageLike]


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
        terms: its parts, named as in :class:`Report`.
        reports: every step.
        timings: seconds by part: "prepare" (decoding, targets, sessions), "optimise" (the
            steps), "step" (median of those of ``size``), "total".
        settings: those of the run.
        environment: encoder, provider, precision, plan, threads and versions.
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

    def to_pillow(self) -> Image.Image:
        """The picture as a Pillow image, RGB or, where the content has alpha, RGBA."""
        return images.to_pillow(self.picture)

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


class Stylizer:
    """Makes stylised pictures with one encoder on one provider; reusable, keeps its sessions.

    Not for concurrent use from several threads: give each its own.
    """

    def __init__(
        self,
        encoder: str | PathLike[str] = DEFAULT_ENCODER,
        *,
        provider: ProviderName = "auto",
        precision: PrecisionName = "auto",
        plan: PlanName = "auto",
        threads: int | None = None,
    ) -> None:
        """Choose where and how to compute; sessions are created when a shape is first seen.

        Args:
            encoder: name of a pack (``nst-fast models list``) or a pack's folder.
            provider: "cpu", "openvino", or "auto" for the faster one here.
            precision: "fp32", "bf16", or "auto": bf16 where CPU and provider have it, and the
                encoder pools by average.
            plan: "fused" or "split"; "auto" takes the faster one.
            threads: for provider and kernels; None takes every usable core.

        Raises:
            EncoderError: no such encoder, or a damaged pack.
            ProviderError: the provider or precision cannot be had here.
            SettingsError: ``threads`` is below 1, or an argument is none of its choices.
        """
        count = usable_cores() if threads is None else threads
        check_choice("provider", provider, get_args(ProviderName))
        check_choice("precision", precision, get_args(PrecisionName))
        check_choice("plan", plan, get_args(PlanName))
        kernels = cpu_kernels(count)
        pack = encoders.load(encoder)
        if pack.pooling == "max" and precision == "auto":
            # Its VJP finds the maxima by comparing for equality, which bfloat16 does not survive.
            precision = "fp32"
        name, kind = choose(provider, precision)
        self._workspace = Workspace(pack, Backend(name, kind, count, kernels), plan)

    @property
    def encoder(self) -> Encoder:
        """The encoder pack in use."""
        return self._workspace.encoder

    @property
    def backend(self) -> Backend:
        """Provider, precision and threads that "auto" was resolved to."""
        return self._workspace.backend

    def stylize(
        self, content: ImageLike, style: Styles, settings: StyleSettings | None = None
    ) -> Result:
        """Run to the end and return the result; arguments and errors as for :meth:`start`."""
        with self.start(content, style, settings) as run:
            for _ in run:
                pass
            return run.result()

    def start(
        self, content: ImageLike, style: Styles, settings: StyleSettings | None = None
    ) -> Run:
        """Prepare a run: decode, compute targets, build or reuse a Plan.

        Args:
            content: path, Pillow image, Picture, or array (H, W[, 3|4]), uint8 or float in [0, 1].
            style: one such picture or several, blended by ``settings.style_blend``.
            settings: None for the defaults.

        Raises:
            ImageError: a picture cannot be used.
            SettingsError: settings that do not fit the encoder or the pictures.
            ProviderError: the provider failed, or its gradient is wrong.
        """
        began = time.perf_counter()
        settings = settings or StyleSettings()
        sources = _style_list(style)
        blend_shares(settings.style_blend, len(sources))
        return Run(
            self._workspace,
            images.load(content, name=_label(content, "content")),
            [_load_style(source) for source in sources],
            settings,
            began,
        )


class Run:
    """One picture in the making: iterate to optimise, ask for the result at any time.

    Each iteration is one evaluation of the loss and one move of the optimiser. Leave the loop
    early, or let an exception through: :meth:`result` still gives the best picture so far. Use
    it as a context manager, or call :meth:`close`, to return its buffers to the Stylizer.
    """

    def __init__(
        self,
        workspace: Workspace,
        content: Picture,
        styles: Sequence[Picture],
        settings: StyleSettings,
        began: float,
    ) -> None:
        """Prepare the coarsest scale; see :meth:`Stylizer.start`."""
        self.settings = settings
        self.reports: list[Report] = []
        self._workspace = workspace
        self._objective = Objective.from_settings(settings, workspace.encoder)
        self._began = began
        self._content = content
        self._styles = styles
        self._start = None if settings.init_path is None else images.load(settings.init_path)
        longest = settings.size or max(content.size)
        _check_sizes(content, styles, longest, settings)
        self._size = images.fit(content.size, longest)
        sizes = scale_sizes(longest, min(settings.scales, settings.steps))
        steps = scale_steps(settings.steps, len(sizes))
        self._todo = deque(zip(sizes, steps, strict=True))
        squares = [images.fit(content.size, size) for size in sizes]
        # Pixels times steps: what is done, and what there is to do.
        self._work = [0, sum(w * h * n for (w, h), n in zip(squares, steps, strict=True))]
        self._preparing = time.perf_counter() - began
        self._result: Result | None = None
        self._scale: Scale | None = None
        self._open_next(None)

    def __iter__(self) -> Iterator[Report]:
        """Optimise; yields a report after each step.

        Raises:
            NonFiniteError: loss or gradient became infinite or NaN; names the step.
        """
        while len(self.reports) < self.settings.steps:
            step = len(self.reports) + 1
            if self._left == 0:
                self._open_next(self._open_scale().evaluate()[0])
            scale = self._open_scale()
            began = time.perf_counter()
            try:
                loss = scale.step()
            except NonFiniteError as error:
                raise NonFiniteError(f"step {step}: {error}") from None
            ended = time.perf_counter()
            self._left -= 1
            self._work[0] += scale.pixels
            report = Report(
                step=step,
                steps=self.settings.steps,
                size=scale.content.size,
                progress=self._work[0] / self._work[1],
                loss=loss,
                terms=_named(self._objective, scale.terms),
                seconds=ended - self._began,
                took=ended - began,
            )
            self.reports.append(report)
            self._result = None
            yield report

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
        if self._result is None:
            self._result = self._make_result()
        return self._result

    def _open_next(self, picture: Picture | None) -> None:
        """Move to the next scale, from ``picture`` or from what the settings say."""
        began = time.perf_counter()
        longest, steps = self._todo[0]
        size = self._size if len(self._todo) == 1 else images.fit(self._content.size, longest)
        content = images.resize(self._content, *size)
        start = picture or self._initial(content)
        scale = Scale(
            self._workspace, self.settings, self._objective, content, self._styles, start=start
        )
        # Only now: whatever goes wrong above, the scale before still has its picture.
        self.close()
        self._scale, self._left = scale, steps
        self._todo.popleft()
        self._preparing += time.perf_counter() - began

    def _initial(self, content: Picture) -> Picture:
        if self._start is not None:
            return self._start
        if self.settings.init == "content":
            return content
        rng = np.random.default_rng(self.settings.seed)
        noise = rng.standard_normal(content.pixels.shape, dtype=np.float32)
        return Picture(np.clip(np.float32(0.5) + np.float32(0.15) * noise, 0, 1))

    def _open_scale(self) -> Scale:
        if self._scale is None:
            raise SettingsError("the run is closed; start another one")
        return self._scale

    def _make_result(self) -> Result:
        scale = self._open_scale()
        picture, terms = scale.evaluate()
        pixels = images.resize(Picture(picture.pixels), *self._size).pixels
        alpha = images.resize(self._content, *self._size).alpha
        here = [report.took for report in self.reports if report.size == picture.size]
        return Result(
            picture=Picture(pixels, alpha),
            size=picture.size,
            loss=float(terms.sum()),
            terms=_named(self._objective, terms),
            reports=tuple(self.reports),
            timings={
                "prepare": self._preparing,
                "optimise": sum(report.took for report in self.reports),
                "step": float(np.median(here)) if here else 0.0,
                "total": time.perf_counter() - self._began,
            },
            settings=self.settings,
            environment=_environment(self._workspace, scale.kind),
        )


def _named(objective: Objective, terms: Float64) -> dict[str, float]:
    """Terms by name, with the sums of the style and of the content terms first."""
    values = dict(zip(objective.names(), map(float, terms), strict=True))
    groups = {"style": 0.0, "content": 0.0}
    for name, value in values.items():
        if "/" in name:
            groups[name.split("/")[0]] += value
    return groups | values


def _environment(workspace: Workspace, kind: str) -> dict[str, Any]:
    """What a result depends on besides its settings."""
    return {
        "encoder": workspace.encoder.name,
        "encoder_digest": workspace.encoder.digest,
        "provider": workspace.backend.provider,
        "precision": workspace.backend.precision,
        "plan": kind,
        "threads": workspace.backend.threads,
        "versions": {
            "nst-fast": version("nst-fast"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            **versions(),
        },
    }


def _label(source: ImageLike, role: str) -> str | None:
    """Name of a picture in messages: its path, or its role."""
    return None if isinstance(source, str | PathLike) else f"the {role} picture"


def _style_list(style: Styles) -> Sequence[ImageLike]:
    if isinstance(style, str | PathLike | Image.Image | np.ndarray | Picture):
        return [style]
    styles = list(style)
    if not styles:
        raise SettingsError("style: give at least one picture")
    return styles


def _check_sizes(
    content: Picture, styles: Sequence[Picture], longest: int, settings: StyleSettings
) -> None:
    """Refuse sizes beyond the limits before anything large is allocated."""
    if longest > MAX_SIZE:
        raise SettingsError(f"size: {longest} pixels are more than {MAX_SIZE}; give a smaller size")
    if longest * settings.style_scale > MAX_SIZE:
        raise SettingsError(f"style_scale: the style would be above {MAX_SIZE} pixels; lower it")
    for role, picture in (("content", content), *(("style", style) for style in styles)):
        if min(images.fit(picture.size, longest)) < THINNEST:
            width, height = picture.size
            raise SettingsError(
                f"size: at {longest} pixels the {role} picture ({width}×{height}) has a side below "
                f"{THINNEST}; give a larger size"
            )


def _load_style(style: ImageLike) -> Picture:
    """Decode a style picture; transparent pixels take the mean of the others.

    They have no weight in the Gram matrices, but resampling and convolutions mix neighbours.
    """
    picture = images.load(style, name=_label(style, "style"))
    if picture.alpha is None:
        return picture
    alpha = picture.alpha[..., None]
    if not alpha.any():
        raise SettingsError("the style picture is fully transparent: it has no style")
    visible: Float32 = picture.pixels * alpha
    mean = visible.sum(axis=(0, 1)) / alpha.sum()
    return Picture(visible + mean * (1 - alpha), picture.alpha)
