"""The table of formats: told apart by content, read, refused with a remedy, written in the docs."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from picture_files import LONG, SHORT, noise, number, smooth, tiff
from PIL import Image

from nst_fast import images
from nst_fast.errors import ImageError
from nst_fast.images import formats, jxl, opening
from nst_fast.images.formats import FORMATS, RAW, Format

NAMES = [form.name for form in FORMATS]
PAGE = noise(1, 24, 32)


def load(data: bytes) -> np.ndarray:
    return images.decode(data, name="a").pixels[..., 0] * 255


# ---------------------------------------------------------------------------------------- table


def row(form: Format) -> str:
    """A format's line in the docs."""
    read = f"no: {form.remedy}" if form.remedy else "yes"
    if form.needs:
        read = f"with `nst-fast[formats]` ({form.needs})"
    written = ", ".join(f"`{ending}`" for ending in form.writes)
    endings = ", ".join(f"`{ending}`" for ending in form.endings)
    return f"| {form.name} | {endings} | {read} | {written} |"


def test_the_docs_list_what_the_code_does():
    text = Path(__file__).parents[1].joinpath("docs/formats.md").read_text().partition("\n## ")[0]
    table = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert table == [row(form) for form in FORMATS]


def test_the_table_is_consistent():
    endings = [ending for form in FORMATS for ending in form.endings]
    assert len(set(endings)) == len(endings)
    assert all(ending.startswith(".") and ending == ending.lower() for ending in endings)
    for form in FORMATS:
        assert set(form.writes) <= set(form.endings)
        assert bool(form.reader) != bool(form.remedy)
    assert set(images.readable_endings()) <= set(endings)
    assert {".png", ".jfif", ".jpg_large", ".tiff", ".jp2"} <= set(images.readable_endings())
    assert not set(RAW.endings) & set(images.readable_endings())


def file_of(form: Format, image: Image.Image) -> bytes:
    file = io.BytesIO()
    if form.reader == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(image).save(file, quality=95)
        return file.getvalue()
    if form.reader == "JXL":
        pytest.importorskip("pillow_jxl.JpegXLImagePlugin")
    image.save(file, form.reader, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("form", [form for form in FORMATS if form.reader], ids=lambda f: f.name)
def test_every_format_is_known_by_its_content(tmp_path, form):
    """Whatever the name ends in."""
    pixels = np.rint(smooth(64, 48) * 255).astype(np.uint8)
    data = file_of(form, Image.fromarray(pixels))
    assert formats.identify(data) is form
    path = tmp_path / "a.raw"
    path.write_bytes(data)
    assert np.abs(images.load(path).pixels - pixels / 255).mean() < 0.03


@pytest.mark.parametrize("name", ["HEIF", "JPEG XL"])
@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypheic" + bytes(40), b"\xff\x0a" + bytes(40)])
def test_what_reads_a_format_is_named_where_it_is_missing(tmp_path, monkeypatch, name, start):
    form = formats.identify(start)
    if form is None or form.name != name:
        pytest.skip("the start of the other")
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    (tmp_path / "a.jpg").write_bytes(start)
    remedy = re.escape('; pip install "nst-fast[formats]"')
    with pytest.raises(ImageError, match=rf"a\.jpg is {name}, which {form.needs} reads{remedy}$"):
        images.load(tmp_path / "a.jpg")
    assert not set(form.endings) & set(images.readable_endings())


def test_a_pillow_without_avif_is_told(monkeypatch):
    data = file_of(FORMATS[NAMES.index("AVIF")], Image.new("RGB", (32, 32)))
    monkeypatch.setattr(opening.features, "check", lambda _: False)
    with pytest.raises(ImageError, match=r"Pillow 11\.3 and later read; pip install --upgrade"):
        images.decode(data, name="a")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"8BPS\0\1", "a is Photoshop; export it as PNG or TIFF first"),
        (b"\x76\x2f\x31\x01", "a is OpenEXR or Radiance HDR; map its tones"),
        (b"%PDF-1.7", "not an image that can be read; use PNG"),
        (b"\0\0\0\x20ftypisom", "not an image that can be read; use PNG"),
    ],
)
def test_what_is_not_read_says_what_to_do(start, said):
    with pytest.raises(ImageError, match=said):
        images.decode(start.ljust(200, b"\0"), name="a")


def test_a_large_file_of_another_kind_is_not_read(tmp_path):
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # sparse: takes no disk
    with pytest.raises(ImageError, match="not an image that can be read"):
        images.load(path)
    with path.open("r+b") as file:
        file.truncate(5 << 30)
    with pytest.raises(ImageError, match="has more than 4 GB; scale it down first"):
        images.load(path)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (40, 16), (300, 200), (8193, 20), (64, 36), (17, 1000)])
def test_the_size_of_jpeg_xl_is_in_its_header(size, boxed):
    pytest.importorskip("pillow_jxl.JpegXLImagePlugin")
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "JXL", use_container=boxed, effort=1)
    assert jxl.size(file.getvalue()) == size


def test_a_jpeg_xl_too_large_takes_no_memory():
    side = (1 << 18) - 1  # two of these are 69 gigapixels
    bits = (3 << 1) | (side << 3) | (0 << 33) | (3 << 36) | (side << 38)
    pytest.importorskip("pillow_jxl")
    with pytest.raises(ImageError, match="more than 178 megapixels"):
        images.decode(b"\xff\x0a" + bits.to_bytes(20, "little"), name="a")


