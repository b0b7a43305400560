"""Formats of what the making of a picture leaves besides it, by the endings of its files."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path

from nst_fast import images
from nst_fast.errors import ImageError
from nst_fast.images import ImageLike
from nst_fast.making_options import Kind

PLOTS = {".svg": "svg", ".png": "png", ".pdf": "pdf"}
ANIMATIONS = {".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}
FILM = ".mp4"
ENDINGS: Mapping[Kind, tuple[str, ...]] = {
    "plot": tuple(PLOTS),
    "compare": tuple(images.WRITABLE),
    "record": (*ANIMATIONS, FILM),
}


def check_format(kind: Kind, path: str | PathLike[str]) -> None:
    """Refuse a file that could not be made, wherever it is.

    Args:
        kind: what will be in it.
        path: or a URL.

    Raises:
        ImageError: its ending names no format for that, or one that needs a package that is not
            installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ENDINGS[kind]:
        raise ImageError(f"output {path} must end in one of {', '.join(ENDINGS[kind])}")
    if kind == "plot" and importlib.util.find_spec("matplotlib") is None:
        raise ImageError(f'{path}: a plot needs matplotlib; run: pip install "nst-fast[plot]"')
    if suffix == FILM and importlib.util.find_spec("av") is None:
        raise ImageError(
            f'{path}: MP4 needs PyAV; run: pip install "nst-fast[video]", or name a .webp'
        )


def check_file(kind: Kind, path: str | PathLike[str], inputs: Collection[ImageLike] = ()) -> None:
    """Refuse, before any work is done, a file that could not be made or written here.

    Raises:
        ImageError: as for ``check_format``, and what ``images.check_output`` refuses.
    """
    images.check_output(path, inputs, endings=ENDINGS[kind])
    check_format(kind, path)
