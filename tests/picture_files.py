"""Pictures, ICC profiles and damaged files for the tests."""

from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst_fast.images import MAX_PIXELS


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    """A picture that lossy formats keep well: slow, different ramps in each channel."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack((x, y, (x + y) / 2), axis=2).astype(np.float32)


def unwritable_folder(tmp_path: Path) -> Path:
    """A folder in which nobody, not even root, can create a file."""
    if os.geteuid() == 0:
        return Path("/proc")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    return folder


def png_chunk(kind: bytes, content: bytes, *, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(
    width: int,
    height: int,
    rows: np.ndarray,
    *,
    depth: int = 8,
    colours: int = 2,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of rows (height, bytes), with chunks between header and pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + struct.pack(">I", 0) + b"IDAT"


SHORT, LONG, TEXT = 3, 4, 2  # types of TIFF
Entry = tuple[int, int, int, bytes]  # tag, type, count, value


def directory(entries: Sequence[Entry], at: int, *, after: int = 0, order: str = "<") -> bytes:
    """A TIFF directory at that place of a file, its long values behind it."""
    table, rest = b"", b""
    behind = at + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in sorted(entries):
        stored = value.ljust(4, b"\0")
        if len(value) > 4:
            stored = struct.pack(order + "I", behind + len(rest))
            rest += value + b"\0" * (len(value) % 2)
        table += struct.pack(order + "HHI", tag, kind, count) + stored
    head = struct.pack(order + "H", len(entries))
    return head + table + struct.pack(order + "I", after) + rest


def number(tag: int, *values: int, kind: int = LONG, order: str = "<") -> Entry:
    form = {SHORT: "H", LONG: "I"}[kind]
    return tag, kind, len(values), struct.pack(f"{order}{len(values)}{form}", *values)


def tiff(pages: Sequence[tuple[np.ndarray, Sequence[Entry]]], *, children: int = 0) -> bytes:
    """An uncompressed little-endian TIFF of grey pages, each with tags that come on top.

    The last ``children`` of them are in sub-directories of the first instead of in the chain.
    """
    body, places = b"", []
    chain = len(pages) - children

    def entries(index: int) -> list[Entry]:
        pixels, extra = pages[index]
        height, width = pixels.shape
        own = {
            256: number(256, width),
            257: number(257, height),
            258: number(258, 8 * pixels.itemsize),
            259: number(259, 1),
            262: number(262, 1),
            273: number(273, 8 + sum(page.nbytes for page, _ in pages[:index])),
            277: number(277, 1),
            278: number(278, height),
            279: number(279, pixels.nbytes),
        }
        if index == 0 and children:
            own[330] = number(330, *(places or [0] * len(pages))[chain:])
        return list((own | {entry[0]: entry for entry in extra}).values())

    start = at = 8 + sum(page.nbytes for page, _ in pages)
    sizes = [len(directory(entries(index), 0)) for index in range(len(pages))]
    for size in sizes:
        places.append(at)
        at += size
    for index in range(len(pages)):
        after = places[index + 1] if index + 1 < chain else 0
        body += directory(entries(index), places[index], after=after)
    pixels = b"".join(page.tobytes() for page, _ in pages)
    return struct.pack("<2sHI", b"II", 42, start) + pixels + body


def bad_file(case: str, folder: Path) -> Path:
    path = folder / f"{case}.jpg"
    whole = io.BytesIO()
    Image.fromarray(noise(10, 64, 64, 3)).save(whole, "JPEG")
    if case == "folder":
        path.mkdir()
    elif case == "pipe":
        os.mkfifo(path)
    elif case == "unreadable" and os.geteuid() == 0:
        path.symlink_to("/sys/bus/platform/uevent")  # which not even root may read
    elif case == "unreadable":
        path.write_bytes(whole.getvalue())
        path.chmod(0)
    elif case != "missing":
        content = {
            "text": b"this is no picture\n" * 20,
            "truncated": whole.getvalue()[: len(whole.getvalue()) // 2],
            "header": whole.getvalue()[:30],
            "empty": b"",
            "bomb": png_header(30_000, 30_000),
            "large": png_header(MAX_PIXELS // 10_000 + 1, 10_000),
            "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EOF\n",
        }[case]
        path.write_bytes(content)
    return path


def s15f16(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2, of the given class, colour space and tags (ICC.1:2001-04)."""
    text = b"desc" + struct.pack(">4xI", 5) + b"test\0" + bytes(78)
    tags = {
        b"desc": text,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + s15f16(0.9642, 1.0, 0.8249),
    } | tags
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4sI4s4s4s6H4s", start + len(body), b"", 0x02100000, kind, space, pcs,
        2000, 1, 1, 0, 0, 0, b"acsp",
    )  # fmt: skip
    header = header.ljust(68, b"\0") + s15f16(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + table + body


def matrix_profile(order: str, gamma: float) -> bytes:
    """A display profile with the primaries of sRGB in the given order, and a pure gamma."""
    primaries = {
        "r": (0.4361, 0.2225, 0.0139),
        "g": (0.3851, 0.7169, 0.0971),
        "b": (0.1431, 0.0606, 0.7141),
    }
    curve = b"curv" + struct.pack(">4xIH", 1, round(gamma * 256))
    tags = {}
    for channel, primary in zip("rgb", order, strict=True):
        tags[f"{channel}XYZ".encode()] = b"XYZ \0\0\0\0" + s15f16(*primaries[primary])
        tags[f"{channel}TRC".encode()] = curve
    return profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    curve = b"curv" + struct.pack(">4xIH", 1, round(gamma * 256))
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def cmyk_profile(*, red_cyan: bool) -> bytes:
    """Ink amounts to Lab by a table with two points an axis; "cyan" may print red instead."""
    ramp = bytes(range(256))
    grid = b""
    for cyan, magenta, yellow, black in itertools.product((0, 1), repeat=4):
        light = 0 if black else 255 - 60 * (cyan + magenta + yellow)
        a = 128 + (80 if red_cyan else -80) * cyan * (1 - black)
        grid += bytes((light, a, 128))
    table = b"mft1" + struct.pack(">4xBBBx", 4, 3, 2) + s15f16(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table + ramp * 4 + grid + ramp * 3})


def srgb(linear: np.ndarray) -> np.ndarray:
    """The sRGB curve (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise(1, 40, 60, 3)).save(path)
    return path