# ----------------------------------------------------------------------------------------- TIFF

PREVIEW = noise(2, 18, 24)
REDUCED, WHOLE, MASK = number(254, 1), number(254, 0), number(254, 4)


@pytest.mark.parametrize("mark", [REDUCED, number(255, 2, kind=SHORT)])
@pytest.mark.parametrize("children", [0, 1])
def test_the_page_that_is_no_reduced_copy_is_taken(mark, children):
    """From the chain of pages, or from below the first."""
    data = tiff([(PREVIEW, [mark]), (PAGE, [WHOLE])], children=children)
    np.testing.assert_array_equal(load(data), PAGE)


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([(PAGE, []), (PREVIEW, [])], PAGE),  # a scan of two sheets
        ([(PAGE, [number(254, 2)]), (PREVIEW, [number(254, 2)])], PAGE),
        ([(PAGE, [WHOLE]), (PREVIEW, [REDUCED])], PAGE),  # a pyramid
        ([(PREVIEW, [REDUCED])], PREVIEW),  # nothing else is there
        ([(PREVIEW, [REDUCED]), (PREVIEW, [MASK]), (PAGE, [])], PAGE),
        ([(PAGE, [(37724, 7, 40, b"Adobe Photoshop Document Data Block\0    ")])], PAGE),  # layers
        ([(PAGE, [number(330, 8, 99999)])], PAGE),  # below it is nothing that can be read
    ],
)
def test_other_tiffs_of_several_pages_give_the_first(pages, expected):
    np.testing.assert_array_equal(load(tiff(pages)), expected)


def test_pages_that_go_in_circles():
    data = bytearray(tiff([(PREVIEW, [REDUCED]), (PREVIEW, [REDUCED])]))
    first = struct.unpack_from("<I", data, 4)[0]
    second = struct.unpack_from("<I", data, first + 2 + 12 * 10)[0]
    struct.pack_into("<I", data, second + 2 + 12 * 10, first)
    np.testing.assert_array_equal(load(bytes(data)), PREVIEW)


def test_layered_and_paged_files_of_pillow(tmp_path):
    frames = [Image.fromarray(noise(seed, 24, 32, 3)) for seed in range(3)]
    for big in (False, True):
        path = tmp_path / "a.tif"
        frames[0].save(path, save_all=True, append_images=frames[1:], big_tiff=big)
        np.testing.assert_array_equal(load(path.read_bytes()), noise(0, 24, 32, 3)[..., 0])


SENSOR = number(262, 32803)
RAW_FILES = {
    "sensor below a preview": tiff([(PREVIEW, [REDUCED]), (PAGE, [SENSOR])], children=1),
    "sensor on a second page": tiff([(PREVIEW, [REDUCED]), (PAGE, [SENSOR])]),
    "sensor on the first page": tiff([(PAGE, [SENSOR])]),
    "linear": tiff([(PREVIEW, []), (PAGE, [number(262, 34892)])], children=1),
    "DNG of one page": tiff([(PAGE, [(50706, 1, 4, b"\1\4\0\0")])]),
    "mosaic": tiff([(PAGE, [(33422, 1, 4, b"\0\1\1\2")])]),
    "Nikon": tiff([(PREVIEW, [REDUCED]), (PAGE, [number(259, 34713)])], children=1),
    "Sony": tiff([(PREVIEW, []), (PAGE, [number(259, 32767)])], children=1),
    "Pentax": tiff([(PAGE, [number(259, 65535)])]),
    "Leaf": tiff([(PAGE, [(34310, 7, 4, b"PKTS")])]),
    "Canon CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(100),
    "Canon CR3": b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(100),
    "Canon CRW": b"II\x1a\0\0\0HEAPCCDR" + bytes(100),
    "Fujifilm": b"FUJIFILMCCD-RAW 0201" + bytes(100),
    "Olympus": b"IIRO\x08\0\0\0" + bytes(100),
    "Panasonic": b"IIU\0\x18\0\0\0" + bytes(100),
    "Phase One": b"II*\0\x08\0\0\0IIIITwaR" + bytes(100),
    "Minolta": b"\0MRM" + bytes(100),
    "Sigma": b"FOVb" + bytes(100),
}


@pytest.mark.parametrize("kind", RAW_FILES)
@pytest.mark.parametrize("ending", ["dng", "tif", "jpg"])
def test_camera_raw_is_refused_whatever_its_name(tmp_path, kind, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(RAW_FILES[kind])
    message = rf"a\.{ending} is camera raw; develop it to TIFF or JPEG first$"
    with pytest.raises(ImageError, match=message):
        images.load(path)


@pytest.mark.parametrize("start", [b"CR\2\0", b"IIII", b"MMMM"])
def test_pixels_that_look_like_the_start_of_raw_are_pixels(start):
    """In many files they come right behind the header."""
    page = PAGE.copy()
    page[0, :4] = list(start)
    np.testing.assert_array_equal(load(tiff([(page, [])])), page)


def test_a_developed_tiff_of_a_camera_is_read():
    """With maker, model and EXIF, where a camera also tells its mosaic."""
    make = (271, 2, 18, b"NIKON CORPORATION\0")
    exif = number(34665, 8, kind=LONG)
    np.testing.assert_array_equal(load(tiff([(PAGE, [make, exif])])), PAGE)
