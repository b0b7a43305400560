"""Upright: orientation read from a picture's metadata, and nothing of it written."""

from __future__ import annotations

import re

from PIL import ExifTags, Image

from nst_fast.images import tiff

# By the EXIF standard (2.3, tag 274).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """A loaded image as it is to be seen; the image itself where it is upright."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """Orientation by EXIF or XMP, from 1 to 8; 1 where they say nothing that can be read."""
    try:
        # Not image.getexif(): a PNG's would decode the picture to see what comes after it.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # of any kind: what is wrong with metadata must not stop a picture
        value = None
    exif = image.info.get("exif")
    if value is None and isinstance(exif, bytes):  # Pillow gives up at a tag that is damaged
        value = tiff.orientation(re.sub(rb"^(Exif\0\0)+", b"", exif))
    return next((turn for turn in _TURNS if turn == value), 1)
