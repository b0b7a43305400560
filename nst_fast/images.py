"""Pictures: decode to upright sRGB, resize, lay out for the network, write atomically.

Pictures are float32 in [0, 1], sRGB encoded, rows from the top, with an optional alpha plane that
is never multiplied into the colours.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import stat
import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from nst_fast.errors import ImageError
from nst_fast.host import Float32

MAX_PIXELS = 178_000_000  # about 2 GB once decoded; Pillow calls more a decompression bomb
MIN_SIDE = 16  # pixels; the deepest tap of VGG-19 sees one value for 16 x 16 pixels

# Readers that decode in-process; others (PostScript) would start programs of their own.
READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
WRITABLE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error)
# Little CMS approximates by default, and is 10 levels off in the shadows of linear grey.
_EXACT = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_EMPTY = "{} is empty; the download or copy may have failed, fetch it again"
_PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) float32 in [0, 1], sRGB encoded, upright.
        alpha: (H, W) float32 in [0, 1], 1 is opaque; None where the picture has no transparency.
    """

    pixels: Float32
    alpha: Float32 | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.pixels.shape[:2]
        return width, height

    @cached_property
    def digest(self) -> str:
        """Hash of all that is in it; taken once, so leave the arrays as they are."""
        state = hashlib.blake2b(repr(self.size).encode(), digest_size=16)
        for plane in (self.pixels, self.alpha):
            if plane is not None:
                state.update(np.ascontiguousarray(plane).data)
        return state.hexdigest()


ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any] | Picture


# ---------------------------------------------------------------------------------------- reading


def load(source: ImageLike, *, name: str | None = None) -> Picture:
    """Decode a picture from a file, a Pillow image or an array.

    EXIF orientation is applied. Colours are converted to sRGB by the embedded ICC profile; without
    a profile, or with a damaged one, they are taken as sRGB. An animation gives its first frame.
    16-bit greyscale keeps its precision; Pillow reduces 16-bit colour to 8 bits. The colours of
    transparent pixels are kept as they are stored.

    Args:
        source: path; Pillow image; or array of shape (H, W), (H, W, 3) or (H, W, 4), either uint8
            or floating point in [0, 1], sRGB encoded. A Picture is returned as it is.
        name: what error messages call the picture; by default its path, or "image".

    Raises:
        ImageError: the file is missing, unreadable, no picture or damaged; the array has a shape,
            type or value that is not listed above; a side is below ``MIN_SIDE`` pixels, or the
            picture above ``MAX_PIXELS`` (found from the header, before decoding).
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "image")
    if isinstance(source, Image.Image):
        label = name or "image"
        with _decoding(label):
            return _from_pillow(source, label)
    if not isinstance(source, str | os.PathLike):
        kinds = "a path, a Pillow image or a numpy array"
        raise ImageError(f"{name or 'image'}: give {kinds}, not {type(source).__name__}")
    label = name or os.fspath(source)
    check_input(Path(source), label)
    with _decoding(label), Image.open(source, formats=READABLE) as image:
        return _from_pillow(image, label)


def decode(data: bytes, *, name: str) -> Picture:
    """Decode the bytes of a picture file, as :func:`load` does those of a path.

    Args:
        data: the whole file.
        name: what error messages call the picture.

    Raises:
        ImageError: the bytes are no picture, damaged, too small or too large.
    """
    if not data:
        raise ImageError(_EMPTY.format(name))
    with _decoding(name), Image.open(io.BytesIO(data), formats=READABLE) as image:
        return _from_pillow(image, name)


def check_input(path: Path, label: str) -> None:
    """Refuse, before it is opened, a path that leads to no readable file.

    Raises:
        ImageError: the path is missing, may not be read, is empty, or is not a regular file.
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
    if status.st_size == 0:
        raise ImageError(_EMPTY.format(label))


@contextlib.contextmanager
def _decoding(label: str) -> Iterator[None]:
    """Keep Pillow's warnings in, and turn its errors into ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError:
            raise ImageError(
                f"{label} has more than {MAX_PIXELS // 10**6} megapixels; scale it down first"
            ) from None
        except UnidentifiedImageError:
            raise ImageError(
                f"{label} is not an image that can be read; use PNG, JPEG, WebP or TIFF"
            ) from None
        except PermissionError:
            raise ImageError(f"{label}: permission denied; make the file readable") from None
        except _DECODING_ERRORS as error:
            reason = _reason(error)
            raise ImageError(
                f"{label} cannot be decoded ({reason}); use an intact copy or another format"
            ) from None


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0]


def _check_size(width: int, height: int, label: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{label} is {width}×{height} pixels; each side must have {MIN_SIDE} or more"
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{label} is {width}×{height} pixels, more than {MAX_PIXELS // 10**6} megapixels; "
            "scale it down first"
        )


def _from_pillow(image: Image.Image, label: str) -> Picture:
    _check_size(*image.size, label)
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("La", "RGBa"):  # colours times alpha, which Pillow converts to these alone
        upright = upright.convert(upright.mode.upper())
    alpha = None
    if upright.has_transparency_data and not upright.mode.startswith("I"):
        alpha = _unit(upright.convert("RGBA").getchannel("A"))
    return Picture(_colours(upright, image.info.get("icc_profile"), label), alpha)


def _colours(image: Image.Image, profile: bytes | None, label: str) -> Float32:
    """Pixels (H, W, 3) in sRGB of an image of any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = _deep_grey(image, label)
        if not profile:
            return np.repeat(grey[..., None], 3, axis=2)
        image = Image.fromarray(_to_bytes(grey))
    elif image.mode in ("1", "L", "LA"):
        image = image.convert("L")
    elif image.mode != "CMYK":
        image = image.convert("RGB")
    return _unit(_to_srgb(image, profile) if profile else image.convert("RGB"))


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
            ImageCms.ImageCmsProfile(io.BytesIO(_srgb_profile())),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=_EXACT,
        )
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    return cast(Image.Image, converted)


