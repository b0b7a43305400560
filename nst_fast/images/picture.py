"""A picture in memory, and what can be given for one."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_fast.host import Float32


@dataclass(frozen=True)
class Origin:
    """The file that a picture was read from.

    Attributes:
        path: or URL, as it was given; of a URL without what may be a secret: the name of a user
            and what stands behind a question mark.
        sha256: of its bytes, in hexadecimal.
    """

    path: str
    sha256: str

    @classmethod
    def of(cls, path: str, data: bytes) -> Origin:
        """That of a file with these bytes."""
        if "://" in path:
            path = re.sub(r"(?<=://)[^/?#]*@|[?#].*", "", path)
        return cls(path, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) float32 in [0, 1], sRGB encoded, upright.
        alpha: (H, W) float32 in [0, 1], 1 is opaque; None where the picture has no transparency.
        profile: the ICC profile of RGB colours that its file had; empty where it had none.
        origin: its file; None where it was read from none.
    """

    pixels: Float32
    alpha: Float32 | None = None
    profile: bytes = b""
    origin: Origin | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.pixels.shape[:2]
        return width, height

    @cached_property
    def digest(self) -> str:
        """Hash of its pixels and their opacity; taken once, so leave the arrays as they are."""
        state = hashlib.blake2b(repr(self.size).encode(), digest_size=16)
        for plane in (self.pixels, self.alpha):
            if plane is not None:
                state.update(np.ascontiguousarray(plane).data)
        return state.hexdigest()


ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any] | Picture


def unit(image: Image.Image) -> Float32:
    """The values of an image of 8 bits, in [0, 1]."""
    return np.asarray(image).astype(np.float32) / np.float32(255)


def to_bytes(values: Float32) -> NDArray[np.uint8]:
    """Values in [0, 1] as 8 bits, rounded; those outside are clamped."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
