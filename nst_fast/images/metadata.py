"""The packet of metadata in a file (XMP), which every format that is written has a place for."""

from __future__ import annotations

import io

from PIL import Image, TiffImagePlugin

from nst_fast.images.formats import identify
from nst_fast.images.opening import BARE, decoding
from nst_fast.images.tiff import XMP_TAG


def packet(data: bytes, label: str) -> bytes:
    """The XMP of a PNG, JPEG, WebP or TIFF file; empty where it has none.

    Raises:
        ImageError: the file is damaged.
    """
    form = identify(data)
    with decoding(label):
        if form is None:
            return b""
        if form.reader in ("PNG", "JPEG"):
            _, info = BARE[form.reader](data)
            found = info.get("xmp")
        elif form.reader in ("WEBP", "TIFF"):
            with Image.open(io.BytesIO(data), formats=(form.reader,)) as image:
                found = image.info.get("xmp")
                if isinstance(image, TiffImagePlugin.TiffImageFile):
                    found = image.tag_v2.get(XMP_TAG)
        else:
            found = None
    return found if isinstance(found, bytes) else b""
