"""Pictures: decode to upright sRGB, resize, lay out for the network, write atomically.

Pictures are float32 in [0, 1], sRGB encoded, rows from the top, with an optional alpha plane that
is never multiplied into the colours.
"""

from nst_fast.images.formats import FORMATS, INSTALL, READABLE, WRITABLE, Format, readable_endings
from nst_fast.images.layout import fit, resize, resize_plane, to_tensor
from nst_fast.images.metadata import packet
from nst_fast.images.opening import MAX_PIXELS, MIN_SIDE
from nst_fast.images.picture import ImageLike, Origin, Picture
from nst_fast.images.reading import check_input, decode, load
from nst_fast.images.writing import (
    check_options,
    check_output,
    encode,
    save,
    to_pillow,
    write,
)

__all__ = [
    "FORMATS",
    "INSTALL",
    "MAX_PIXELS",
    "MIN_SIDE",
    "READABLE",
    "WRITABLE",
    "Format",
    "ImageLike",
    "Origin",
    "Picture",
    "check_input",
    "check_options",
    "check_output",
    "decode",
    "encode",
    "fit",
    "load",
    "packet",
    "readable_endings",
    "resize",
    "resize_plane",
    "save",
    "to_pillow",
    "to_tensor",
    "write",
]