@cache
def _srgb_profile() -> bytes:
    """The ICC profile of sRGB, with a fixed date so that equal pictures make equal files."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


def _from_array(array: NDArray[Any], label: str) -> Picture:
    grey = array.ndim == 2
    if not grey and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(
            f"{label}: an array must have shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}"
        )
    _check_size(array.shape[1], array.shape[0], label)
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


def _unit(image: Image.Image) -> Float32:
    return np.asarray(image).astype(np.float32) / np.float32(255)


def _to_bytes(values: Float32) -> NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------------------------- size and layout


def fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height of the same aspect whose longer side is ``longest`` pixels.

    Args:
        size: width and height, in pixels.
        longest: the longer side wanted, in pixels; the other is rounded, and at least 1.
    """
    long = max(size)
    width, height = (max(1, (2 * side * longest + long) // (2 * long)) for side in size)
    return width, height


def resize(picture: Picture, width: int, height: int) -> Picture:
    """Resample to ``width`` × ``height`` pixels (Lanczos, in float32, clamped to [0, 1])."""
    if picture.size == (width, height):
        return picture
    planes = [_resample(picture.pixels[..., c], width, height) for c in range(3)]
    alpha = None if picture.alpha is None else _resample(picture.alpha, width, height)
    return Picture(np.stack(planes, axis=2), alpha)


def _resample(plane: Float32, width: int, height: int) -> Float32:
    image = Image.fromarray(np.ascontiguousarray(plane))
    resized: Float32 = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return np.clip(resized, 0, 1)


def to_tensor(pixels: Float32) -> Float32:
    """(H, W, 3) pixels as a C-contiguous (1, 3, H, W) tensor; always a copy."""
    return np.array(pixels.transpose(2, 0, 1)[None], dtype=np.float32, order="C")


# ---------------------------------------------------------------------------------------- writing


def check_output(path: str | os.PathLike[str], inputs: Iterable[ImageLike] = ()) -> None:
    """Refuse, before any work is done, an output path that could not be written.

    Args:
        path: where a picture shall be written; an existing picture there may be replaced.
        inputs: the pictures that are read; ``path`` must not lead to one of them.

    Raises:
        ImageError: ``path`` is a folder, has an extension that is not in ``WRITABLE``, lies in a
            folder that is missing or not writable, is write-protected, or is one of ``inputs``.
    """
    target = Path(path)
    if os.path.isdir(target):
        raise ImageError(f"output {path} is a folder; name a file in it, such as stylized.png")
    if target.suffix.lower() not in WRITABLE:
        raise ImageError(f"output {path} must end in one of {', '.join(WRITABLE)}")
    for source in inputs:
        if isinstance(source, str | os.PathLike) and _same_file(target, Path(source)):
            raise ImageError(f"output {path} is the input {source}; choose another name")
    try:
        if not (stat.S_ISREG(target.stat().st_mode) and os.access(target, os.W_OK)):
            raise ImageError(f"output {path} may not be overwritten; choose another name")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = _reason(error)
        raise ImageError(f"output {path} cannot be used ({reason}); choose another name") from None
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
    probe = _temporary(folder)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ImageError(
            f"output {target}: folder {folder} is not writable ({_reason(error)}); choose another"
        ) from None


def _temporary(folder: Path) -> Path:
    return folder / f".nst-fast-{secrets.token_hex(8)}.tmp"


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
    temporary = _temporary(target.parent)
    try:
        with temporary.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ImageError(
            f"output {path} cannot be written ({_reason(error)}); choose another folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


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
            buffer, format=form, icc_profile=_srgb_profile(), **options[form]
        )
    except (OSError, ValueError) as error:
        size = "{}×{}".format(*picture.size)
        raise ImageError(
            f"output {path}: {form} cannot hold {size} pixels ({_reason(error)}); use .png"
        ) from None
    return buffer.getvalue()


def to_pillow(picture: Picture, *, flatten: bool = False) -> Image.Image:
    """The picture in 8 bits, RGB or RGBA; ``flatten`` lays it on white instead of keeping alpha."""
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is None:
        return Image.fromarray(_to_bytes(pixels))
    if flatten:
        cover = alpha[..., None]
        return Image.fromarray(_to_bytes(pixels * cover + (1 - cover)))
    return Image.fromarray(_to_bytes(np.dstack((pixels, alpha))))
