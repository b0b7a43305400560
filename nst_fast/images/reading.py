"""Reading pictures: files, Pillow images and arrays, to float32 in upright sRGB."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_fast.errors import ImageError
from nst_fast.images import colour
from nst_fast.images.formats import START
from nst_fast.images.opening import Decoded, check_size, decoded, decoding, readable
from nst_fast.images.picture import ImageLike, Origin, Picture
from nst_fast.images.turning import upright

MAX_BYTES = 1 << 32  # of a file; TIFF itself ends there
_EMPTY = "{} is empty; the download or copy may have failed, fetch it again"


def load(source: ImageLike, *, name: str | None = None) -> Picture:
    """Decode a picture from a file, a Pillow image or an array.

    Orientation by EXIF or XMP is applied; other metadata, whatever is wrong with it, does not
    matter. Colours are converted to sRGB by the embedded ICC profile; without a profile, or with a
    damaged one, they are taken as sRGB. An animation gives its first frame, a TIFF its first page
    that is no reduced copy. 16 bits keep their precision in PNG and TIFF; where they have an ICC
    profile, that needs the extra ``icc``. The colours of transparent pixels are kept as they are
    stored.

    Args:
        source: path; Pillow image, which is decoded but not changed; or array of shape (H, W),
            (H, W, 3) or (H, W, 4), either uint8 or floating point in [0, 1], sRGB encoded. A
            Picture is returned as it is.
        name: what error messages call the picture; by default its path, or "image".

    Raises:
        ImageError: the file is missing, unreadable, damaged, or of a format that is not read (see
            ``FORMATS``); the Pillow image is closed; the array has a shape, type or value that is
            not listed above; a side is below ``MIN_SIDE`` pixels, or the picture above
            ``MAX_PIXELS`` (found from the header, before decoding).
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "image")
    if isinstance(source, Image.Image):
        return _from_pillow(source, name or "image")
    if not isinstance(source, str | os.PathLike):
        kinds = "a path, a Pillow image or a numpy array"
        raise ImageError(f"{name or 'image'}: give {kinds}, not {type(source).__name__}")
    path = Path(os.fsdecode(source))
    label = name or os.fspath(path)
    check_input(path, label)
    with decoding(label), open(path, "rb") as file:
        readable(file.read(START), label)  # before a large file of another kind is read
        file.seek(0)
        data = file.read()
    return _decode(data, label, os.fsdecode(source))


def decode(data: bytes, *, name: str) -> Picture:
    """Decode the bytes of a picture file, as :func:`load` does those of a path.

    Args:
        data: the whole file.
        name: what error messages call the picture; its path or URL.

    Raises:
        ImageError: the bytes are no picture, damaged, too small or too large.
    """
    return _decode(data, name, name)


def _decode(data: bytes, label: str, path: str) -> Picture:
    if not data:
        raise ImageError(_EMPTY.format(label))
    return replace(_picture(decoded(data, label), label), origin=Origin.of(path, data))


def check_input(path: Path, label: str) -> None:
    """Refuse, before it is opened, a path that leads to no readable file.

    Raises:
        ImageError: the path is missing, may not be read, is empty, too large, or is not a regular
            file.
    """
    try:
        status = path.stat()
    except PermissionError:
        raise ImageError(f"{label}: permission denied; make the file readable") from None
    except (OSError, ValueError):  # ValueError: a null character in the path
        raise ImageError(f"{label}: no such file; check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{label} is a folder; name one image file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{label} is not a regular file; name an image file")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"{label} has more than {MAX_BYTES >> 30} GB; scale it down first")
    if status.st_size == 0:
        raise ImageError(_EMPTY.format(label))


def _from_pillow(image: Image.Image, label: str) -> Picture:
    check_size(*image.size, label)
    with decoding(label):
        try:
            image.load()
        except (AssertionError, AttributeError, ValueError) as error:
            if isinstance(error, ValueError) and "closed" not in str(error):
                raise
            remedy = "give it before it is closed, or its path"
            raise ImageError(f"{label} is a Pillow image that is closed; {remedy}") from None
        return _picture(Decoded(upright(image), None), label)


def _picture(found: Decoded, label: str) -> Picture:
    image, deep = found
    with decoding(label):
        if image.mode in (
            "La",
            "RGBa",
        ):  # colours times alpha, which Pillow converts to these alone
            image = image.convert(image.mode.upper())
        embedded = image.info.get("icc_profile")
        profile = embedded if isinstance(embedded, bytes) else b""
        return Picture(
            colour.colours(image, profile, label, deep),
            colour.alpha(image, deep),
            profile=colour.rgb_profile(profile),
        )


def _from_array(array: NDArray[Any], label: str) -> Picture:
    grey = array.ndim == 2
    if not grey and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(
            f"{label}: an array must have shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}"
        )
    check_size(array.shape[1], array.shape[0], label)
    if array.dtype == np.uint8:
        values = array.astype(np.float32) / np.float32(255)
    elif np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float32)
        if not (np.min(values) >= 0 and np.max(values) <= 1):  # NaN fails both
            raise ImageError(f"{label}: a float array must be finite and within [0, 1]; rescale it")
    else:
        raise ImageError(f"{label}: an array must be uint8 or floating point, not {array.dtype}")
    if grey:
        return Picture(np.repeat(values[..., None], 3, axis=2))
    alpha = np.ascontiguousarray(values[..., 3]) if array.shape[2] == 4 else None
    return Picture(np.ascontiguousarray(values[..., :3]), alpha)
