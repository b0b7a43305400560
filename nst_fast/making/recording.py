"""Frames of a picture in the making, as an animated WebP or PNG, or as MP4.

Memory is bounded: the frames of an animation are small, and thinned out where there are many; those
of an MP4 go to its encoder, and the disk, as they come.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Collection, Iterator
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from PIL import Image

from nst_fast import images
from nst_fast.errors import ImageError, one_line
from nst_fast.files import open_atomically, put_in_place, sweep, tag_of, temporary_name
from nst_fast.images import ImageLike, Picture

ANIMATIONS = {".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}
FILM = ".mp4"
LONGEST, FILM_LONGEST = 480, 1280  # pixels a side
MOST_PIXELS = 24_000_000  # of all frames of an animation, at four bytes each
RATE = 12  # frames a second
HOLD = 2  # seconds that the last frame stays


def check_record(path: str | PathLike[str], inputs: Collection[ImageLike] = ()) -> None:
    """Refuse, before any work is done, a recording that could not be written.

    Raises:
        ImageError: the file could not be written, or needs a package that is not installed.
    """
    images.check_output(path, inputs, endings=(*ANIMATIONS, FILM))
    if Path(path).suffix.lower() == FILM and importlib.util.find_spec("av") is None:
        raise ImageError(
            f'{path}: MP4 needs PyAV; run: pip install "nst-fast[video]", or name a .webp'
        )


class Recorder:
    """Writes pictures as frames of one file, in the format of its ending.

    Use it as a context manager: the file is complete, and there, after the last frame; an error
    inside leaves none.

    >>> with Recorder("making.webp") as recorder:                     # doctest: +SKIP
    ...     for report in run:
    ...         recorder.add(run.picture())
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        """Check the path, and that what the format needs is installed.

        Args:
            path: ending in .webp, .png, .apng or .mp4; an existing file is replaced.

        Raises:
            ImageError: it cannot be written here.
        """
        check_record(path)
        self._path = path
        suffix, target = Path(path).suffix.lower(), Path(path).resolve()
        self._film = suffix == FILM
        self._writer: _Writer = (
            _Film(target) if self._film else _Animation(target, ANIMATIONS[suffix])
        )

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
        with self._told():
            self._writer.add(image)

    def close(self) -> None:
        """Write what is left; safe to call twice.

        Raises:
            ImageError: the file cannot be written.
        """
        with self._told():
            self._writer.close()

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
            self._writer.abandon()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say what went wrong in a line, and leave nothing behind."""
        try:
            yield
        except (OSError, ValueError) as error:  # as those of FFmpeg are
            self._writer.abandon()
            raise ImageError(f"output {self._path} cannot be written ({one_line(error)})") from None


class _Writer(Protocol):
    def add(self, image: Image.Image) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


class _Animation:
    """By Pillow, which wants all frames together."""

    def __init__(self, target: Path, form: str) -> None:
        self._target, self._form = target, form
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
        with open_atomically(self._target) as file:
            frames[0].save(
                file,
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

    def __init__(self, target: Path) -> None:
        import av

        tag = tag_of(target)
        sweep(target.parent, tag)
        self._target, self._temporary = target, target.parent / temporary_name(tag)
        self._container: Any = av.open(self._temporary, "w", format="mp4")
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
        if self._last is not None:
            for _ in range(RATE * HOLD - 1):
                self._encode(self._last)
            self._encode(None)
            self._last = None
            self._container.close()
            put_in_place(self._temporary, self._target)
        self.abandon()

    def abandon(self) -> None:
        self._last = None
        with contextlib.suppress(OSError, ValueError):
            self._container.close()
        self._temporary.unlink(missing_ok=True)
