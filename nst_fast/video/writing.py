"""Frames to a film: H.264 that plays everywhere, the sound of the source as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from nst_fast import images
from nst_fast.errors import VideoError, one_line
from nst_fast.files import open_atomically, sweep, tag_of
from nst_fast.video.source import Source

FORMS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}  # as FFmpeg names them
ENDINGS = tuple(FORMS)
QUALITY = {"crf": "16", "preset": "medium"}
BT709 = 1  # primaries, transfer and matrix, as H.264 numbers them
logger = logging.getLogger(__name__)


def write_film(
    path: Path, frames: Iterable[tuple[Path, int]], source: Source, *, limited: bool, mark: str
) -> None:
    """Encode pictures, and copy the sound; the file appears whole or not at all.

    Sides are made even by repeating the last row or column, as 4:2:0 needs. Sound that the format
    of the ending cannot hold is left out, with a warning.

    Args:
        path: ends in one of ``ENDINGS``; an existing file is replaced.
        frames: files and times, in units of the source's ``time_base``.
        source: of rate, times and sound.
        limited: whether the sound ends with the last frame.
        mark: a comment for :func:`mark_of` to find.

    Raises:
        VideoError: encoding or writing failed; nothing is left behind.
    """
    shown = list(frames)
    try:
        try:
            _encode(path, shown, source, limited=limited, mark=mark, sound=True)
        except (av.FFmpegError, ValueError) as error:
            # Which sound a format holds shows at its end only; a full disk fails once more.
            _encode(path, shown, source, limited=limited, mark=mark, sound=False)
            told = one_line(error)
            logger.warning("%s cannot hold the sound (%s), left out; .mkv may", path, told)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"output {path} cannot be written ({one_line(error)}); see to its disk"
        ) from None


def mark_of(path: Path) -> str:
    """The comment of a film; "" where there is no film, or none."""
    try:
        with av.open(path) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
            return str(tags.get("comment", ""))
    except (av.FFmpegError, OSError):
        return ""


def _encode(
    path: Path,
    frames: list[tuple[Path, int]],
    source: Source,
    *,
    limited: bool,
    mark: str,
    sound: bool,
) -> None:
    """Write a film beside ``path``, then rename it."""
    tag, form = tag_of(path), FORMS[path.suffix.lower()]
    sweep(path.parent, tag)
    with open_atomically(path, tag) as file:
        _write(file, form, frames, source, limited=limited, mark=mark, sound=sound)


def _write(
    target: IO[bytes],
    form: str,
    frames: list[tuple[Path, int]],
    source: Source,
    *,
    limited: bool,
    mark: str,
    sound: bool,
) -> None:
    with av.open(target, "w", format=form) as out:
        out.metadata["comment"] = mark
        stream = out.add_stream("libx264", rate=source.fps, options=QUALITY)
        first = _even(frames[0][0])
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = source.time_base
        context = stream.codec_context
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = BT709
        end = float((frames[-1][1] + 1 / source.fps / source.time_base) * source.time_base)
        packets = _sound(source, out, end if limited else None) if sound else iter(())
        waiting = next(packets, None)
        for file, pts in frames:
            frame = av.VideoFrame.from_ndarray(_even(file), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = pts, source.time_base
            out.mux(stream.encode(frame))
            while waiting is not None and _time(waiting) <= pts * source.time_base:
                out.mux(waiting)
                waiting = next(packets, None)
        out.mux(stream.encode(None))
        while waiting is not None:
            out.mux(waiting)
            waiting = next(packets, None)


def _sound(source: Source, out: Any, end: float | None) -> Iterator[av.Packet[Any]]:
    """The packets of the source's sound, for a stream of ``out`` that is made at once."""
    if source.film is None:
        return iter(())
    container = av.open(source.film)
    if not container.streams.audio:
        container.close()
        return iter(())
    heard = container.streams.audio[0]
    stream = out.add_stream_from_template(heard)

    def packets() -> Iterator[av.Packet[Any]]:
        with container:
            for packet in container.demux(heard):
                if packet.dts is None:
                    continue
                if end is not None and _time(packet) >= end:
                    return
                packet.stream = stream
                yield packet

    return packets()


def _time(packet: av.Packet[Any]) -> Fraction:
    """Seconds from the beginning."""
    return Fraction(packet.dts or 0) * (packet.time_base or Fraction(1))


def _even(path: Path) -> NDArray[np.uint8]:
    """A picture in 8 bits, (H, W, 3), with even sides."""
    pixels = np.asarray(images.to_pillow(images.load(path), flatten=True))
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
