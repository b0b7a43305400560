"""Pictures to files: what can be written where, whole or not at all."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nst_fast.errors import ImageError, one_line
from nst_fast.files import temporary_name, write_atomically
from nst_fast.images.colour import srgb_profile
from nst_fast.images.formats import WRITABLE
from nst_fast.images.picture import ImageLike, Picture, to_bytes


def check_output(
    path: str | os.PathLike[str],
    inputs: Iterable[ImageLike] = (),
    *,
    endings: Collection[str] = tuple(WRITABLE),
) -> None:
    """Refuse, before any work is done, an output path that could not be written.

    Args:
        path: where a picture shall be written; an existing picture there may be replaced.
        inputs: the pictures that are read; ``path`` must not lead to one of them.
        endings: one of which it has, in lower case.

    Raises:
        ImageError: ``path`` is a folder, has none of the ``endings``, lies in a
            folder that is missing or not writable, is write-protected, or is one of ``inputs``.
    """
    target = Path(path)
    if os.path.isdir(target):
        raise ImageError(f"output {path} is a folder; name a file in it, such as stylized.png")
    if target.suffix.lower() not in endings:
        raise ImageError(f"output {path} must end in one of {', '.join(endings)}")
    for source in inputs:
        if isinstance(source, str | os.PathLike) and _same_file(target, Path(source)):
            raise ImageError(f"output {path} is the input {source}; choose another name")
    try:
        if not (stat.S_ISREG(target.stat().st_mode) and os.access(target, os.W_OK)):
            raise ImageError(f"output {path} may not be overwritten; choose another name")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ImageError(
            f"output {path} cannot be used ({one_line(error)}); choose another name"
        ) from None
    _check_folder(target)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def _check_folder(target: Path) -> None:
    """Create and remove a file beside the target: permission bits say nothing to root."""
    folder = target.resolve().parent
    if not folder.is_dir():
        raise ImageError(f"output {target}: there is no folder {folder}; create it first")
    probe = folder / temporary_name()
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ImageError(
            f"output {target}: folder {folder} is not writable ({one_line(error)}); choose another"
        ) from None


def save(picture: Picture, path: str | os.PathLike[str], *, quality: int = 95) -> None:
    """Write a picture as 8-bit PNG, JPEG, WebP or TIFF, by the extension, tagged as sRGB.

    Alpha is kept, except by JPEG, which has none: there the picture is laid on white. The file
    appears whole or not at all: it is written under a temporary name in the same folder, flushed to
    the disk, then renamed. A symbolic link is followed, not replaced.

    Args:
        picture: what to write.
        path: where; an existing file is replaced.
        quality: of JPEG (with full colour resolution) and WebP, from 1 to 100.

    Raises:
        ImageError: ``path`` is refused by ``check_output``, the format cannot hold the picture, or
            writing fails; nothing is left behind then.
    """
    check_output(path)
    payload = encode(picture, os.fspath(path), quality=quality)
    target = Path(path).resolve()
    try:
        write_atomically(target, payload)
    except OSError as error:
        raise ImageError(
            f"output {path} cannot be written ({one_line(error)}); choose another folder"
        ) from None


def encode(picture: Picture, path: str, *, quality: int = 95) -> bytes:
    """The bytes of the whole file that :func:`save` would write.

    Raises:
        ImageError: the format of the ending cannot hold the picture.
    """
    form = WRITABLE[Path(path).suffix.lower()]
    if not np.isfinite(picture.pixels).all():
        raise ImageError(f"output {path}: the picture has values that are not numbers")
    options: dict[str, dict[str, Any]] = {
        "PNG": {},
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality, "exact": True},
        "TIFF": {"compression": "tiff_adobe_deflate"},
    }
    buffer = io.BytesIO()
    try:
        to_pillow(picture, flatten=form == "JPEG").save(
            buffer, format=form, icc_profile=srgb_profile(), **options[form]
        )
    except (OSError, ValueError) as error:
        size = "{}×{}".format(*picture.size)
        raise ImageError(
            f"output {path}: {form} cannot hold {size} pixels ({one_line(error)}); use .png"
        ) from None
    return buffer.getvalue()


def to_pillow(picture: Picture, *, flatten: bool = False) -> Image.Image:
    """The picture in 8 bits, RGB or RGBA; ``flatten`` lays it on white instead of keeping alpha."""
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is None:
        return Image.fromarray(to_bytes(pixels))
    if flatten:
        cover = alpha[..., None]
        return Image.fromarray(to_bytes(pixels * cover + (1 - cover)))
    return Image.fromarray(to_bytes(np.dstack((pixels, alpha))))
