"""Metadata that nobody asked for cannot stop a picture, nor change it."""

from __future__ import annotations

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import (
    SHORT,
    directory,
    matrix_profile,
    noise,
    number,
    png,
    png_chunk,
    tiff,
)
from PIL import Image, ImageFile, PngImagePlugin

from nst_fast import images
from nst_fast.errors import ImageError

UPRIGHT = np.zeros((32, 48, 3), np.uint8)
UPRIGHT[:16, :16] = 250  # a corner that no turn or mirror leaves in place
UPRIGHT[:, 40:, 0] = 120
TURNED = {  # as it is stored, by its orientation
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: UPRIGHT[:, ::-1].transpose(1, 0, 2),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: UPRIGHT[::-1].transpose(1, 0, 2),
}


def stored(orientation: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(TURNED[orientation]))


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def assert_upright(picture: images.Picture) -> None:
    assert picture.pixels.shape == UPRIGHT.shape
    assert np.abs(picture.pixels - UPRIGHT / 255).mean() < 0.02


# ----------------------------------------------------------------------------------------- EXIF


@st.composite
def odd_entries(draw):
    """A tag of any type and value: names, resolution, folders below, XMP, profile, copyright."""
    tag = draw(st.sampled_from([271, 282, 283, 296, 306, 700, 33432, 34665, 34853, 40965, 59932]))
    kind = draw(st.integers(0, 20))
    return tag, kind, draw(st.integers(0, 300)), draw(st.binary(max_size=24))


def exif_of(orientation: int, odd: list, order: str = "<") -> bytes:
    entries = [number(274, orientation, kind=SHORT, order=order), *odd]
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return b"Exif\0\0" + head + directory(entries, 8, order=order)


def carried(form: str, orientation: int, exif: bytes) -> bytes:
    """A turned picture in a file of that format, with that EXIF put in by hand or by Pillow."""
    image = stored(orientation)
    if form == "PNG":
        rows = np.asarray(image).reshape(image.height, -1)
        return png(*image.size, rows, chunks=[(b"eXIf", exif.removeprefix(b"Exif\0\0"))])
    if form == "JPEG":
        plain = saved(image, form, quality=95)
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        return plain[:2] + segment + plain[2:]
    return saved(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
    st.integers(1, 8),
    st.lists(odd_entries(), max_size=3),
    st.sampled_from("<>"),
)
def test_odd_tags_do_not_matter(form, orientation, odd, order):
    exif = exif_of(orientation, odd, order)
    assert_upright(images.decode(carried(form, orientation, exif), name="a"))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.lists(odd_entries(), max_size=3, unique_by=lambda entry: entry[0]))
def test_odd_tags_of_a_tiff_do_not_matter(orientation, odd):
    grey = np.ascontiguousarray(TURNED[orientation][..., 1])
    data = tiff([(grey, [number(274, orientation, kind=SHORT), *odd])])
    assert_upright_grey(images.decode(data, name="a"))


