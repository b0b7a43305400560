"""Stylizer: pictures in, a picture out.

>>> stylizer = Stylizer()                                             # doctest: +SKIP
>>> result = stylizer.stylize("photo.jpg", "painting.jpg")            # doctest: +SKIP
>>> result.save("stylised.png")                                       # doctest: +SKIP
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from os import PathLike
from typing import get_args

import numpy as np
from PIL import Image

from nst_fast import encoders, images
from nst_fast.backend import Backend
from nst_fast.config import (
    DEFAULT_ENCODER,
    PlanName,
    PrecisionName,
    ProviderName,
    StyleSettings,
    check_choice,
    parse_device,
)
from nst_fast.encoders import Encoder
from nst_fast.errors import DeviceMemoryError, NonFiniteError, NstError, SettingsError
from nst_fast.gpu.cuda import Cuda
from nst_fast.host import Float32, usable_cores
from nst_fast.images import ImageLike, Picture
from nst_fast.kernels import cpu_kernels
from nst_fast.losses import Objective
from nst_fast.result import Report, Result
from nst_fast.run import Run
from nst_fast.runtime import GPU_PROVIDERS, choose
from nst_fast.scale import blend_shares
from nst_fast.workspace import Workspace

__all__ = ["Report", "Result", "Run", "Styles", "Stylizer"]

logger = logging.getLogger(__name__)
Styles = ImageLike | Sequence[ImageLike]


class Stylizer:
    """Makes stylised pictures with one encoder on one provider; reusable, keeps its sessions.

    Not for concurrent use from several threads: give each its own.
    """

    def __init__(
        self,
        encoder: str | PathLike[str] = DEFAULT_ENCODER,
        *,
        device: str = "auto",
        provider: ProviderName = "auto",
        precision: PrecisionName = "auto",
        plan: PlanName = "auto",
        threads: int | None = None,
    ) -> None:
        """Choose where and how to compute; sessions are created when a shape is first seen.

        Args:
            encoder: name of a pack (``nst-fast models list``) or a pack's folder.
            device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where one can be used.
            provider: "cpu", "openvino", "cuda", "tensorrt", or "auto" for the fastest one here.
            precision: "fp32", on a GPU "tf32" and "fp16", on a CPU "bf16", or "auto": fp16 on a
                GPU, bf16 where the CPU has it; fp32 where the encoder pools by maximum.
            plan: "fused" or "split"; "auto" takes the faster one.
            threads: for provider and kernels; None takes every usable core.

        Raises:
            EncoderError: no such encoder, or a damaged pack.
            ProviderError: the device, provider or precision cannot be had here.
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
        name, kind = choose(provider, precision, device)
        launcher = Cuda(parse_device(device)[1]) if name in GPU_PROVIDERS else None
        backend = Backend(name, kind, count, kernels, launcher)
        self._workspace = Workspace(pack, backend, plan)
        if provider == "auto" and launcher is not None:
            self._workspace.allow_cuda_instead()

    @property
    def encoder(self) -> Encoder:
        """The encoder pack in use."""
        return self._workspace.encoder

    @property
    def backend(self) -> Backend:
        """Device, provider, precision and threads that "auto" was resolved to."""
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
        styles = _load_styles(style, settings)
        picture = images.load(content, name=_label(content, "content"))
        return Run(self._workspace, [picture], styles, settings, began)

    def stylize_together(
        self,
        contents: Sequence[ImageLike],
        style: Styles,
        settings: StyleSettings | None = None,
        *,
        most: int = 8,
    ) -> list[Result | NstError]:
        """Stylise several pictures, on a GPU those of one size side by side in every step.

        Where the GPU's memory does not hold them together, half as many are tried, and so on. What
        goes wrong with a picture takes its place in the list; the others are made. On a CPU, where
        a batch is no faster, they are made one after another.

        Args:
            contents: as for :meth:`start`.
            style: of all of them.
            settings: of all of them; None for the defaults.
            most: pictures in a step, at least 1.

        Returns:
            For each content, in order, its result or its error.

        Raises:
            ImageError: a style cannot be used.
            SettingsError: settings that do not fit the encoder or the styles; ``most`` below 1.
        """
        settings = settings or StyleSettings()
        Objective.from_settings(settings, self.encoder)
        if most < 1:
            raise SettingsError(f"most must be a whole number of at least 1, not {most!r}")
        styles = _load_styles(style, settings)
        found: dict[int, Result | NstError] = {}
        by_size: dict[tuple[int, int], list[tuple[int, Picture]]] = {}
        for index, content in enumerate(contents):
            try:
                picture = images.load(content, name=_label(content, "content"))
            except NstError as error:
                found[index] = error
                continue
            size = images.fit(picture.size, settings.size or max(picture.size))
            by_size.setdefault(size, []).append((index, picture))
        count = 1 if self.backend.launcher is None else most
        for same in by_size.values():
            for first in range(0, len(same), count):
                group = same[first : first + count]
                made = self._make([picture for _, picture in group], styles, settings)
                found |= zip((index for index, _ in group), made, strict=True)
        return [found[index] for index in range(len(contents))]

    def _make(
        self, contents: Sequence[Picture], styles: Sequence[Picture], settings: StyleSettings
    ) -> list[Result | NstError]:
        """Run pictures of one size together, or where that fails, in halves."""
        try:
            with Run(self._workspace, contents, styles, settings, time.perf_counter()) as run:
                for _ in run:
                    pass
                return [*run.results()]
        except NstError as error:
            if len(contents) == 1 or not isinstance(error, DeviceMemoryError | NonFiniteError):
                return [error] * len(contents)
            half = len(contents) // 2
            logger.warning("%d pictures together: %s; going on with %d", len(contents), error, half)
        return [
            *self._make(contents[:half], styles, settings),
            *self._make(contents[half:], styles, settings),
        ]


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


def _load_styles(style: Styles, settings: StyleSettings) -> list[Picture]:
    sources = _style_list(style)
    blend_shares(settings.style_blend, len(sources))
    return [_load_style(source) for source in sources]


def _load_style(style: ImageLike) -> Picture:
    """Decode a style picture; transparent pixels take the mean of the others.

    They have no weight in the moments, but resampling and convolutions mix neighbours.
    """
    picture = images.load(style, name=_label(style, "style"))
    if picture.alpha is None:
        return picture
    alpha = picture.alpha[..., None]
    if not alpha.any():
        raise SettingsError("the style picture is fully transparent: it has no style")
    visible: Float32 = picture.pixels * alpha
    # In float64: along the rows numpy adds one by one, and float32 stops counting at 2^24.
    mean = visible.sum(axis=(0, 1), dtype=np.float64) / alpha.sum(dtype=np.float64)
    return Picture(visible + mean.astype(np.float32) * (1 - alpha), picture.alpha)
