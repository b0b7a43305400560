"""Frames of a picture in the making, as an animated WebP or PNG, or as MP4.

Memory is bounded: the frames of an animation are small, and thinned out where there are many; those
of an MP4 go to its encoder, and the disk, as they come.
"""

from __future__ import annotations

import contextlib
import sys
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from PIL import Image

from nst_fast import images
from nst_fast.errors import ImageError, one_line
from nst_fast.files import open_atomically, sweep, tag_of
from nst_fast.images import Picture
from nst_fast.making.formats import ANIMATIONS, FILM, check_file, check_format
from nst_fast.result import Report
from nst_fast.run import Run

LONGEST, FILM_LONGEST = 480, 1280  # pixels a side
MOST_PIXELS = 24_000_000  # of all frames of an animation, at four bytes each
RATE = 12  # frames a second
HOLD = 2  # seconds that the last frame stays


class Recorder:
    """Writes pictures as frames of one file, in the format of its ending.

    Use it as a context manager: the file is complete, and there, after the last frame; an error
    inside leaves none.

    >>> with Recorder("making.webp") as recorder:                     # doctest: +SKIP
    ...     for report in run:
    ...         recorder.add(run.picture())
    """

    def __init__(self, path: str | PathLike[str], into: IO[bytes] | None = None) -> None:
        """Check the path, and that what the format needs is installed.

        Args:
            path: ending in .webp, .png, .apng or .mp4; an existing file is replaced.
            into: a file that is open and can be sought in, which takes the bytes and stays open;
                of ``path`` then the ending alone counts. None: the file is made there.

        Raises:
            ImageError: it cannot be written here.
        """
        if into is None:
            check_file("record", path)
        else:
            check_format("record", path)
        self._path, self._into = path, into
        self._suffix = Path(path).suffix.lower()
        self._film = self._suffix == FILM
        self._writer: _Writer | None = None
        self._aside = contextlib.ExitStack()  # the file that becomes the one at the path

    def add(self, picture: Picture) -> None:
        """Take the next frame, reduced to 480 pixels a side, in a film to 1280.

        Args:
            picture: of the same size as the others.

        Raises:
            ImageError: the film cannot be written.
        """
        longest = FILM_LONGEST if self._film else LONGEST
        width, height = images.fit(picture.size, min(longest, max(picture.size)))
        if self._film:  # a colour is stored for four pixels
            width, height = (max(2, side - side % 2) for side in (width, height))
        image = images.to_pillow(images.resize(picture, width, height), flatten=self._film)
        try:
            if self._writer is None:
                file = self._open() if self._into is None else self._into
                form = ANIMATIONS.get(self._suffix)
                self._writer = _Film(file) if form is None else _Animation(file, form)
            self._writer.add(image)
        except (OSError, ValueError) as error:  # as those of FFmpeg are
            self._refuse(error)

    def close(self) -> None:
        """Write what is left; safe to call twice.

        Raises:
            ImageError: the file cannot be written.
        """
        try:
            if self._writer is not None:
                self._writer.close()
            self._aside.close()
            self._writer = None
        except (OSError, ValueError) as error:
            self._refuse(error)

    def __enter__(self) -> Recorder:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the file, or leave none after an error."""
        if kind is None:
            self.close()
        else:
            self._abandon(kind, error, traceback)

    def _open(self) -> IO[bytes]:
        target = Path(self._path).resolve()
        tag = tag_of(target)
        sweep(target.parent, tag)
        return self._aside.enter_context(open_atomically(target, tag))

    def _refuse(self, error: Exception) -> None:
        """Say what went wrong in a line, and leave nothing behind."""
        self._abandon(*sys.exc_info())
        raise ImageError(f"output {self._path} cannot be written ({one_line(error)})") from None

    def _abandon(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        self._aside.__exit__(*error)


class Recording:
    """Frames of a run: its start, one every so many steps, and its end; none without a recorder."""

    def __init__(self, run: Run, recorder: Recorder | None, every: int) -> None:
        """Begin with the picture that the run starts from.

        Raises:
            ImageError: the film cannot be written.
        """
        self._run, self._recorder, self._every = run, recorder, every
        self._step = len(run.reports)
        self._add()

    def see(self, report: Report) -> None:
        """Add a frame if it is time; a GPU is ahead of its reports, all of which show the same."""
        step = len(self._run.reports)
        if report.step == step and step - self._step >= self._every:
            self._step = step
            self._add()

    def _add(self) -> None:
        if self._recorder is not None:
            self._recorder.add(self._run.picture())

    def __enter__(self) -> Recording:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the file; none after an error."""
        if self._recorder is None:
            return
        if kind is None and self._step != len(self._run.reports):
            self._add()
        self._recorder.__exit__(kind, error, traceback)


class _Writer(Protocol):
    """Encodes frames into a file that somebody else opens and closes."""

    def add(self, image: Image.Image) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


class _Animation:
    """By Pillow, which wants all frames together."""

    def __init__(self, file: IO[bytes], form: str) -> None:
        self._file, self._form = file, form
        self._frames: list[Image.Image] = []
        self._last: Image.Image | None = None
        self._seen, self._stride = 0, 1

    def add(self, image: Image.Image) -> None:
        """Keep it if its turn has come; where there is no more room, every second one goes."""
        if self._seen % self._stride == 0:
            self._frames.append(image)
        self._seen, self._last = self._seen + 1, image
        if len(self._frames) * image.width * image.height > MOST_PIXELS:
            del self._frames[1::2]
            self._stride *= 2

    def close(self) -> None:
        frames, last = self._frames, self._last
        if last is None:
            return
        if frames[-1] is not last:
            frames.append(last)
        duration = [1000 // RATE] * (len(frames) - 1) + [1000 * HOLD]
        frames[0].save(
            self._file,
            format=self._form,
            save_all=True,
            append_images=frames[1:],
            duration=duration,
            loop=0,
            **({"quality": 85, "method": 2} if self._form == "WEBP" else {}),
        )
        self.abandon()

    def abandon(self) -> None:
        self._frames, self._last = [], None


class _Film:
    """By PyAV: H.264, or MPEG-4 where this FFmpeg has none."""

    def __init__(self, file: IO[bytes]) -> None:
        import av

        self._container: Any = av.open(file, "w", format="mp4")
        self._stream: Any = None
        self._last: Image.Image | None = None

    def add(self, image: Image.Image) -> None:
        if self._stream is None:
            self._stream = self._open(image)
        self._encode(image)
        self._last = image

    def _open(self, image: Image.Image) -> Any:
        import av

        has = "libx264" in av.codecs_available
        stream: Any = self._container.add_stream("libx264" if has else "mpeg4", rate=RATE)
        stream.width, stream.height = image.size
        stream.pix_fmt = "yuv420p"
        if has:
            stream.options = {"crf": "18"}
        else:
            stream.bit_rate = 8_000_000
        return stream

    def _encode(self, image: Image.Image | None) -> None:
        import av

        frame = None if image is None else av.VideoFrame.from_image(image)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        for _ in range(RATE * HOLD - 1):
            self._encode(self._last)
        self._encode(None)
        self._container.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._container.close()
