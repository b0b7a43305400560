"""JPEG before Pillow sees it: without metadata, which Pillow reads in full to open the file."""

from __future__ import annotations

from typing import Any

_START_OF_SCAN, _END = 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
# How libjpeg tells the colours apart, by JFIF and by Adobe, and the ICC profile.
_KEPT = {0xE0: b"", 0xEE: b"", 0xE2: b"ICC_PROFILE\0"}
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def bare(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """The file without comments and metadata, and those of use, as Pillow names them."""
    kept, exif, info = [data[:2]], [], {}
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (_START_OF_SCAN, _END):
            break
        end = at + 2
        if marker not in _ALONE:
            end += int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : end]
        if marker == 0xE1 and content.startswith(_EXIF):
            exif.append(content[len(_EXIF) :])  # long EXIF goes on in the next
        elif marker == 0xE1 and content.startswith(_XMP):
            info["xmp"] = content[len(_XMP) :]
        needed = not (0xE0 <= marker <= 0xEF or marker == 0xFE)
        if needed or (marker in _KEPT and content.startswith(_KEPT[marker])):
            kept.append(data[at:end])
        at = end
    if exif:
        info["exif"] = _EXIF + b"".join(exif)
    return b"".join((*kept, data[at:])), info
