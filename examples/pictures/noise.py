"""Seeded lattice noise and a few helpers shared by the pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def _lattice(i: NDArray[np.int64], j: NDArray[np.int64], seed: int) -> Array:
    """Uniform values in [-1, 1) at integer points, by an integer hash."""
    h = (i.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ (
        j.astype(np.uint32) * np.uint32(0x85EBCA77)
    )
    h ^= np.uint32(seed * 0x27D4EB2F & 0xFFFFFFFF)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return h.astype(np.float32) * np.float32(2**-31) - np.float32(1)


def noise(x: Array, y: Array, seed: int = 0) -> Array:
    """Value noise in [-1, 1] with quintic interpolation; one feature per unit."""
    i, j = np.floor(x), np.floor(y)
    u, v = (x - i).astype(np.float32), (y - j).astype(np.float32)
    i, j = i.astype(np.int64), j.astype(np.int64)
    u = u * u * u * (u * (u * 6 - 15) + 10)
    v = v * v * v * (v * (v * 6 - 15) + 10)
    top = _lattice(i, j, seed) * (1 - u) + _lattice(i + 1, j, seed) * u
    low = _lattice(i, j + 1, seed) * (1 - u) + _lattice(i + 1, j + 1, seed) * u
    return top * (1 - v) + low * v


def fbm(x: Array, y: Array, octaves: int, seed: int = 0, gain: float = 0.5) -> Array:
    """Fractal sum of noise: each octave has twice the frequency and is turned."""
    total, amplitude = np.zeros(np.broadcast(x, y).shape, np.float32), 1.0
    for octave in range(octaves):
        total += np.float32(amplitude) * noise(x, y, seed + octave)
        x, y = 1.6 * x - 1.2 * y + 3.7, 1.2 * x + 1.6 * y - 1.9
        amplitude *= gain
    return total


def ridged(x: Array, y: Array, octaves: int, seed: int = 0) -> Array:
    """Fractal sum of sharp crests, finer detail on the heights: mountains. About [0, 2]."""
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    weight, amplitude = np.ones_like(total), 1.0
    for octave in range(octaves):
        crest = (1 - np.abs(noise(x, y, seed + octave))) ** 2 * weight
        total += np.float32(amplitude) * crest
        weight = np.clip(crest * 1.6, 0, 1)
        x, y = 1.6 * x - 1.2 * y + 5.3, 1.2 * x + 1.6 * y - 2.3
        amplitude *= 0.5
    return total


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below ``low``, 1 above ``high``, a smooth slope between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Array, b: Array, t: Array) -> Array:
    """Blend colours (…, 3) by weights (…)."""
    return a + (b - a) * t[..., None]


def rgb(text: str) -> Array:
    """A colour such as "3a6ea5" as three values in [0, 1], sRGB."""
    return np.array([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)], np.float32)


def linear(text: str) -> Array:
    """The same as linear light, for scenes that are lit."""
    return rgb(text) ** np.float32(2.2)


def shrink(image: Array, factor: int) -> Array:
    """Average blocks of ``factor`` × ``factor`` pixels."""
    h, w, c = image.shape
    return image.reshape(h // factor, factor, w // factor, factor, c).mean(axis=(1, 3))


def blur(plane: Array, radius: float) -> Array:
    """Gaussian blur of (H, W), edges repeated."""
    reach = int(3 * radius) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    padded = np.pad(plane, reach, mode="edge")
    rows = sum(k * padded[i : i + plane.shape[0]] for i, k in enumerate(kernel))
    return sum(k * rows[:, i : i + plane.shape[1]] for i, k in enumerate(kernel))


def film(light: Array, exposure: float = 1.0) -> Array:
    """Linear light to sRGB with a soft shoulder (Narkowicz's fit of the ACES curve)."""
    x = np.maximum(light, 0) * exposure
    x = np.clip(x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14), 0, 1)
    return x ** np.float32(1 / 2.2)
