"""Hills and a low sun, in plain colours: a content with hardly any detail of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FINER = 640, 480, 3  # drawn larger, then averaged
ZENITH, HORIZON, SUN = (0.20, 0.30, 0.55), (0.98, 0.72, 0.48), (1.00, 0.93, 0.72)
# Colour, and the height of the crest: its middle, its swing, its waves across, where they begin.
HILLS = (
    ((0.45, 0.42, 0.55), 0.62, 0.05, 1.3, 0.2),
    ((0.30, 0.33, 0.42), 0.72, 0.06, 0.9, 2.4),
    ((0.15, 0.20, 0.24), 0.84, 0.05, 1.7, 4.0),
)


def hills() -> NDArray[np.float64]:
    """The picture, (480, 640, 3) in [0, 1]."""
    y, x = np.mgrid[0 : HEIGHT * FINER, 0 : WIDTH * FINER] / (HEIGHT * FINER)
    sky = np.clip(y / 0.7, 0, 1)[..., None]
    picture = (1 - sky) * ZENITH + sky * HORIZON
    picture[(x - 0.92) ** 2 + (y - 0.46) ** 2 < 0.07**2] = SUN
    for colour, middle, swing, waves, begin in HILLS:
        picture[y > middle + swing * np.sin(2 * np.pi * waves * x / 1.33 + begin)] = colour
    small: NDArray[np.float64] = picture.reshape(HEIGHT, FINER, WIDTH, FINER, 3).mean(axis=(1, 3))
    return small
