"""From the bytes of a file to an upright Pillow image, decoded by the one reader it is for."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

from PIL import Image, UnidentifiedImageError, features

from nst_fast.errors import ImageError, one_line
from nst_fast.images import boxes, jpeg, jxl, png, sixteen, tiff
from nst_fast.images.formats import INSTALL, Format, available, identify
from nst_fast.images.turning import upright

MAX_PIXELS = 178_000_000  # about 2 GB once decoded; Pillow calls more a decompression bomb
MIN_SIDE = 16  # pixels; the deepest tap of VGG-19 sees one value for 16 x 16 pixels

# What is wrong beside the pixels must not stop a picture: it is taken out before Pillow looks.
BARE: dict[str, Callable[[bytes], tuple[bytes, dict[str, Any]]]] = {
    "AVIF": boxes.bare,
    "HEIF": boxes.bare,
    "JPEG": jpeg.bare,
    "PNG": png.bare,
    "TIFF": tiff.bare,
}


def readable(start: bytes, label: str) -> Format:
    """The format of a file, by its first ``START`` bytes or all of it.

    Raises:
        ImageError: it is none that is read, or what reads it is missing; names the remedy.
    """
    form = identify(start)
    if form is None:
        raise ImageError(f"{label} is not an image that can be read; use PNG, JPEG, WebP or TIFF")
    if form.remedy:
        raise ImageError(f"{label} is {form.name}; {form.remedy}")
    if form.needs and not available(form):
        raise ImageError(f"{label} is {form.name}, which {form.needs} reads; {INSTALL}")
    if form.reader == "AVIF" and not features.check("avif"):
        remedy = "pip install --upgrade pillow"
        raise ImageError(f"{label} is AVIF, which Pillow 11.3 and later read; {remedy}")
    return form


class Decoded(NamedTuple):
    """A file as it was decoded.

    Attributes:
        image: upright, with ``icc_profile`` in its ``info``.
        deep: the same in 16 bits, (H, W, 3 or 4), where the file has such colours.
    """

    image: Image.Image
    deep: sixteen.Values | None


def decoded(data: bytes, label: str) -> Decoded:
    """The first or main picture of a file.

    Raises:
        ImageError: the file is refused by :func:`readable`, damaged, too large or too small.
    """
    form = readable(data, label)
    with decoding(label):
        pixels, info = BARE.get(form.reader, _as_it_is)(data)
        with _open(form, pixels, label) as image:
            check_size(*image.size, label)
            image.info.update(info)
            low = sixteen.lower(image, lambda: _open(form, pixels, label))
            image.load()
            turned = upright(image)
            if low is None:
                return Decoded(turned, None)
            low.info.update(info)
            return Decoded(turned, sixteen.joined(turned, upright(low)))


def _as_it_is(data: bytes) -> tuple[bytes, dict[str, Any]]:
    return data, {}


def _open(form: Format, data: bytes, label: str) -> Image.Image:
    file = io.BytesIO(data)
    if form.reader == "HEIF":
        from pillow_heif import HeifImageFile  # used as it is, not registered with Pillow

        heif: Image.Image = HeifImageFile(file)
        return heif
    if form.reader == "JXL":
        check_size(*jxl.size(data), label)  # it decodes at once
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile

        image = JXLImageFile(file)
        if not image.jpeg:  # the decoder has turned it; a JPEG in it is as it was
            image.info.pop("exif", None)
        return cast(Image.Image, image)
    return Image.open(file, formats=(form.reader,))


def check_size(width: int, height: int, label: str) -> None:
    """Refuse a picture by its size.

    Raises:
        ImageError: a side is below ``MIN_SIDE`` or it has more than ``MAX_PIXELS``.
    """
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{label} is {width}×{height} pixels; each side must have {MIN_SIDE} or more"
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{label} is {width}×{height} pixels, more than {MAX_PIXELS // 10**6} megapixels; "
            "scale it down first"
        )


@contextlib.contextmanager
def decoding(label: str) -> Iterator[None]:
    """Keep warnings of decoders in, and turn their errors, which are of any kind, into ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise ImageError(
                f"{label} has more than {MAX_PIXELS // 10**6} megapixels; scale it down first"
            ) from None
        except UnidentifiedImageError:
            raise ImageError(
                f"{label} cannot be decoded (its header is damaged); use an intact copy"
            ) from None
        except PermissionError:
            raise ImageError(f"{label}: permission denied; make the file readable") from None
        except Exception as error:
            raise ImageError(
                f"{label} cannot be decoded ({one_line(error)}); "
                "use an intact copy or another format"
            ) from None
