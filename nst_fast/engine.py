"""Stylizer: pictures in, a picture out. Sizes, targets, the optimisation loop, and its report.

>>> stylizer = Stylizer()                                             # doctest: +SKIP
>>> result = stylizer.stylize("photo.jpg", "painting.jpg")            # doctest: +SKIP
>>> result.save("stylised.png")                                       # doctest: +SKIP
"""

from __future__ import annotations

import platform
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike, fspath
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from nst_fast import encoders, images
from nst_fast.config import (
    DEFAULT_ENCODER,
    PlanName,
    PrecisionName,
    ProviderName,
    StyleSettings,
)
from nst_fast.device import Float32, Float64, usable_cores
from nst_fast.errors import NonFiniteError, SettingsError
from nst_fast.gradient_check import ensure_gradient
from nst_fast.images import ImageLike, Picture
from nst_fast.kernels import Kernels, cpu_kernels
from nst_fast.losses import Objective, Targets, style_target
from nst_fast.optimizers import Adam, Lbfgs, Optimizer
from nst_fast.plan import Backend, FeatureExtractor, Plan
from nst_fast.runtime import choose, versions

MAX_PLANS = 2  # a Plan of VGG-19 at 1024² holds a gigabyte
Styles = ImageLike | Sequence[ImageLike]
Size = tuple[int, int]  # height, width of a tensor, in pixels


@dataclass(frozen=True)
class Report:
    """One evaluation of the loss.

    Attributes:
        step: from 1 to ``steps``.
        steps: how many there will be.
        loss: the weighted sum of all terms, at the step's precision.
        terms: "style", "content", "tv", and each tap's share as "style/relu1_1".
        seconds: since the run began.
    """

    step: int
    steps: int
    loss: float
    terms: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Result:
    """A picture and how it came about.

    Attributes:
        picture: the stylised picture; alpha is the content's.
        loss: of that picture, clamped to [0, 1], evaluated in float32.
        terms: its parts, named as in :class:`Report`.
        reports: every step.
        timings: seconds by part: "setup", "optimise", "step" (median of one), "total".
        settings: those of the run.
        environment: encoder, provider, precision, plan, threads and versions.
    """

    picture: Picture
    loss: float
    terms: Mapping[str, float]
    reports: Sequence[Report]
    timings: Mapping[str, float]
    settings: StyleSettings
    environment: Mapping[str, Any]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the picture atomically, in the format of the path's ending; see ``images.save``."""
        images.save(self.picture, path)

    def summary(self) -> dict[str, Any]:
        """Everything but the pixels, JSON-able."""
        width, height = self.picture.size
        return {
            "size": [width, height],
            "steps": len(self.reports),
            "loss": self.loss,
            "terms": dict(self.terms),
            "losses": [report.loss for report in self.reports],
            "timings": dict(self.timings),
            "settings": self.settings.as_dict(),
            "environment": dict(self.environment),
        }


Value = TypeVar("Value")


