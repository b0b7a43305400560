"""Colours of a Pillow image of any mode, to float32 in sRGB, by its ICC profile; and back.

Pillow converts them in 8 bits; deeper ones are left to imagecodecs, where it is installed.
"""

from __future__ import annotations

import io
import logging
import struct
from functools import cache
from importlib.util import find_spec
from typing import cast

import numpy as np
from PIL import Image, ImageCms

from nst_fast.errors import ImageError
from nst_fast.host import Float32
from nst_fast.images.picture import to_bytes, unit
from nst_fast.images.sixteen import Values

logger = logging.getLogger(__name__)
INSTALL_ICC = 'pip install "nst-fast[icc]"'
# Little CMS approximates by default, and is 10 levels off in the shadows of linear grey.
_EXACT = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}


def alpha(image: Image.Image, deep: Values | None = None) -> Float32 | None:
    """Opacity (H, W) in [0, 1] by an alpha plane, a palette or a transparent colour.

    ``deep`` are the image's values in 16 bits, where it has them.
    """
    if deep is not None and deep.shape[2] == 4:
        return _unit(deep[..., 3])
    if image.mode.startswith("I"):
        clear = image.info.get("transparency")
        return (np.asarray(image) != clear).astype(np.float32) if isinstance(clear, int) else None
    if image.mode == "F" or not image.has_transparency_data:
        return None
    return unit(image.convert("RGBA").getchannel("A"))


def colours(image: Image.Image, profile: bytes, label: str, deep: Values | None = None) -> Float32:
    """Pixels (H, W, 3) in [0, 1], sRGB, of an image of any mode.

    Args:
        image: the image.
        profile: its ICC profile; an empty or a damaged one counts as sRGB.
        label: what an error calls it.
        deep: its values in 16 bits, where it has them.

    Raises:
        ImageError: deep greyscale with values out of range.
    """
    if deep is not None:
        found = _deep_to_srgb(_unit(deep[..., :3]), profile, label)
        if found is not None:
            return found
    if image.mode.startswith("I") or image.mode == "F":
        found = _deep_to_srgb(_deep_grey(image, label), profile, label)
        if found is not None:
            return found if found.ndim == 3 else np.repeat(found[..., None], 3, axis=2)
        image = Image.fromarray(to_bytes(_deep_grey(image, label)))
    elif image.mode in ("1", "L", "LA"):
        image = image.convert("L")
    elif image.mode != "CMYK":
        image = image.convert("RGB")
    return unit(_to_srgb(image, profile) if profile else image.convert("RGB"))


def rgb_profile(profile: bytes) -> bytes:
    """The profile where its colours are RGB; empty where they are not, or it is damaged."""
    return profile if _space(profile) == "RGB" else b""


def _space(profile: bytes) -> str:
    """Of which colours a profile is, such as "RGB" or "GRAY"; empty where it cannot be read."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError):
        return ""


def from_srgb(pixels: Float32, profile: bytes, *, deep: bool) -> Float32 | None:
    """Pixels (H, W, 3) in [0, 1], sRGB, as the colours of an RGB profile.

    Args:
        pixels: the pixels.
        profile: the profile.
        deep: whether to more than the 8 bits that a file may have; needs imagecodecs.

    Returns:
        Pixels of the same shape; None where the profile cannot be converted to: those of some
        scanners can only be read.
    """
    if profile == srgb_profile():
        return pixels
    if deep:
        return _transformed(pixels, srgb_profile(), profile)
    try:
        target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        source = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
        image = Image.fromarray(to_bytes(pixels))
        return unit(_converted(image, source, target))
    except (ImageCms.PyCMSError, OSError):
        return None


def can_go_deep() -> bool:
    """Whether what converts colours of 16 bits is installed."""
    return find_spec("imagecodecs") is not None


def _deep_to_srgb(values: Float32, profile: bytes, label: str) -> Float32 | None:
    """Values (H, W) or (H, W, 3) in [0, 1] in sRGB; None where 8 bits have to do."""
    space = _space(profile)
    if values.ndim == 2 and space == "RGB":
        values = np.repeat(values[..., None], 3, axis=2)
    if profile == srgb_profile() or space != {2: "GRAY", 3: "RGB"}[values.ndim]:
        return values
    if can_go_deep():
        return _transformed(values, profile, srgb_profile())
    logger.warning(
        "%s has 16 bits and a colour profile, which imagecodecs converts: "
        "without it, it is read in 8 bits; %s",
        label,
        INSTALL_ICC,
    )
    return None


def _transformed(values: Float32, source: bytes, target: bytes) -> Float32 | None:
    """Grey (H, W) or RGB (H, W, 3) from one profile to RGB of another, in float32; or None."""
    import imagecodecs

    try:
        found = imagecodecs.cms_transform(
            np.ascontiguousarray(values),
            source,
            target,
            colorspace="gray" if values.ndim == 2 else "rgb",
            outcolorspace="rgb",
            outdtype="float32",
            intent=ImageCms.Intent.RELATIVE_COLORIMETRIC.value,
            flags=_EXACT.value,
        )
    except imagecodecs.CmsError:
        return None
    return cast(Float32, np.clip(found, 0, 1))


def _unit(values: Values) -> Float32:
    return cast(Float32, values.astype(np.float32) / np.float32(65535))


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
        return _converted(image, source, ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())))
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")


def _converted(
    image: Image.Image, source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile
) -> Image.Image:
    """In 8 bits, to RGB."""
    found = ImageCms.profileToProfile(
        image,
        source,
        target,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=_EXACT,
    )
    return cast(Image.Image, found)


@cache
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, with a fixed date so that equal pictures make equal files."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]
