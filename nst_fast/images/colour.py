"""Colours of a Pillow image of any mode, to float32 in sRGB, by its ICC profile."""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import cast

import numpy as np
from PIL import Image, ImageCms

from nst_fast.errors import ImageError
from nst_fast.host import Float32
from nst_fast.images.picture import to_bytes, unit

# Little CMS approximates by default, and is 10 levels off in the shadows of linear grey.
_EXACT = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}


def alpha(image: Image.Image) -> Float32 | None:
    """Opacity (H, W) in [0, 1] by an alpha plane, a palette or a transparent colour."""
    if image.mode.startswith("I"):
        clear = image.info.get("transparency")
        return (np.asarray(image) != clear).astype(np.float32) if isinstance(clear, int) else None
    if image.mode == "F" or not image.has_transparency_data:
        return None
    return unit(image.convert("RGBA").getchannel("A"))


def colours(image: Image.Image, profile: object, label: str) -> Float32:
    """Pixels (H, W, 3) in [0, 1], sRGB, of an image of any mode.

    Args:
        image: the image.
        profile: bytes of its ICC profile; anything else, or a damaged one, counts as sRGB.
        label: what an error calls it.

    Raises:
        ImageError: deep greyscale with values out of range.
    """
    known = profile if isinstance(profile, bytes) else b""
    if image.mode.startswith("I") or image.mode == "F":
        grey = _deep_grey(image, label)
        if not known:
            return np.repeat(grey[..., None], 3, axis=2)
        image = Image.fromarray(to_bytes(grey))
    elif image.mode in ("1", "L", "LA"):
        image = image.convert("L")
    elif image.mode != "CMYK":
        image = image.convert("RGB")
    return unit(_to_srgb(image, known) if known else image.convert("RGB"))


def _deep_grey(image: Image.Image, label: str) -> Float32:
    """Greyscale of more than 8 bits: 16-bit integers, or floats that are in [0, 1] already."""
    values = np.asarray(image).astype(np.float32)
    top = 1.0 if image.mode == "F" else 65535.0
    if not (np.min(values) >= 0 and np.max(values) <= top):  # NaN fails both
        raise ImageError(f"{label} has values outside 0 to {top:g}; store it as 8 or 16 bit")
    return cast(Float32, values / np.float32(top))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert L, RGB or CMYK colours from their ICC profile to sRGB; RGB is returned."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _PROFILE_MODES.get(source.profile.xcolor_space.strip(), "")
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if mode != image.mode:
            return image.convert("RGB")  # the profile belongs to other colours
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=_EXACT,
        )
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    return cast(Image.Image, converted)


@cache
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, with a fixed date so that equal pictures make equal files."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]