class _Cache(Generic[Value]):
    """The values used last, at most ``limit``."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def take(self, key: Hashable) -> Value | None:
        """Remove and return a value, so that nobody else gets it meanwhile."""
        return self._values.pop(key, None)

    def put(self, key: Hashable, value: Value) -> None:
        self._values[key] = value
        while len(self._values) > self.limit:
            self._values.popitem(last=False)


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
            precision: "fp32", "bf16", or "auto": bf16 where CPU and provider have it.
            plan: "fused" or "split"; "auto" takes the faster one.
            threads: for provider and kernels; None takes every usable core.

        Raises:
            EncoderError: no such encoder, or a damaged pack.
            ProviderError: the provider or precision cannot be had here.
            SettingsError: ``threads`` is below 1.
        """
        self.encoder = encoders.load(encoder)
        count = usable_cores() if threads is None else threads
        kernels = cpu_kernels(count)
        name, kind = choose(provider, precision)
        self.backend = Backend(name, kind, count, kernels)
        self._plan_kind = plan
        self._plans: _Cache[Plan] = _Cache(MAX_PLANS)
        self._extractors: _Cache[FeatureExtractor] = _Cache(MAX_PLANS)

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
            content: path, Pillow image, or array (H, W[, 3|4]), uint8 or float in [0, 1].
            style: one such picture or several, blended by ``settings.style_blend``.
            settings: None for the defaults.

        Raises:
            ImageError: a picture cannot be used.
            SettingsError: settings that do not fit the encoder or the pictures.
            ProviderError: the provider failed, or its gradient is wrong.
        """
        return Run(self, content, style, settings or StyleSettings())

    def environment(self, plan: Plan) -> dict[str, Any]:
        """What a result depends on besides its settings."""
        return {
            "encoder": self.encoder.name,
            "encoder_digest": self.encoder.digest,
            "provider": self.backend.provider,
            "precision": self.backend.precision,
            "plan": plan.kind,
            "threads": self.backend.threads,
            "versions": {"nst-fast": version("nst-fast"), "python": platform.python_version()}
            | {"numpy": np.__version__}
            | versions(),
        }

    def take_plan(self, objective: Objective, size: Size) -> Plan:
        """A Plan for one image of this size; give it back with :meth:`give_plan`."""
        plan = self._plans.take((tuple(objective.names()), size))
        if plan is None or plan.objective != objective:
            kind = "fused" if self._plan_kind == "auto" else self._plan_kind
            ensure_gradient(self.encoder, objective, self.backend, kind)
            plan = Plan(self.encoder, objective, (1, *size), self.backend, kind)
        return plan

    def give_plan(self, plan: Plan) -> None:
        """Keep a Plan for the next picture of its shape."""
        self._plans.put((tuple(plan.objective.names()), plan.image.shape[2:]), plan)

    def features(self, tensor: Float32, taps: Sequence[str]) -> FeatureExtractor:
        """A float32 forward pass for a tensor's shape, kept for the next of that shape."""
        n, _, height, width = tensor.shape
        key = (tuple(taps), tensor.shape)
        extractor = self._extractors.take(key)
        if extractor is None:
            extractor = FeatureExtractor(
                self.encoder, taps, (n, height, width), self.backend.provider, self.backend.threads
            )
        self._extractors.put(key, extractor)
        return extractor


