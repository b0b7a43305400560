"""Size and layout of pictures: fit, resample, tensors.

Colours that nobody sees have no part in a picture: resampling weighs them by their opacity, and
what stands under full transparency is filled in from the colours around it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from nst_fast.host import Float32
from nst_fast.images.filling import TINY, fill
from nst_fast.images.picture import Picture

# Opacity from which a colour counts in full. Below it files hold little of it: colours that were
# multiplied by an alpha of a/255 are known to 1/a only, and Lanczos divides by next to nothing.
FAINT = np.float32(1 / 16)


def fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height of the same aspect whose longer side is ``longest`` pixels.

    Args:
        size: width and height, in pixels.
        longest: the longer side wanted, in pixels; the other is rounded, and at least 1.
    """
    long = max(size)
    width, height = (max(1, (2 * side * longest + long) // (2 * long)) for side in size)
    return width, height


def resize(picture: Picture, width: int, height: int) -> Picture:
    """Resample to ``width`` × ``height`` pixels (Lanczos, in float32, clamped to [0, 1]).

    The result does not depend on colours where alpha is 0; it has a smooth continuation of those
    that show in their place, at the picture's own size as well.
    """
    alpha = picture.alpha
    if alpha is None or alpha.min() >= 1:
        if picture.size == (width, height):
            return picture
        planes = [resample(picture.pixels[..., c], width, height) for c in range(3)]
        cover = None if alpha is None else resample(alpha, width, height)
        return Picture(np.stack(planes, axis=2), cover)
    cover = _lanczos(alpha, width, height)
    weight = np.clip(cover / FAINT, 0, 1)
    shown: Float32 = np.maximum(cover, TINY)
    planes = [_lanczos(picture.pixels[..., c] * alpha, width, height) / shown for c in range(3)]
    filled = [fill(np.clip(plane, 0, 1), weight) for plane in planes]
    return Picture(np.stack(filled, axis=2), np.clip(cover, 0, 1))


def resample(plane: Float32, width: int, height: int) -> Float32:
    """A plane (H, W) as (``height``, ``width``), by Lanczos, clamped to [0, 1]; a copy."""
    return np.clip(_lanczos(plane, width, height), 0, 1)


def resize_plane(plane: Float32, width: int, height: int) -> Float32:
    """A plane (H, W) as (``height``, ``width``) by a triangle: soft, within the values it has.

    Lanczos leaves ripples beside an edge, which in a mask would be a little of what is masked.
    """
    if plane.shape == (height, width):
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _lanczos(plane: Float32, width: int, height: int) -> Float32:
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def to_tensor(pixels: Float32) -> Float32:
    """(H, W, 3) pixels as a C-contiguous (1, 3, H, W) tensor; always a copy."""
    return np.array(pixels.transpose(2, 0, 1)[None], dtype=np.float32, order="C")