def assert_upright_grey(picture: images.Picture) -> None:
    np.testing.assert_array_equal(picture.pixels[..., 0], UPRIGHT[..., 1] / np.float32(255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(form, orientation):
    """The eight turns of the EXIF standard (2.3, tag 274), written out as array operations."""
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(stored(orientation), form, exif=exif, quality=95)
    assert_upright(images.decode(data, name="a"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "HEIF", "JXL"])
@pytest.mark.parametrize("exif", [b"", b"no TIFF", b"II*\0\x08\0\0\0", b"II*\0" + b"\xff" * 30])
def test_exif_that_is_none_does_not_matter(form, exif):
    if form == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        file = io.BytesIO()
        pillow_heif.from_pillow(stored(1)).save(file, exif=b"Exif\0\0" + exif, quality=95)
        data = file.getvalue()
    elif form == "JXL":
        pytest.importorskip("pillow_jxl")
        data = saved(stored(1), form, exif=exif or None, use_container=True, lossless=True)
    else:
        data = carried(form, 1, b"Exif\0\0" + exif)
    assert_upright(images.decode(data, name="a"))


def avif(orientation: int, entry: bytes) -> bytes:
    """An AVIF that is turned by its own boxes, in whose EXIF the entry of Make begins like that."""
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "a maker of cameras"
    data = saved(stored(orientation), "AVIF", exif=exif, quality=95)
    tag_and_type = struct.pack(">HH", 271, 2)
    assert data.count(tag_and_type) == 1
    return data.replace(tag_and_type, entry)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("entry", [(271, 2), (271, 5), (274, 3), (0, 0), (282, 2)])
def test_avif_is_turned_as_it_says_itself(orientation, entry):
    """Pillow keeps the turn in a box, and copies it to EXIF, which it cannot always write."""
    assert_upright(images.decode(avif(orientation, struct.pack(">HH", *entry)), name="a"))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heif_is_turned_once(orientation):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    exif = exif_of(orientation, [])
    pillow_heif.from_pillow(stored(orientation)).save(file, exif=exif, quality=95)
    # The writer puts the turn in a box, as telephones do; the EXIF says it again.
    assert_upright(images.decode(file.getvalue(), name="a"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_orientation_by_xmp(form, orientation):
    xmp = f'<x:xmpmeta><a tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=orientation % 2 == 0)
        data = saved(stored(orientation), form, pnginfo=info)
    else:
        data = saved(stored(orientation), form, xmp=xmp, quality=95)
    assert_upright(images.decode(data, name="a"))


def test_orientation_by_the_raw_profile_of_old_programs():
    body = exif_of(6, [])
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(body):8}\n{body.hex()}\n", zip=True)
    assert_upright(images.decode(saved(stored(6), "PNG", pnginfo=info), name="a"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_pillow_image_with_odd_exif_stays_as_it_was(form):
    exif = exif_of(6, [(271, 5, 1, struct.pack("<II", 1, 3)), (282, 2, 3, b"72\0")])
    image = Image.open(io.BytesIO(carried(form, 6, exif)))
    image.load()
    before = image.size, image.tobytes(), dict(image.info), dict(image.getexif())
    assert_upright(images.load(image))
    assert (image.size, image.tobytes(), dict(image.info), dict(image.getexif())) == before


# ------------------------------------------------------------------------------------------ PNG

PIXELS = noise(1, 24, 32, 3)
ROWS = PIXELS.reshape(24, -1)
LONG = zlib.compress(bytes(3 << 20), 1)


def exact(data: bytes) -> None:
    picture = images.decode(data, name="a")
    np.testing.assert_array_equal(picture.pixels, PIXELS / np.float32(255))
    assert picture.alpha is None


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
        (b"iTXt", b"XML:com.adobe.xmp\0\1"),
        (b"iTXt", b"note\0\0\0\0\0" + bytes(3 << 20)),
        (b"zTXt", b"note\0\0" + LONG),
        (b"zTXt", b"Raw profile type exif\0\0" + LONG),
        (b"zTXt", b"note\0\7packed in another way"),
        (b"iCCP", b"profile\0\0" + LONG),
        (b"iCCP", b"profile\0\0no zlib"),
        (b"iCCP", b""),
        (b"tEXt", b""),
        (b"pHYs", b"\0\1"),
        (b"gAMA", b"\0"),
        (b"cHRM", b"\0"),
        (b"sRGB", b""),
        (b"tIME", b""),
        (b"tRNS", b"\0"),
        (b"acTL", b"\0"),
        (b"fcTL", b"\0"),
        (b"fdAT", b""),
        (b"prVt", b"private"),
    ],
)
def test_chunks_beside_the_pixels_do_not_matter(chunk):
    """Neither before the pixels nor behind them, with right and wrong checksums."""
    exact(png(32, 24, ROWS, chunks=[chunk]))
    plain = png(32, 24, ROWS)
    for odd in (png_chunk(*chunk), png_chunk(*chunk, crc=0)):
        exact(plain[:33] + odd + plain[33:])
        exact(plain[:-12] + odd + plain[-12:])
        exact(plain[:-12] + odd[: len(odd) // 2 + 8])  # the file ends in it
    with Image.open(io.BytesIO(plain)) as image:  # what is said elsewhere is not changed
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
        assert PngImagePlugin.MAX_TEXT_CHUNK == ImageFile.SAFEBLOCK
        image.load()


def test_a_long_profile_is_followed():
    """As those of scanners, above the megabyte at which Pillow stops."""
    long = matrix_profile("bgr", 1.0)
    long = long + bytes((2 << 20) - len(long))
    long = struct.pack(">I", len(long)) + long[4:]
    data = png(32, 24, ROWS, chunks=[(b"iCCP", b"scanner\0\0" + zlib.compress(long))])
    short = png(
        32, 24, ROWS, chunks=[(b"iCCP", b"a\0\0" + zlib.compress(matrix_profile("bgr", 1.0)))]
    )
    found, expected = (images.decode(each, name="a").pixels for each in (data, short))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - PIXELS / 255).max() > 0.1


def packed_zeros(pieces: int, size: int) -> bytes:
    """Compressed once, and repeated: a full flush forgets what was before."""
    bomb = zlib.compressobj(9)
    piece = bomb.compress(bytes(size)) + bomb.flush(zlib.Z_FULL_FLUSH)
    checksum = (pieces * size % 65521) << 16 | 1  # Adler-32 of zeros
    return piece + piece[2:] * (pieces - 1) + b"\x03\0" + struct.pack(">I", checksum)


def test_packed_zeros_unpack():
    assert zlib.decompress(packed_zeros(3, 70_000)) == bytes(210_000)


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_chunk_that_unpacks_to_gigabytes_takes_no_memory(kind):
    packed = packed_zeros(32, 1 << 26)  # 2 GB
    words = {b"iCCP": b"a\0\0", b"zTXt": b"Raw profile type exif\0\0"}
    start = words.get(kind, b"XML:com.adobe.xmp\0\1\0\0\0")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exact(png(32, 24, ROWS, chunks=[(kind, start + packed)] * 20))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kB


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_pixels_are_refused(data):
    """A flipped bit anywhere in a critical chunk, or a cut before the last pixel."""
    whole = png(32, 24, ROWS)
    if data.draw(st.booleans()):
        bad = whole[: data.draw(st.integers(8, len(whole) - 28))]
    else:
        at = data.draw(st.integers(16, len(whole) - 13).filter(lambda i: not 33 <= i < 41))
        bad = bytearray(whole)
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ImageError, match=r"cannot be decoded|pixels"):
        images.decode(bytes(bad), name="a")


# ----------------------------------------------------------------------------------------- JPEG


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xE5, 0xED, 0xEF, 0xFE])
@pytest.mark.parametrize(
    "content",
    [
        b"Exif\0\0",
        b"http://ns.adobe.com/xap/1.0/\0<x",
        b"ICC_PROFILE\0\1",
        b"MPF\0MM\0*\0\0\0\x08\0\x01\xb0\0\0\0",
        b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0",
        bytes(60000),
    ],
)
def test_segments_beside_the_pixels_do_not_matter(marker, content):
    plain = saved(stored(1), "JPEG", quality=95)
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    expected = images.decode(plain, name="a").pixels
    found = images.decode(plain[:20] + segment * 2 + plain[20:], name="a").pixels
    np.testing.assert_array_equal(found, expected)


def test_what_stands_between_segments_does_not_matter():
    plain = saved(stored(1), "JPEG", quality=95)
    expected = images.decode(plain, name="a").pixels
    found = images.decode(plain[:20] + b"junk\xff\xff" + plain[20:], name="a").pixels
    np.testing.assert_array_equal(found, expected)


def test_the_colours_of_adobe_jpegs_are_as_pillow_reads_them():
    for source, options in ((stored(1).convert("CMYK"), {}), (stored(1), {"keep_rgb": True})):
        data = saved(source, "JPEG", quality=95, **options)
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened.convert("RGB")) / np.float32(255)
        np.testing.assert_array_equal(images.decode(data, name="a").pixels, expected)
