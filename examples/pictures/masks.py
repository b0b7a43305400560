"""Masks for ``content_lake.jpg``, in grey: white is where something is to be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.float64]  # (H, W) in [0, 1]
HEIGHT, WIDTH = 144, 192  # a quarter of the picture's: masks have any size
SHORE = 0.615  # of the height


def land() -> Grey:
    """Mountains and sky, down to the shore, with a soft edge."""
    return 1 - water()


def water() -> Grey:
    """The lake."""
    y, _ = _places()
    return np.clip((y - SHORE) / 0.03 + 0.5, 0, 1)


def island() -> Grey:
    """The trees at the left of the lake, and what mirrors them."""
    y, x = _places()
    distance = np.hypot((x - 0.16) / 0.17, (y - 0.67) / 0.25)
    return np.clip((1 - distance) / 0.2, 0, 1)


def _places() -> tuple[Grey, Grey]:
    """Heights and widths, from 0 to 1."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (y + 0.5) / HEIGHT, (x + 0.5) / WIDTH
