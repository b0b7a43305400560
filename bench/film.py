"""A film of ours, whose flow is known: a camera over a picture, and what passes before it.

Two layers are pictures of ``examples/``, each under an affine motion of its own. So what was where
in the frame before, and whether it was seen there, is known to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
FINER = 3  # samples of a pixel along each side
NOISE = 1.5 / 255  # of a sensor, a standard deviation
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Film:
    """A short film.

    Attributes:
        width: in pixels.
        height: in pixels.
        speed: pixels that the camera moves in a frame, as a share of the width.
        noise: standard deviation of what each frame has of its own.
        background: a picture of ``examples/``.
    """

    width: int = 256
    height: int = 144
    speed: float = 0.006
    noise: float = NOISE
    background: str = "content_canal"

    @cached_property
    def _layers(self) -> tuple[Float32, Float32]:
        names = self.background, "content_still_life"
        back, front = (np.asarray(Image.open(EXAMPLES / f"{name}.jpg")) for name in names)
        return back.astype(np.float32) / 255, front.astype(np.float32) / 255

    def _placing(self, layer: int, t: float) -> Float64:
        """Affine, (2, 3): from pixels of frame t, in units of its width, to those of a layer."""
        if layer == 0:
            zoom, turn = 0.62 - 0.0025 * t, 0.0012 * t
            x, y = 0.30 + self.speed * zoom * t, 0.33 + 0.0012 * t
        else:
            zoom, turn = 0.5, 0.0
            x, y = 0.30 - 0.5 * (self.speed + 0.012) * t, 0.40 - 0.0015 * t
        c, s = zoom * np.cos(turn), zoom * np.sin(turn)
        return np.array([[c, -s, x], [s, c, y]])

    def _points(self, t: float, finer: int) -> tuple[list[Float64], NDArray[np.bool_]]:
        """Where the points of a frame are in both layers, (H, W, 2), and which see the front."""
        j, i = (
            (np.arange(side * finer) + 0.5) / finer / self.width
            for side in (self.width, self.height)
        )
        p = np.stack(np.meshgrid(j - 0.5, i - 0.5 * self.height / self.width), axis=2)
        places = []
        for layer in (0, 1):
            A = self._placing(layer, t)
            places.append(p @ A[:, :2].T + A[:, 2])
        return places, self._in_front(places[1])

    @staticmethod
    def _in_front(place: Float64) -> NDArray[np.bool_]:
        """The front layer is an ellipse of its picture."""
        x, y = (place[..., 0] - 0.33) / 0.075, (place[..., 1] - 0.40) / 0.115
        return x**2 + y**2 < 1

    def frame(self, t: int) -> Float32:
        """(H, W, 3) in [0, 1]."""
        places, front = self._points(t, FINER)
        back, fore = (
            cv2.remap(
                layer,
                *np.moveaxis((place * layer.shape[1] - 0.5).astype(np.float32), 2, 0),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REFLECT,
            )
            for layer, place in zip(self._layers, places, strict=True)
        )
        fine = np.where(front[..., None], fore, back)
        shape = self.height, FINER, self.width, FINER, 3
        noise = np.random.default_rng(t).normal(0, self.noise, (self.height, self.width, 3))
        return np.clip(fine.reshape(shape).mean(axis=(1, 3)) + noise, 0, 1).astype(np.float32)

    def flow(self, t: int) -> tuple[Float32, NDArray[np.bool_]]:
        """True flow of frame t to the one before, (H, W, 2) pixels, and what was seen there."""
        places, front = self._points(t, 1)
        _, here = self._points(t, 1)
        to = np.empty_like(places[0])
        for layer, mask in ((0, ~front), (1, front)):
            A = self._placing(layer, t - 1)
            to[mask] = (places[layer][mask] - A[:, 2]) @ np.linalg.inv(A[:, :2]).T
        j, i = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        at = (to + np.array([0.5, 0.5 * self.height / self.width])) * self.width
        A = self._placing(1, t - 1)
        was_front = self._in_front(to @ A[:, :2].T + A[:, 2])
        inside = (at >= 0.5) & (at <= [self.width - 0.5, self.height - 0.5])
        flow = (at - np.stack([j, i], axis=2)).astype(np.float32)
        return flow, inside.all(axis=2) & (was_front == here)
