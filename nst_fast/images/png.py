"""PNG before Pillow sees it: without ancillary chunks, which it reads in full to open the file.

Pillow refuses a picture for a long text or a wrong checksum beside the pixels, and its limits for
that are those of the whole process. So the few chunks of use are read here.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LONGEST = 1 << 24  # bytes of a profile or a text, unpacked; what is longer is left out
XMP = b"XML:com.adobe.xmp"
# Words that texts of use begin with, and what Pillow calls them: both may tell the orientation.
_TEXTS = {XMP: "xmp", b"Raw profile type exif": "Raw profile type exif"}
_GREY, _RGB = 0, 2  # colour types that have one transparent colour


class DamagedError(ValueError):
    """A chunk that the picture cannot do without is damaged."""


def bare(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """The critical chunks and transparency, and the metadata of use, as Pillow names them.

    Raises:
        DamagedError: a critical chunk has a wrong checksum.
    """
    kept: list[bytes] = [SIGNATURE]
    info: dict[str, Any] = {}
    view, at, header = memoryview(data), len(SIGNATURE), b""
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        critical = not kind[0] & 0x20  # upper case
        if end > len(data):
            if critical:
                kept.append(data[at:])  # cut: Pillow says so
            break
        content = view[at + 8 : end - 4]
        whole = zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")
        if critical and not whole and kind != b"IEND":
            raise DamagedError(f"wrong checksum in {kind.decode('latin-1')}")
        if critical:
            kept.append(data[at:end])
            header = data[at + 8 : end] if kind == b"IHDR" else header
        elif whole and kind == b"tRNS":
            kept.append(_transparent(bytes(content), *header[8:10]) if len(header) > 9 else b"")
        elif whole:
            _note(info, kind, content)
        if kind == b"IEND":
            break
        at = end
    return b"".join(kept), {name: value for name, value in info.items() if value is not None}


def _transparent(content: bytes, depth: int, colours: int) -> bytes:
    """A tRNS chunk in the values that Pillow decodes to, or nothing where it is too short."""
    count = {_GREY: 1, _RGB: 3}.get(colours, 0)
    if len(content) < 2 * count:
        return b""
    if count:
        values = struct.unpack_from(f">{count}H", content)
        if colours == _GREY and depth in (2, 4):
            values = tuple(255 * value // (2**depth - 1) for value in values)
        elif colours == _RGB and depth == 16:
            values = tuple(value >> 8 for value in values)
        content = struct.pack(f">{count}H", *(min(value, 65535) for value in values))
    return chunk(b"tRNS", content)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its length and checksum."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _note(info: dict[str, Any], kind: bytes, content: memoryview) -> None:
    """Add what a chunk says to ``info``; of several of a name the first, None if unreadable."""
    if kind == b"eXIf":
        info.setdefault("exif", b"Exif\0\0" + content)
    if kind not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
        return
    word, *_ = bytes(content[:80]).split(b"\0", 1)
    name = "icc_profile" if kind == b"iCCP" else _TEXTS.get(word)
    if name is None or name in info:
        return
    packed, value = kind in (b"iCCP", b"zTXt"), bytes(content[len(word) + 1 :])
    if packed:
        value = value[1:]
    elif kind == b"iTXt":
        packed = value[:1] == b"\1"
        value = value[2:].split(b"\0", 2)[-1]  # behind language and translated word
    text = _unpacked(value) if packed else value[:LONGEST]
    info[name] = text.decode("latin-1") if text and name.startswith("Raw") else text


def _unpacked(data: bytes) -> bytes | None:
    """What zlib packed, where it is no longer than ``LONGEST``."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, LONGEST)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else found
