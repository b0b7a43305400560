"""AVIF and HEIF before Pillow sees them: their EXIF hidden.

How these are turned is told by boxes of their own, which the decoders obey; Pillow's reader writes
the EXIF anew to make it agree, and fails on what it cannot write.
"""

from __future__ import annotations

import re
from typing import Any

# An item's entry, of version 2 or 3: its number, no protection, its type.
_EXIF_ITEM = re.compile(b"(infe(?:\x02.{5}|\x03.{7})\\0\\0)Exif", re.DOTALL)


def bare(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """The file with its EXIF as an item of a type that no reader knows."""
    return _EXIF_ITEM.sub(rb"\1none", data), {}
