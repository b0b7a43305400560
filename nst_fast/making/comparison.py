"""Content, styles and result side by side, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np

from nst_fast import images
from nst_fast.host import Float32
from nst_fast.images import ImageLike, Picture

WIDEST = 4096  # pixels: a row that is wider is reduced
GAP = 12  # pixels, white


def compare(pictures: Sequence[ImageLike], path: str | PathLike[str]) -> None:
    """Write pictures side by side, all as high as the last of them, transparency on white.

    Args:
        pictures: content, styles and result, say; each a path, Pillow image, Picture, or array.
        path: of the file, in a format that a result can be saved in.

    Raises:
        ImageError: a picture cannot be read, or the file cannot be written.
    """
    images.save(side_by_side(pictures), path)


def side_by_side(pictures: Sequence[ImageLike]) -> Picture:
    """What :func:`compare` writes; raises ImageError where a picture cannot be read."""
    loaded = [images.load(picture) for picture in pictures]
    height = loaded[-1].size[1]
    gaps = GAP * (len(loaded) - 1)
    wide = sum(width * height / high for width, high in (each.size for each in loaded))
    height = max(1, int(height * min(1.0, (WIDEST - gaps) / wide)))
    gap = np.ones((height, GAP, 3), np.float32)
    row: list[Float32] = []
    for each in loaded:
        width = max(1, round(each.size[0] * height / each.size[1]))
        row += [_on_white(images.resize(each, width, height)), gap]
    return Picture(np.concatenate(row[:-1], axis=1))


def _on_white(picture: Picture) -> Float32:
    if picture.alpha is None:
        return picture.pixels
    cover = picture.alpha[..., None]
    return picture.pixels * cover + (1 - cover)