class Run:
    """One picture in the making: iterate to optimise, ask for the result at any time.

    Each iteration is one evaluation of the loss and one move of the optimiser. Leave the loop
    early, or let an exception through: :meth:`result` still gives the best picture so far. Use
    it as a context manager, or call :meth:`close`, to return its buffers to the Stylizer.
    """

    def __init__(
        self, stylizer: Stylizer, content: ImageLike, style: Styles, settings: StyleSettings
    ) -> None:
        """Prepare; see :meth:`Stylizer.start`."""
        began = time.perf_counter()
        self.settings = settings
        self.reports: list[Report] = []
        self._stylizer = stylizer
        objective = Objective.from_settings(settings, stylizer.encoder)
        self._stride = max(stylizer.encoder.taps[tap].stride for tap in objective.taps)
        self._content = _sized(images.load(content, name=_label(content, "content")), settings.size)
        self._names = objective.names()
        tensor = self._tensor(self._content)
        self._plan: Plan | None = stylizer.take_plan(objective, (tensor.shape[2], tensor.shape[3]))
        self._targets = self._make_targets(tensor, _style_list(style), objective)
        self._plan.set_targets(self._targets)
        np.copyto(self._plan.image, self._initial(tensor))
        self._optimizer = _optimizer(settings, self._plan.image, stylizer.backend.kernels)
        self._result: Result | None = None
        self._began = began
        self._ready = time.perf_counter()

    def __iter__(self) -> Iterator[Report]:
        """Optimise; yields a report after each step.

        Raises:
            NonFiniteError: loss or gradient became infinite or NaN; names the step.
        """
        for step in range(len(self.reports) + 1, self.settings.steps + 1):
            plan = self._open_plan()
            loss = float(plan.value_and_grad()[0])
            if not np.isfinite(loss):
                raise NonFiniteError(f"step {step}: the loss is {loss}; lower the weights")
            try:
                self._optimizer.step(loss, plan.gradient.reshape(-1))
            except NonFiniteError as error:
                raise NonFiniteError(f"step {step}: {error}") from None
            report = Report(
                step, self.settings.steps, loss, self._named(plan.terms[0]), self._elapsed()
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
        """Finish: keep the result, return the buffers to the Stylizer. Safe to call twice."""
        if self._plan is not None:
            self.result()
            self._stylizer.give_plan(self._plan)
            self._plan = None

    def result(self) -> Result:
        """The best picture so far, with its loss evaluated in float32."""
        if self._result is None:
            self._result = self._make_result()
        return self._result

    def _make_result(self) -> Result:
        plan = self._open_plan()
        stylizer = self._stylizer
        optimised = time.perf_counter()
        trial = plan.image.copy()
        self._optimizer.settle()
        np.clip(plan.image, 0.0, 1.0, out=plan.image)
        extract = stylizer.features(plan.image, plan.objective.taps)
        terms = plan.exact_terms(extract, self._targets)[0]
        height, width = self._content.pixels.shape[:2]
        pixels = images.from_tensor(plan.image)[:height, :width]
        np.copyto(plan.image, trial)
        moments = [self._ready - self._began, *(report.seconds for report in self.reports)]
        steps = np.diff(moments)
        return Result(
            picture=Picture(np.ascontiguousarray(pixels), self._content.alpha),
            loss=float(terms.sum()),
            terms=self._named(terms),
            reports=tuple(self.reports),
            timings={
                "setup": moments[0],
                "optimise": optimised - self._ready,
                "step": float(np.median(steps)) if len(steps) else 0.0,
                "total": self._elapsed(),
            },
            settings=self.settings,
            environment=stylizer.environment(plan),
        )

    def _open_plan(self) -> Plan:
        if self._plan is None:
            raise SettingsError("the run is closed; start another one")
        return self._plan

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began

    def _named(self, terms: Float64) -> dict[str, float]:
        values = dict(zip(self._names, map(float, terms), strict=True))
        groups = {"style": 0.0, "content": 0.0}
        for name, value in values.items():
            if name != "tv":
                groups[name.split("/")[0]] += value
        return groups | values

    def _tensor(self, picture: Picture) -> Float32:
        """(1, 3, H, W), padded so that every tap has whole cells."""
        return images.pad_to_multiple(images.to_tensor(picture.pixels), self._stride)

    def _initial(self, content: Float32) -> Float32:
        if self.settings.init == "content":
            return content
        if self.settings.init == "noise":
            rng = np.random.default_rng(self.settings.seed)
            noise = rng.standard_normal(content.shape, dtype=np.float32)
            grey: Float32 = np.clip(np.float32(0.5) + np.float32(0.15) * noise, 0, 1)
            return grey
        picture = images.load(self.settings.init)
        return self._tensor(images.resize(picture, *self._content.size))

    def _make_targets(
        self, content: Float32, styles: Sequence[ImageLike], objective: Objective
    ) -> Targets:
        stylizer = self._stylizer
        content_features = {}
        if objective.content:
            taps = stylizer.features(content, objective.taps)(content)
            content_features = {tap: taps[tap].copy() for tap in objective.content}
        if not objective.style:
            return Targets({}, content_features)
        longest = round(max(self._content.size) * self.settings.style_scale)
        pictures = []
        for index, style in enumerate(styles):
            picture = _sized(images.load(style, name=_label(style, f"style {index + 1}")), longest)
            tensor = self._tensor(picture)
            features = stylizer.features(tensor, objective.taps)(tensor)
            copies = {tap: features[tap].copy() for tap in objective.style}
            pictures.append((copies, self._opacity(picture)))
        shares = _shares(self.settings.style_blend, len(styles))
        grams = style_target(pictures, shares, list(objective.style), stylizer.backend.kernels)
        return Targets(grams, content_features)

    def _opacity(self, picture: Picture) -> Float32 | None:
        if picture.alpha is None:
            return None
        if not picture.alpha.any():
            raise SettingsError("the style picture is fully transparent: it has no style")
        padded: Float32 = images.pad_to_multiple(picture.alpha[None, None], self._stride)[0, 0]
        return padded


def _optimizer(settings: StyleSettings, image: Float32, kernels: Kernels) -> Optimizer:
    x = image.reshape(-1)
    if settings.optimizer == "adam":
        return Adam(x, kernels, learning_rate=settings.learning_rate)
    return Lbfgs(x, kernels, history=settings.history)


def _sized(picture: Picture, longest: int | None) -> Picture:
    if longest is None:
        return picture
    return images.resize(picture, *images.fit(picture.size, longest))


def _label(source: ImageLike, role: str) -> str | None:
    """Name of a picture in messages: its path, or its role."""
    return fspath(source) if isinstance(source, str | PathLike) else f"the {role} picture"


def _style_list(style: Styles) -> Sequence[ImageLike]:
    if isinstance(style, str | PathLike | Image.Image | np.ndarray):
        return [style]
    if not style:
        raise SettingsError("style: give at least one picture")
    return style


def _shares(blend: Sequence[float], count: int) -> list[float]:
    weights = list(blend) or [1.0] * count
    if len(weights) != count:
        raise SettingsError(f"style_blend has {len(weights)} shares for {count} style pictures")
    return [weight / sum(weights) for weight in weights]
