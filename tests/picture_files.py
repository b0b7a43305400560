"""Pictures, ICC profiles and damaged files for the tests."""

from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from pathlib import Path

import numpy as np
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


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT"


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
