"""16 bits a colour: Pillow has no such colours, so they are read in two halves, and written here.

Pillow decodes these files, and hands on the upper byte of each value. Told that the bytes stand in
the other order, it hands on the lower one.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_fast.host import Float32
from nst_fast.images.png import SIGNATURE, XMP, chunk
from nst_fast.images.tiff import XMP_TAG

Values = NDArray[np.uint16]

_OTHER = {";16B": ";16L", ";16L": ";16B", ";16N": ";16L" if sys.byteorder == "big" else ";16B"}
_WHOLE = ("RGB", "RGBX", "RGBA")  # colours that Pillow takes the upper bytes of, and no more
_GREY_ALPHA = "LA;16B"  # as bytes, in the layout of 8-bit RGBA
_BLOCK = 1 << 20  # bytes of rows that filters are tried on at once


def lower(image: Image.Image, again: Callable[[], Image.Image]) -> Image.Image | None:
    """The lower bytes of a picture of 16 bits a colour, in the mode that Pillow gives the upper.

    Args:
        image: as it was opened, not loaded.
        again: opens another one like it.

    Returns:
        The image, loaded; None where there are no such colours, or they are multiplied by their
        alpha. Of planes that libtiff puts together it has the upper bytes again, which is 8 bits.
    """
    tiles: list[Any] = getattr(image, "tile", [])
    modes = {_raw_mode(tile) for tile in tiles}
    if len(modes) != 1:
        return None
    (mode,) = modes
    if mode == _GREY_ALPHA:
        other = "RGBA"
    elif mode[:-4] in _WHOLE and mode[-4:] in _OTHER:
        other = mode[:-4] + _OTHER[mode[-4:]]
    else:
        return None
    found = again()
    cast(Any, found).tile = [_with_mode(tile, other) for tile in cast(Any, found).tile]
    found.load()
    if mode == _GREY_ALPHA:
        _, grey, _, alpha = found.split()
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    return found


def _raw_mode(tile: Any) -> str:
    """How a decoder is told that the bytes are laid out."""
    arguments = getattr(tile, "args", None)
    found = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return found if isinstance(found, str) else ""


def _with_mode(tile: Any, mode: str) -> Any:
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))


def joined(upper: Image.Image, low: Image.Image) -> Values:
    """Values (H, W, 3 or 4) of both halves."""
    both: Values = np.asarray(upper).astype(np.uint16) << 8 | np.asarray(low)
    return both


def values(plane: Float32) -> Values:
    """Values in [0, 1] in 16 bits, rounded; those outside are clamped."""
    rounded = np.rint(np.clip(plane, 0, 1) * np.float32(65535))
    return cast(Values, rounded.astype(np.uint16))


def to_png(picture: Values, profile: bytes, xmp: bytes) -> bytes:
    """A PNG of (H, W, 3 or 4) values."""
    height, width, channels = picture.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    packer = zlib.compressobj(6)
    pixels = b"".join([*map(packer.compress, _filtered(picture)), packer.flush()])
    chunks = [(b"IHDR", header), (b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))]
    if xmp:
        chunks.append((b"iTXt", XMP + bytes(5) + xmp))
    chunks += [(b"IDAT", pixels), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(*each) for each in chunks)


def _filtered(picture: Values) -> Iterator[bytes]:
    """Rows by the filter that leaves the smallest sum of bytes (PNG 1.2, 6 and 9.6)."""
    height, width, channels = picture.shape
    step = 2 * channels  # bytes of a pixel
    above = np.zeros((1, step * (width + 1)), np.uint8)
    most = max(1, _BLOCK // above.size)
    for first in range(0, height, most):
        part = picture[first : first + most].astype(">u2").view(np.uint8)
        rows = np.pad(part.reshape(len(part), -1), ((0, 0), (step, 0)))
        up = np.concatenate((above, rows[:-1]))
        above = rows[-1:]
        here, left, over, corner = rows[:, step:], rows[:, :-step], up[:, step:], up[:, :-step]
        tried = np.stack((here - left, here - over, here - _paeth(left, over, corner)))
        cost = np.minimum(tried, -tried).sum(axis=2, dtype=np.int64)
        best = cost.argmin(axis=0)
        chosen = tried[best, np.arange(len(rows))]
        yield np.column_stack((np.array([1, 2, 4], np.uint8)[best], chosen)).tobytes()


def _paeth(left: NDArray[Any], over: NDArray[Any], corner: NDArray[Any]) -> NDArray[np.uint8]:
    """Of three neighbours the one nearest to left + over - corner (PNG 1.2, 6.6)."""
    a, b, c = (each.astype(np.int16) for each in (left, over, corner))
    from_left, from_over, from_corner = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    nearest = np.where(from_over <= from_corner, over, corner)
    return np.where((from_left <= from_over) & (from_left <= from_corner), left, nearest)


def to_tiff(picture: Values, profile: bytes, xmp: bytes) -> bytes:
    """A TIFF of (H, W, 3 or 4) values."""
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(
        file,
        picture,
        photometric="rgb",
        extrasamples=["unassalpha"] if picture.shape[2] == 4 else None,
        compression="zlib",
        predictor=True,
        iccprofile=profile,
        extratags=[(XMP_TAG, 1, len(xmp), xmp, True)] if xmp else [],
        software=False,
        metadata=None,
    )
    return file.getvalue()
