"""Every file format that a picture may come in: how it is called, told apart, read and written.

All else that concerns formats asks this table: the reader, the writer, batch's search of folders,
and docs/formats.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec

from nst_fast.images import tiff

START = 64  # bytes that tell a format
INSTALL = 'pip install "nst-fast[formats]"'


@dataclass(frozen=True)
class Format:
    """A kind of picture file.

    Attributes:
        name: what people call it.
        endings: of its files' names, in lower case, with the dot.
        starts: regular expression that the first ``START`` bytes match.
        reader: Pillow's name of it; empty: it is not read.
        writes: those of ``endings`` in which it is written.
        needs: the package that reads it, where it comes with an extra.
        remedy: what to do with a file that is not read.
    """

    name: str
    endings: tuple[str, ...]
    starts: bytes
    reader: str = ""
    writes: tuple[str, ...] = ()
    needs: str = ""
    remedy: str = ""


RAW = Format(
    "camera raw",
    (
        *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2", ".raf", ".orf"),
        *(".rw2", ".rwl", ".pef", ".srw", ".3fr", ".fff", ".iiq", ".mos", ".mef", ".erf", ".dcr"),
        *(".kdc", ".k25", ".mrw", ".x3f", ".gpr", ".raw"),
    ),
    # Those with a start of their own; the others are TIFF inside.
    rb"II\*\0(\x10\0{3}CR\x02|.{4}IIII.waR)|MM\0\*.{4}MMMMRaw|II(RO|RS|U\0)|MMOR|FUJIFILMCCD-RAW|\0MRM|FOVb"
    rb"|II.{4}HEAPCCDR|.{4}ftypcrx ",
    remedy="develop it to TIFF or JPEG first",
)
# Only readers that decode in this process; others (PostScript) would start programs of their own.
FORMATS = (
    RAW,
    Format("PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", "PNG", (".png",)),
    Format(
        "JPEG",
        (
            *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo"),
            *(".jpg_large", ".jpg-large", ".jpeg_large", ".jpeg-large"),
        ),
        rb"\xff\xd8\xff",
        "JPEG",
        (".jpg", ".jpeg"),
    ),
    Format("WebP", (".webp",), rb"RIFF.{4}WEBP", "WEBP", (".webp",)),
    Format(
        "TIFF",
        (".tif", ".tiff", ".btf", ".tf8"),
        rb"II(\*\0|\0\*|\+\0)|MM(\*\0|\0\*|\0\+)",
        "TIFF",
        (".tif", ".tiff"),
    ),
    Format("BMP", (".bmp", ".dib"), rb"BM", "BMP"),
    Format("GIF", (".gif",), rb"GIF8[79]a", "GIF"),
    Format("PPM", (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), rb"P[0-6fy]", "PPM"),
    Format(
        "JPEG 2000",
        (".jp2", ".j2k", ".jpc", ".j2c", ".jpf", ".jpx"),
        rb"\xff\x4f\xff\x51|\0{3}\x0cjP  \r\n\x87\n",
        "JPEG2000",
    ),
    Format(
        "AVIF", (".avif", ".avifs"), rb".{4}ftyp(avi[fs]|(mif1|msf1).{4}.{0,40}avi[fs])", "AVIF"
    ),
    Format(
        "HEIF",
        (".heic", ".heif", ".hif", ".heics", ".heifs"),
        rb".{4}ftyp(he[iv][cmsx]|mif1|msf1|heif)",
        "HEIF",
        needs="pillow-heif",
    ),
    Format(
        "JPEG XL",
        (".jxl",),
        rb"\xff\x0a|\0{3}\x0cJXL \r\n\x87\n",
        "JXL",
        needs="pillow-jxl-plugin",
    ),
    Format("Photoshop", (".psd", ".psb"), rb"8BPS", remedy="export it as PNG or TIFF first"),
    Format(
        "OpenEXR or Radiance HDR",
        (".exr", ".hdr"),
        rb"\x76\x2f\x31\x01|#\?(RADIANCE|RGBE)",
        remedy="map its tones to 16-bit TIFF or PNG first",
    ),
)
# What Pillow alone reads; it has AVIF from 11.3 on.
READABLE = tuple(
    form.reader
    for form in FORMATS
    if form.reader
    and not form.needs
    and (form.reader != "AVIF" or find_spec("PIL.AvifImagePlugin"))
)
WRITABLE = {ending: form.reader for form in FORMATS for ending in form.writes}


def readable_endings() -> tuple[str, ...]:
    """Endings of the files that are read here, with what is installed; in lower case."""
    return tuple(
        ending for form in FORMATS if form.reader and available(form) for ending in form.endings
    )


def available(form: Format) -> bool:
    """Whether what reads this format is installed."""
    modules = {"pillow-heif": "pillow_heif", "pillow-jxl-plugin": "pillow_jxl"}
    if form.needs:
        return find_spec(modules[form.needs]) is not None
    return form.reader in READABLE


def identify(data: bytes) -> Format | None:
    """The format of a file by its first ``START`` bytes or more; raw by the whole file."""
    start = data[:START]
    found = next((f for f in FORMATS if re.match(f.starts, start, re.DOTALL)), None)
    return RAW if found and found.reader == "TIFF" and tiff.is_raw(data) else found
