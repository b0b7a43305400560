"""JPEG before Pillow sees it: without metadata, which Pillow reads in full to open the file."""

from __future__ import annotations

from typing import Any

_START_OF_SCAN, _END = 0xDA, 0xD9
_ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers without a length
# How libjpeg tells the colours apart, and the least length of it.
_KEPT = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"


def bare(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """The file without comments and metadata, and those of use, as Pillow names them."""
    kept, exif, profile, info = [data[:2]], [], {}, {}
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # what stands between, and padding
            at += 1
            continue
        if marker in (_START_OF_SCAN, _END):
            break
        end = at + 2
        if marker not in _ALONE:
            end += int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : end]
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or _is_kept(marker, content):
            kept.append(data[at:end])
        elif content.startswith(_EXIF):
            exif.append(content[len(_EXIF) :])  # what is too long for one goes on in the next
        elif content.startswith(_XMP):
            info["xmp"] = content[len(_XMP) :]
        elif content.startswith(_ICC):  # its number, how many there are, a part
            profile[content[len(_ICC) : len(_ICC) + 1]] = content[len(_ICC) + 2 :]
        at = end
    if exif:
        info["exif"] = _EXIF + b"".join(exif)
    if profile:
        info["icc_profile"] = b"".join(profile[number] for number in sorted(profile))
    return b"".join((*kept, data[at:])), info


def _is_kept(marker: int, content: bytes) -> bool:
    start, least = _KEPT.get(marker, (b"", 1 << 16))
    return len(content) >= least and content.startswith(start)
