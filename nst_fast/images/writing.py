"""Pictures to files: what can be written where, whole or not at all."""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nst_fast.errors import ImageError, SettingsError, one_line
from nst_fast.files import temporary_name, write_atomically
from nst_fast.host import Float32
from nst_fast.images import colour, sixteen
from nst_fast.images.colour import INSTALL_ICC, srgb_profile
from nst_fast.images.formats import FORMATS, WRITABLE
from nst_fast.images.picture import ImageLike, Picture, to_bytes
from nst_fast.images.png import XMP
from nst_fast.images.tiff import XMP_TAG
from nst_fast.output_options import LOSSLESS, OutputOptions

QUALITY = 95  # of JPEG, with full colour resolution, and WebP
LOSSY = ("JPEG", "WEBP")
MOST_JPEG = 65_000  # bytes of metadata: they are in one segment, whose length has 16 bits
DEEP: Mapping[str, Callable[[sixteen.Values, bytes, bytes], bytes]] = {
    "PNG": sixteen.to_png,
    "TIFF": sixteen.to_tiff,
}

logger = logging.getLogger(__name__)


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


def check_options(path: str | os.PathLike[str], options: OutputOptions) -> None:
    """Refuse, before any work is done, what the format of a file does not have.

    Raises:
        SettingsError: bits, quality or profile; names the option and the remedy.
    """
    form = WRITABLE[Path(path).suffix.lower()]
    name = next(each.name for each in FORMATS if each.reader == form)
    if options.bits == 16 and form not in DEEP:
        raise SettingsError(f"bits: {path} is {name}, which has 8 bits a colour; use .png or .tif")
    if options.bits == 16 and options.profile == "keep" and not colour.can_go_deep():
        raise SettingsError(f"profile: keep needs imagecodecs for 16 bits; run: {INSTALL_ICC}")
    if options.quality is not None and form not in LOSSY:
        raise SettingsError(
            f"quality: {path} is {name}, which loses nothing; leave it out, or use .jpg or .webp"
        )
    if options.quality == LOSSLESS and form != "WEBP":
        raise SettingsError(f"quality: {name} cannot be lossless; use .webp or .png for {path}")


def save(
    picture: Picture,
    path: str | os.PathLike[str],
    options: OutputOptions | None = None,
    *,
    xmp: bytes = b"",
) -> None:
    """Write a picture as PNG, JPEG, WebP or TIFF, by the extension, with its ICC profile.

    Alpha is kept, except by JPEG, which has none: there the picture is laid on white. The file
    appears whole or not at all: it is written under a temporary name in the same folder, flushed to
    the disk, then renamed. A symbolic link is followed, not replaced.

    Args:
        picture: what to write.
        path: where; an existing file is replaced.
        options: of these ``bits``, ``profile`` and ``quality``; None for the defaults.
        xmp: a packet of metadata to put into the file; where it has no room, it is left out.

    Raises:
        ImageError: ``path`` is refused by ``check_output``, the format cannot hold the picture, or
            writing fails; nothing is left behind then.
        SettingsError: ``options`` are refused by ``check_options``.
    """
    check_output(path)
    payload = encode(picture, os.fspath(path), options, xmp=xmp)
    write(path, payload)


def write(path: str | os.PathLike[str], payload: bytes) -> None:
    """Write a file as :func:`save` does; raises ImageError."""
    try:
        write_atomically(Path(path).resolve(), payload)
    except OSError as error:
        raise ImageError(
            f"output {path} cannot be written ({one_line(error)}); choose another folder"
        ) from None


def encode(
    picture: Picture, path: str, options: OutputOptions | None = None, *, xmp: bytes = b""
) -> bytes:
    """The bytes of the whole file that :func:`save` would write.

    Raises:
        ImageError: the format of the ending cannot hold the picture.
        SettingsError: ``options`` are refused by ``check_options``.
    """
    options = options or OutputOptions()
    check_options(path, options)
    form = WRITABLE[Path(path).suffix.lower()]
    if not np.isfinite(picture.pixels).all():
        raise ImageError(f"output {path}: the picture has values that are not numbers")
    if form == "JPEG" and len(xmp) > MOST_JPEG:
        logger.warning("%s: JPEG has no room for how it was made; see --sidecar", path)
        xmp = b""
    picture, profile = _in_profile(picture, path, options)
    try:
        if options.bits == 16:
            planes = picture.pixels if picture.alpha is None else _stacked(picture)
            return DEEP[form](sixteen.values(planes), profile, xmp)
        buffer = io.BytesIO()
        to_pillow(picture, flatten=form == "JPEG").save(
            buffer, format=form, icc_profile=profile, **_arguments(form, options.quality, xmp)
        )
    except (OSError, ValueError) as error:
        size = "{}×{}".format(*picture.size)
        raise ImageError(
            f"output {path}: {form} cannot hold {size} pixels ({one_line(error)}); use .png"
        ) from None
    return buffer.getvalue()


def _in_profile(picture: Picture, path: str, options: OutputOptions) -> tuple[Picture, bytes]:
    """The picture in the colours that are asked for, and their profile."""
    if options.profile == "keep" and picture.profile:
        deep = options.bits == 16
        pixels = colour.from_srgb(picture.pixels, picture.profile, deep=deep)
        if pixels is not None:
            return replace(picture, pixels=pixels), picture.profile
        logger.warning("%s is in sRGB: the content's profile can only be read", path)
    return picture, srgb_profile()


def _arguments(form: str, quality: int | str | None, xmp: bytes) -> dict[str, Any]:
    """What Pillow is told besides the profile."""
    lossless = quality == LOSSLESS
    level = {} if lossless else {"quality": quality or QUALITY}
    found: dict[str, dict[str, Any]] = {
        "PNG": {},
        "JPEG": {"subsampling": 0, **level},
        "WEBP": {"exact": True, "lossless": lossless, **level},
        "TIFF": {"compression": "tiff_adobe_deflate"},
    }
    if not xmp:
        return found[form]
    if form == "PNG":
        info = PngInfo()
        info.add_itxt(XMP.decode(), xmp.decode())
        return found[form] | {"pnginfo": info}
    return found[form] | ({"tiffinfo": {XMP_TAG: xmp}} if form == "TIFF" else {"xmp": xmp})


def _stacked(picture: Picture) -> Float32:
    """Colours and opacity, (H, W, 4)."""
    return cast(Float32, np.dstack((picture.pixels, cast(Float32, picture.alpha))))


def to_pillow(picture: Picture, *, flatten: bool = False) -> Image.Image:
    """The picture in 8 bits, RGB or RGBA; ``flatten`` lays it on white instead of keeping alpha."""
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is None:
        return Image.fromarray(to_bytes(pixels))
    if flatten:
        cover = alpha[..., None]
        return Image.fromarray(to_bytes(pixels * cover + (1 - cover)))
    return Image.fromarray(to_bytes(_stacked(picture)))
