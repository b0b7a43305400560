"""A woodcut of rolling waves under a low sun: few flat inks, carved lines, paper and grain."""

from __future__ import annotations

import numpy as np
from pictures.noise import Array, fbm, mix, noise, rgb, shrink, smoothstep

WIDTH, HEIGHT, DETAIL = 768, 560, 2
PAPER, INK, DEEP, MIDDLE, PALE, SUN = "efe3c4", "1a2440", "23456f", "4f7fa3", "a9c4c4", "c4452f"


def crest(x: Array, row: int) -> tuple[Array, Array]:
    """Height (downwards) of a wave's crest, and the phase along it."""
    rng = np.random.default_rng(100 + row)
    spacing = (0.30 + 0.11 * row) * rng.uniform(0.9, 1.1)
    phase = x / spacing + rng.uniform(0, 1) + 0.10 * np.sin(5 * x + row)
    swell = np.mod(phase, 1)
    rise = np.where(
        swell < 0.62,
        (swell / 0.62) ** 1.9,
        np.cos(np.clip((swell - 0.62) / 0.38, 0, 1) * np.pi / 2) ** 1.4,
    )
    tall = (0.055 + 0.036 * row) * (0.75 + 0.4 * np.mod(np.floor(phase) * 0.618 + 0.3 * row, 1))
    return 0.44 + 0.088 * row - tall * rise, swell


def foam(x: Array, y: Array, top: Array, swell: Array, row: int) -> tuple[Array, Array]:
    """Signed depth of the foam that caps a wave, and of its fingers: positive inside."""
    size = 0.012 + 0.004 * row
    lobes = np.abs(np.sin(x / size * 1.3 + 2 * noise(x * 9, y * 9, row))) ** 0.6
    thick = (
        0.010 + 0.020 * row**0.6 * smoothstep(0.25, 0.62, swell) * smoothstep(1.0, 0.72, swell)
    ) * (0.5 + 0.8 * lobes)
    fingers = 0.4 + 0.6 * np.abs(np.sin(x / size * 0.62 + row)) ** 3
    return thick - (y - top), thick * (1 + 1.3 * fingers) - (y - top)


def wave(picture: Array, x: Array, y: Array, row: int, pixel: float) -> Array:
    """Print one rank of waves over what lies behind it."""
    curl = 0.02 * (row + 1) * np.exp(-np.maximum(y - 0.40 - 0.088 * row, 0) * 14)
    sx = x + curl * np.sin(6 * y + row) + 0.006 * fbm(x * 7, y * 7, 3, 40 + row)
    top, swell = crest(sx, row)
    depth = y - top
    pitch = 0.016 + 0.0022 * row
    bend = depth + 0.35 * pitch * np.sin(swell * 6.28) + 0.10 * depth * np.sin(9 * sx)
    carve = np.abs(np.mod(bend / pitch, 1) - 0.5) * 2
    weight = 0.18 + 0.42 * smoothstep(0.0, 0.16, depth) * (0.6 + 0.4 * np.sin(swell * 6.28 + 1))
    tone = smoothstep(0.0, 0.10 + 0.02 * row, depth + 0.03 * noise(x * 6, y * 6, 60 + row))
    body = mix(np.broadcast_to(rgb(MIDDLE), (*x.shape, 3)), rgb(DEEP), tone)
    shine = smoothstep(0.30, 0.55, swell) * smoothstep(0.80, 0.62, swell)
    body = mix(body, rgb(PALE), shine * 0.75 * (1 - tone))
    body = mix(
        body, rgb(PAPER), smoothstep(0.62, 0.72, carve * (1.12 - weight)) * (1 - 0.55 * tone) * 0.85
    )
    body = mix(body, rgb(INK), smoothstep(1 - weight * 0.55, 1.04 - weight * 0.55, 1 - carve))
    cap, fingers = foam(sx, y, top, swell, row)
    body = mix(body, rgb(PALE), smoothstep(-pixel, pixel, fingers))
    body = mix(body, rgb(PAPER), smoothstep(-pixel, pixel, cap))
    outline = smoothstep(2.6 * pixel, 1.2 * pixel, np.abs(cap)) + smoothstep(
        2.0 * pixel, 0.8 * pixel, np.abs(fingers)
    )
    outline += smoothstep(4.0 * pixel, 2.4 * pixel, np.abs(depth))
    body = mix(body, rgb(INK), np.clip(outline, 0, 1))
    return mix(picture, body, smoothstep(-2.5 * pixel, -1.5 * pixel, depth))


def spray(
    picture: Array, x: Array, y: Array, *, row: int, pixel: float, rng: np.random.Generator
) -> Array:
    """Drops thrown from the crests of one rank."""
    at = rng.uniform(0, x.max(), 90).astype(np.float32)
    top, swell = crest(at, row)
    lift = rng.exponential(0.014 + 0.006 * row, 90)
    size = rng.uniform(1.2, 2.2 + 0.9 * row, 90) * pixel * 1.6
    for cx, cy, r, s in zip(at, top - lift, size, swell, strict=True):
        if not 0.42 < s < 0.85:
            continue
        reach = int(r / pixel) + 4
        column, line = int(cx / pixel), int(cy / pixel)
        box = np.s_[max(line - reach, 0) : line + reach, max(column - reach, 0) : column + reach]
        far = np.hypot(x[box] - cx, y[box] - cy)
        part = mix(picture[box], rgb(INK), smoothstep(r + 1.4 * pixel, r + 0.4 * pixel, far))
        picture[box] = mix(part, rgb(PAPER), smoothstep(r, r - pixel, far))
    return picture


def waves() -> Array:
    """Print the picture: (560, 768, 3) sRGB."""
    rng = np.random.default_rng(8)
    width, height = WIDTH * DETAIL, HEIGHT * DETAIL
    pixel = 1 / height
    y, x = np.mgrid[:height, :width].astype(np.float32) * np.float32(pixel)
    fade = smoothstep(0.0, 0.42, y)
    picture = mix(np.broadcast_to(rgb("3c6690"), (height, width, 3)), rgb("e9d3a6"), fade)
    picture = mix(picture, rgb("dd9a6a"), smoothstep(0.25, 0.45, y) * 0.55)
    far = np.hypot(x - 0.93, y - 0.26)
    picture = mix(picture, rgb(SUN), smoothstep(0.105, 0.105 - 2 * pixel, far))
    for band in range(5):  # flat banks of cloud
        level = 0.07 + 0.058 * band
        shape = (
            0.012
            + 0.011 * fbm(x * 2.2 + 7 * band, y * 0, 3, 20 + band)
            - np.abs(y - level - 0.006 * np.sin(5 * x + band))
        )
        picture = mix(picture, rgb(PAPER), smoothstep(-pixel, pixel, shape))
        picture = mix(picture, rgb(INK), smoothstep(1.8 * pixel, 0.8 * pixel, np.abs(shape)) * 0.9)
    for row in range(7):
        picture = wave(picture, x, y, row, pixel)
        picture = spray(picture, x, y, row=row, pixel=pixel, rng=rng)
    grain = fbm(x * 5 + 0.5 * fbm(x * 2, y * 2, 2, 4), y * 160, 3, 77)
    fibre = fbm(x * 120, y * 120, 2, 79)
    dark = 1 - picture.mean(axis=2)
    worn = smoothstep(0.55, 0.95, grain + 0.5 * fibre) * dark * 0.35
    picture = mix(picture, rgb(PAPER), worn)
    return np.clip(shrink(picture * (1 + 0.025 * fibre)[..., None], DETAIL), 0, 1)
