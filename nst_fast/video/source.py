"""Where frames come from: a film, or the pictures of a folder or glob by their names."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, ColorTrc

from nst_fast import images
from nst_fast.errors import VideoError, one_line
from nst_fast.images import Picture

FPS = Fraction(25)  # of a folder
HIGH_DEFINITION = 720  # rows, from which films that do not tell their matrix have that of BT.709
ENDS = 2**20  # bytes at either end of a film that tell it from another
WHOLE = 0.95  # of its frames; edit lists leave some out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """A frame.

    Attributes:
        picture: upright.
        pts: when it is shown, in units of the source's ``time_base``.
    """

    picture: Picture
    pts: int


class Source(Protocol):
    """Frames in order.

    Attributes:
        name: as it was given.
        fps: frames a second, on average.
        time_base: seconds of a unit of time.
        length: how many frames there are; 0 where that is not known beforehand.
        identity: another one where the frames are others.
        film: the file with the sound; None for a folder.
    """

    name: str
    fps: Fraction
    time_base: Fraction
    length: int
    identity: str
    film: Path | None

    def frames(self, first: int = 0) -> Iterator[Taken]:
        """Read them from number ``first``, counted from 0, one at a time.

        Raises:
            VideoError: the film cannot be read on.
            ImageError: a picture of a folder cannot be used.
        """

    def stem(self, number: int) -> str:
        """Name of a frame's file, without the ending."""


def open_source(name: str, fps: float | None) -> Source:
    """Find out what a path, folder or glob is.

    Raises:
        VideoError: there is nothing, or nothing that can be read.
    """
    if os.path.isdir(name):
        return Folder(name, [os.path.join(name, each) for each in os.listdir(name)], fps)
    if not os.path.exists(name) and glob.has_magic(name):
        return Folder(name, glob.glob(name), fps)
    if fps is not None:
        raise VideoError("--fps is for a folder of frames: a film has its own")
    return Film(name)


class Folder:
    """Pictures of a folder, in the natural order of their names."""

    film: Path | None = None

    def __init__(self, name: str, paths: list[str], fps: float | None) -> None:
        """Take those that end like pictures; raises VideoError where there are none."""
        endings = images.readable_endings()
        kept = [
            path
            for path in paths
            if path.lower().endswith(endings) and not os.path.basename(path).startswith(".")
        ]
        if not kept:
            raise VideoError(
                f"{name}: no pictures there; name a film, a folder of frames or a glob"
            )
        self._paths = sorted(kept, key=_natural)
        stems = [Path(path).stem for path in self._paths]
        if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
            raise VideoError(f"{name}: two frames are named {twice}; give each its own name")
        self.name, self.length = name, len(kept)
        self.fps = FPS if fps is None else Fraction(fps).limit_denominator(1001)
        self.time_base = 1 / self.fps
        facts = [(os.path.basename(path), os.stat(path).st_size) for path in self._paths]
        self.identity = hashlib.sha256(repr(facts).encode()).hexdigest()

    def frames(self, first: int = 0) -> Iterator[Taken]:
        """Decode them; see ``Source.frames``."""
        for number, path in enumerate(self._paths[first:], first):
            yield Taken(images.load(path), number)

    def stem(self, number: int) -> str:
        """Of the picture; see ``Source.stem``."""
        return Path(self._paths[number]).stem


class Film:
    """The frames of a film, decoded as they are asked for."""

    def __init__(self, name: str) -> None:
        """Look at its header.

        Raises:
            VideoError: it is no film, or one of a kind that is not read.
        """
        self.name = name
        path = Path(name)
        self.film: Path | None = path
        images.check_input(path, name)
        try:
            with av.open(name) as container:
                if container.format.name == "image2" or container.format.name.endswith("_pipe"):
                    raise VideoError(
                        f"{name} is a picture; use nst-fast stylize, or name a film or a folder"
                    )
                if not container.streams.video:
                    raise VideoError(f"{name} has sound alone; name a film")
                stream = container.streams.video[0]
                context = stream.codec_context
                if context.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
                    raise VideoError(f"{name} has a high dynamic range; convert it to SDR first")
                self.fps = stream.average_rate or stream.guessed_rate or FPS
                self.time_base = stream.time_base or 1 / self.fps
                self.length = stream.frames
                self._promised = stream.frames or self.fps * _seconds(container, stream)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{name} cannot be read as a film ({one_line(error)})") from None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            state = hashlib.sha256(str(size).encode())
            for at in (0, max(0, size - ENDS)):
                file.seek(at)
                state.update(file.read(ENDS))
        self.identity = state.hexdigest()

    def frames(self, first: int = 0) -> Iterator[Taken]:
        """Decode them, those before ``first`` without a look; see ``Source.frames``.

        Where there are clearly fewer than the film says, a warning is logged.
        """
        number = first - 1
        try:
            with av.open(self.name) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for number, frame in enumerate(
                    islice(container.decode(stream), first, None), first
                ):
                    pts = frame.pts
                    if pts is None:
                        pts = round(number / self.fps / self.time_base)
                    yield Taken(_picture(frame), pts)
        except av.FFmpegError as error:
            raise VideoError(
                f"{self.name} cannot be read to its end ({one_line(error)}); repair it, or give "
                "--frames"
            ) from None
        if number + 1 < WHOLE * self._promised:
            told = number + 1, round(self._promised)
            logger.warning("%s ends after %d of %d frames; is all of it there?", self.name, *told)

    def stem(self, number: int) -> str:
        """By its number; see ``Source.stem``."""
        return f"frame_{number + 1:06d}"


def _seconds(container: Any, stream: Any) -> Fraction:
    """How long a film says it is; 0 where only sound, which may go on after it, tells."""
    if stream.duration:
        return Fraction(stream.duration * stream.time_base)
    alone = len(container.streams) == 1 and container.duration
    return Fraction(container.duration, av.time_base) if alone else Fraction(0)


def _natural(path: str) -> list[str | tuple[int, str]]:
    """A key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", os.path.basename(path))
    return [(int(part), part) if part.isdigit() else part for part in parts]


def _picture(frame: av.VideoFrame) -> Picture:
    """A frame in sRGB, turned as its file says."""
    matrix: int = frame.colorspace
    if matrix not in (Colorspace.ITU709, Colorspace.BT2020, *range(4, 8)):
        high = frame.height >= HIGH_DEFINITION
        matrix = Colorspace.ITU709 if high else Colorspace.SMPTE170M
    range_ = frame.color_range or ColorRange.MPEG
    planes = frame.to_ndarray(
        format="rgb24",
        **({} if frame.format.is_rgb else {"src_colorspace": matrix, "src_color_range": range_}),
    )
    turned = np.rot90(planes, round(frame.rotation / 90) % 4)
    return images.load(np.ascontiguousarray(turned), name="a frame")
