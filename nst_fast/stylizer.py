"""Stylizer: pictures in, a picture out.

>>> stylizer = Stylizer()                                             # doctest: +SKIP
>>> result = stylizer.stylize("photo.jpg", "painting.jpg")            # doctest: +SKIP
>>> result.save("stylised.png")                                       # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nst_fast import images, masks
from nst_fast.colour import BY_CONTENT
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.encoders import Encoder
from nst_fast.errors import (
    DeviceMemoryError,
    ImageError,
    NonFiniteError,
    NstError,
    RecipeError,
    SettingsError,
)
from nst_fast.images import ImageLike, Picture
from nst_fast.losses import Objective
from nst_fast.masks import Masks
from nst_fast.recipe import Read, Recipe
from nst_fast.result import Report, Result
from nst_fast.run import Run
from nst_fast.state import Saving, State
from nst_fast.styles import blend_shares, ordinal, style_scales
from nst_fast.workspace import SHAPES, Workspace

__all__ = ["Report", "Result", "Run", "Styles", "Stylizer"]

SAVE_EVERY = 25  # steps
logger = logging.getLogger(__name__)
Styles = ImageLike | Sequence[ImageLike]
_SINGLE = (str, bytes, PathLike, Image.Image, np.ndarray, Picture)  # one, though some are iterable


class Stylizer:
    """Makes stylised pictures with one encoder on one provider; reusable, keeps its sessions.

    Not for concurrent use from several threads: give each its own.

    Attributes:
        options: as given.
    """

    def __init__(self, options: EngineOptions | None = None, *, shapes: int = SHAPES) -> None:
        """Choose where and how to compute; sessions are created when a shape is first seen.

        Args:
            options: None for the defaults.
            shapes: for how many shapes of pictures sessions are kept, of up to half a million
                pixels each; more take more memory, and save about a second where shapes alternate.

        Raises:
            EncoderError: no such encoder, or a damaged pack.
            ProviderError: the device, provider or precision cannot be had here.
        """
        self.options = options or EngineOptions()
        self._workspace = Workspace.open(self.options, shapes)

    @property
    def encoder(self) -> Encoder:
        """The encoder pack in use."""
        return self._workspace.encoder

    @property
    def environment(self) -> Mapping[str, Any]:
        """What "auto" was resolved to: encoder, device, provider, precision, threads, versions."""
        return self._workspace.environment

    def stylize(
        self,
        content: ImageLike,
        style: Styles,
        settings: StyleSettings | None = None,
        *,
        init: ImageLike | None = None,
        style_mask: Styles | None = None,
        style_regions: ImageLike | None = None,
        content_mask: ImageLike | None = None,
        save: str | PathLike[str] | None = None,
        save_every: int = SAVE_EVERY,
        resume: str | PathLike[str] | None = None,
    ) -> Result:
        """Run to the end and return the result; arguments and errors as for ``start``."""
        with self.start(
            content,
            style,
            settings,
            init=init,
            style_mask=style_mask,
            style_regions=style_regions,
            content_mask=content_mask,
            save=save,
            save_every=save_every,
            resume=resume,
        ) as run:
            for _ in run:
                pass
            return run.result()

    def start(
        self,
        content: ImageLike,
        style: Styles,
        settings: StyleSettings | None = None,
        *,
        init: ImageLike | None = None,
        style_mask: Styles | None = None,
        style_regions: ImageLike | None = None,
        content_mask: ImageLike | None = None,
        anchor: ImageLike | None = None,
        temporal_weight: float = 0.0,
        save: str | PathLike[str] | None = None,
        save_every: int = SAVE_EVERY,
        resume: str | PathLike[str] | None = None,
    ) -> Run:
        """Prepare a run: decode, compute targets, build or reuse a Plan.

        Args:
            content: path, Pillow image, Picture, or array (H, W[, 3|4]), uint8 or float in [0, 1].
            style: one such picture or several, blended by ``settings.style_blend``; its own
                transparency says which part of a picture is the style.
            settings: None for the defaults.
            init: a picture to start from, resized to the content's size; None for what
                ``settings.init`` says.
            style_mask: a grey picture for each style, white where it goes, of the content's
                proportions; None for those that the settings name, as for the next two.
            style_regions: a picture with a colour for each style, the darkest for the first one.
            content_mask: a grey picture, white where the photograph stays.
            anchor: a picture, resized to the content's size, that the result starts from at every
                size, and stays close to, as far as it is opaque: of a film, the frame before where
                it moved to. None: no such picture.
            temporal_weight: the weight of the mean squared distance from ``anchor``, 0 or more.
            save: a file for the state of the run, replaced as it goes on; it stays when the run
                ends. What cannot be written is logged as a warning, and ends nothing.
            save_every: after how many steps it is saved; on a GPU, after the next ten.
            resume: a file that a run with the same pictures, settings and options has saved, to
                take the same steps from there on as that run would have. ``steps`` may be others
                where the steps so far are the same, and ``max_seconds`` count anew.

        Raises:
            ImageError: a picture cannot be used.
            SettingsError: settings that do not fit the encoder or the pictures.
            StateError: the state is damaged, or of another run; the message names what differs.
            ProviderError: the provider failed, or its gradient is wrong.
        """
        began = time.perf_counter()
        settings = settings or StyleSettings()
        saving = None if save is None else Saving(os.fspath(save), save_every)
        state = None if resume is None else State.load(os.fspath(resume))
        styles = _load_styles(style, settings)
        picture = images.load(content, name=_label(content, "content"))
        return Run(
            self._workspace,
            [picture],
            styles,
            settings,
            start=_load_start(settings, init),
            masks=_load_masks(settings, len(styles), style_mask, style_regions, content_mask),
            anchor=None if anchor is None else images.load(anchor, name=_label(anchor, "anchor")),
            temporal_weight=temporal_weight,
            began=began,
            saving=saving,
            state=state,
        )

    def restart(
        self,
        recipe: Recipe,
        *,
        folder: str | PathLike[str] = "",
        anyway: bool = False,
        read: Read = images.load,
    ) -> Run:
        """Prepare the run that a recipe tells of; leave it after ``recipe.steps``.

        Args:
            recipe: of a picture; the engine is this Stylizer's own.
            folder: where relative paths of inputs lead that lead nowhere from the current folder.
            anyway: whether inputs and encoder may have changed.
            read: what reads the path or URL of an input.

        Raises:
            RecipeError: an input or the encoder has changed, or was not read from a file.
            NstError: what ``start`` raises.
        """
        made_by = recipe.environment.get("encoder_digest")
        if made_by != self.encoder.digest and not anyway:
            raise RecipeError(
                f"the encoder {self.encoder.name} is not the one that made the picture: "
                "bring that back, or take this one with --anyway"
            )
        content, styles, others = recipe.pictures(Path(folder), anyway=anyway, read=read)
        named: dict[str, Any] = {name: found[0] for name, found in others.items() if found}
        if "style_mask" in others:
            named["style_mask"] = others["style_mask"]
        weight = recipe.inputs.temporal_weight
        return self.start(content, styles, recipe.settings, temporal_weight=weight, **named)

    def replay(
        self, recipe: Recipe, *, folder: str | PathLike[str] = "", anyway: bool = False
    ) -> Result:
        """Make a picture again; arguments and errors as for ``restart``.

        With ``Stylizer(recipe.engine)``, on the same machine with the same versions, it is the same
        picture, and ``result.save(path, recipe.output)`` writes the same bytes.
        """
        with self.restart(recipe, folder=folder, anyway=anyway) as run:
            for report in run:
                if report.step == recipe.steps:
                    break
            run.stop()
            return run.result()

    def stylize_together(
        self,
        contents: Sequence[ImageLike],
        style: Styles,
        settings: StyleSettings | None = None,
        *,
        most: int = 8,
        style_mask: Styles | None = None,
        style_regions: ImageLike | None = None,
        content_mask: ImageLike | None = None,
    ) -> list[Result | NstError]:
        """Stylise several pictures, on a GPU those of one size side by side in every step.

        Where the GPU's memory does not hold them together, half as many are tried, and so on. What
        goes wrong with a picture takes its place in the list; the others are made. On a CPU, where
        a batch is no faster, they are made one after another.

        Args:
            contents: as for ``start``.
            style: of all of them.
            settings: of all of them; None for the defaults.
            most: pictures in a step, at least 1.
            style_mask: as for ``start``, of all of them; so are the next two.
            style_regions: in place of masks.
            content_mask: where photographs stay.

        Returns:
            For each content, in order, its result or its error.

        Raises:
            ImageError: a style or mask cannot be used; the contents are no list.
            SettingsError: settings that do not fit the encoder or the styles; ``most`` below 1.
        """
        settings = settings or StyleSettings()
        Objective.from_settings(settings, self.encoder)
        if most < 1:
            raise SettingsError(f"most must be a whole number of at least 1, not {most!r}")
        styles = _load_styles(style, settings)
        placed = _load_masks(settings, len(styles), style_mask, style_regions, content_mask)
        if isinstance(contents, _SINGLE) or not isinstance(contents, Iterable):
            raise ImageError("contents: give a list of pictures")
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
        alone = self._workspace.backend.launcher is None or settings.colour in BY_CONTENT
        count = 1 if alone else most
        for same in by_size.values():
            for first in range(0, len(same), count):
                group = same[first : first + count]
                made = self._make([picture for _, picture in group], styles, settings, placed)
                found |= zip((index for index, _ in group), made, strict=True)
        return [found[index] for index in range(len(contents))]

    def _make(
        self,
        contents: Sequence[Picture],
        styles: Sequence[Picture],
        settings: StyleSettings,
        placed: Masks | None,
    ) -> list[Result | NstError]:
        """Run pictures of one size together, or where that fails, in halves."""
        try:
            start = _load_start(settings)
            with Run(self._workspace, contents, styles, settings, start=start, masks=placed) as run:
                for _ in run:
                    pass
                return [*run.results()]
        except NstError as error:
            if len(contents) == 1 or not isinstance(error, DeviceMemoryError | NonFiniteError):
                return [error] * len(contents)
            half = len(contents) // 2
            logger.warning("%d pictures together: %s; going on with %d", len(contents), error, half)
        return [
            *self._make(contents[:half], styles, settings, placed),
            *self._make(contents[half:], styles, settings, placed),
        ]


def _label(source: ImageLike, role: str) -> str | None:
    """Name of a picture in messages: its path, or its role."""
    return None if isinstance(source, str | PathLike) else f"the {role} picture"


def _list(pictures: Styles) -> list[ImageLike]:
    if isinstance(pictures, _SINGLE) or not isinstance(pictures, Iterable):
        return [pictures]  # what is no picture is refused where it is loaded
    return list(pictures)


def _load_masks(
    settings: StyleSettings,
    styles: int,
    style_mask: Styles | None,
    style_regions: ImageLike | None,
    content_mask: ImageLike | None,
) -> Masks | None:
    return masks.load(
        settings,
        styles,
        style_mask=() if style_mask is None else _list(style_mask),
        style_regions=style_regions,
        content_mask=content_mask,
    )


def _load_start(settings: StyleSettings, init: ImageLike | None = None) -> Picture | None:
    """The picture to start from; None where ``settings.init`` is a word."""
    source = settings.init_path if init is None else init
    return None if source is None else images.load(source, name=_label(source, "init"))


def _load_styles(style: Styles, settings: StyleSettings) -> list[Picture]:
    sources = _list(style)
    if not sources:
        raise SettingsError("style: give at least one picture")
    blend_shares(settings.style_blend, len(sources))
    style_scales(settings.style_scale, len(sources))
    many = len(sources) > 1
    return [
        _load_style(source, _label(source, f"{ordinal(place)} style" if many else "style"))
        for place, source in enumerate(sources, 1)
    ]


def _load_style(style: ImageLike, label: str | None) -> Picture:
    """Decode a style picture; at least a part of it must show."""
    picture = images.load(style, name=label)
    if picture.alpha is not None and not picture.alpha.any():
        raise SettingsError(f"{label or style} is fully transparent: it has no style")
    return picture
