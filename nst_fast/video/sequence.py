"""Frames in order: the first of a shot as a picture by itself, the others held to those before.

What the frame before becomes by the flow is where a frame starts, at every size, and what the
temporal term holds it to. What was not seen before starts as it does in a first frame and goes from
coarse to fine, so that its strokes are as large as those around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from nst_fast import images
from nst_fast.config import StyleSettings
from nst_fast.errors import SettingsError, VideoError
from nst_fast.images import ImageLike, Picture
from nst_fast.result import Result
from nst_fast.run import Run
from nst_fast.stylizer import Styles, Stylizer
from nst_fast.video.flow import Motion, motion, warped, warping_error
from nst_fast.video_options import VideoOptions


@dataclass(frozen=True)
class Before:
    """All that a frame needs of the one before; of the size of the result.

    Attributes:
        content: as it was.
        painting: what came of it, before colours are put back: ``Run.painting``.
        alone: what came of it by itself; None where that is not measured.
    """

    content: Picture
    painting: Picture
    alone: Picture | None = None


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        result: as of a picture by itself.
        before: what the next frame needs.
        cut: whether it is the first of a shot.
        seen: share of it that was seen in the frame before; 0 after a cut.
        error: warping error against the frame before, see :func:`warping_error`; None after a cut.
        alone_error: that of the same frames made by themselves; None where it is not measured.
    """

    result: Result
    before: Before
    cut: bool
    seen: float
    error: float | None = None
    alone_error: float | None = None


def stylize_frames(
    stylizer: Stylizer,
    frames: Iterable[ImageLike],
    style: Styles,
    settings: StyleSettings | None = None,
    options: VideoOptions | None = None,
    *,
    before: Before | None = None,
) -> Iterator[Frame]:
    """Repaint frames in their order; each is read when it is its turn.

    Args:
        stylizer: that makes them.
        frames: pictures of one size.
        style: one picture or several, as for ``Stylizer.start``.
        settings: of a first frame; None for the defaults.
        options: how the frames hang together; None for the defaults.
        before: what the first of the frames follows; None: nothing.

    Raises:
        ImageError: a picture cannot be used.
        SettingsError: settings that do not fit the encoder or the pictures.
        VideoError: a frame has another size than those before.
    """
    maker = _Maker(stylizer, style, settings or StyleSettings(), options or VideoOptions())
    for number, frame in enumerate(frames, 1):
        picture = images.load(frame, name=f"frame {number}")
        made = maker.make(picture, before)
        before = made.before
        yield made


class _Maker:
    """Makes one frame, given the one before."""

    def __init__(
        self, stylizer: Stylizer, style: Styles, settings: StyleSettings, options: VideoOptions
    ) -> None:
        self._stylizer, self._settings, self._options = stylizer, settings, options
        self._style: Styles = load_styles(style)
        self._init = None if settings.init_path is None else images.load(settings.init_path)
        steps = options.follow_steps or max(1, settings.steps // 2)
        self._following = replace(settings, steps=steps)

    def make(self, picture: Picture, before: Before | None) -> Frame:
        longest = self._settings.size or max(picture.size)
        content = images.resize(picture, *images.fit(picture.size, longest))
        if before is not None and before.content.size != content.size:
            raise VideoError(
                "the frames have different sizes ({}×{}, then {}×{}); make them one size".format(
                    *before.content.size, *content.size
                )
            )
        moved = None if before is None else motion(before.content, content)
        if moved is not None and moved.explained < self._options.cut_share:
            moved = None
        with self._start(picture, moved, before) as run:
            result, painting = _finished(run, content.size)
        alone = painting if moved is None else None
        if not self._options.measure:
            alone = None
        elif alone is None:
            with self._start(picture, None, None) as run:
                alone = _finished(run, content.size)[1]
        after = Before(content, painting, alone)
        if moved is None or before is None:
            return Frame(result, after, cut=True, seen=0.0)
        alone_error = None
        if alone is not None and before.alone is not None:
            alone_error = warping_error(before.alone, alone, moved)
        return Frame(
            result,
            after,
            cut=False,
            seen=float(moved.seen.mean()),
            error=warping_error(before.painting, painting, moved),
            alone_error=alone_error,
        )

    def _start(self, picture: Picture, moved: Motion | None, before: Before | None) -> Run:
        anchor, settings = None, self._settings
        if moved is not None and before is not None:
            anchor = Picture(warped(before.painting, moved).pixels, moved.seen)
            settings = self._following
        return self._stylizer.start(
            picture,
            self._style,
            settings,
            init=self._init,
            anchor=anchor,
            temporal_weight=self._options.temporal_weight,
        )


def _finished(run: Run, size: tuple[int, int]) -> tuple[Result, Picture]:
    """Run to the end; the result, and what the next frame starts from."""
    for _ in run:
        pass
    return run.result(), images.resize(run.painting(), *size)


def load_styles(style: Styles) -> list[Picture]:
    """One style picture or several, decoded: a Picture keeps its digest, by which its moments are.

    Raises:
        ImageError: one cannot be used.
        SettingsError: there is none.
    """
    several = isinstance(style, Sequence) and not isinstance(style, str)
    styles = [
        images.load(each) for each in cast(Sequence[ImageLike], style if several else [style])
    ]
    if not styles:
        raise SettingsError("style: give at least one picture")
    return styles
