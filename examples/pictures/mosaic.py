"""A mosaic floor: stones set in rows around a sun and waves, with dark grout."""

from __future__ import annotations

import numpy as np
from pictures.noise import Array, blur, fbm, mix, noise, rgb, shrink
from PIL import Image, ImageDraw

SIDE, DETAIL, STONE = 704, 2, 0.0165  # stones are this share of the side
GROUND = ("e9dcc0", "dfcda8", "f1e8d3", "d3bf98")
SEA = ("1f6f7a", "2f8f96", "17505f", "58adab", "7cc4b8")
GOLD = ("d99a2b", "e8b84a", "c47a1e", "f2d07a")
TERRA = ("a8432c", "c05a38", "8a3324", "d57a4e")
DARK = ("23211f", "34302c", "2b2f38")


def pattern(x: Array, y: Array) -> tuple[Array, Array]:
    """Kind of stone at points, and the angle of the rows there."""
    dx, dy = x - 0.5, y - 0.5
    far, turn = np.hypot(dx, dy), np.arctan2(dy, dx)
    kind = np.zeros(x.shape, np.int64)
    angle = turn + np.pi / 2
    rays = far < 0.125 + 0.045 * np.abs(((turn * 16 / (2 * np.pi)) % 1) * 2 - 1)
    kind[rays] = 3
    kind[far < 0.115] = 2
    kind[np.abs(far - 0.118) < 0.010] = 4
    ring = (far > 0.20) & (far < 0.40)
    wavy = 0.300 + 0.045 * np.sin(10 * turn)
    kind[ring] = 1
    kind[ring & (np.abs(far - wavy) < 0.020)] = 0
    kind[ring & (np.abs(far - wavy - 0.028) < 0.009)] = 5
    for edge in (0.20, 0.40):
        kind[np.abs(far - edge) < 0.0105] = 4
    band = (far > 0.41) & (far < 0.455)
    kind[band] = np.where(np.mod(turn * 40 / (2 * np.pi), 1) < 0.5, 3, 0)[band]
    corner = far > 0.465
    kind[corner] = 0
    ax, ay = np.abs(dx), np.abs(dy)
    fx, fy = (
        (ax - 0.395) * 0.707 + (ay - 0.395) * 0.707,
        (ax - 0.395) * 0.707 - (ay - 0.395) * 0.707,
    )
    body = np.hypot(fx / 0.040, fy / 0.095) < 1
    tail = (np.abs(fx) < 0.36 * (fy - 0.075)) & (fy < 0.135)
    kind[corner & (body | tail)] = 2
    kind[corner & body & (np.mod(fy / 0.036, 1) < 0.45)] = 3
    kind[corner & (np.hypot(fx, fy + 0.060) < 0.012)] = 4
    angle = np.where(corner, np.arctan2(dy, dx), angle)
    border = np.maximum(ax, ay)
    kind[border > 0.468] = np.where(np.mod((ax + ay) * 17, 1) < 0.5, 1, 0)[border > 0.468]
    kind[np.abs(border - 0.466) < 0.009] = 4
    angle = np.where(border > 0.457, 0.0, angle)
    return kind, angle.astype(np.float32)


def stones(rng: np.random.Generator) -> tuple[Array, Array]:
    """Centres of the stones and nothing else: rows around the middle, straight in the border."""
    centres = []
    for row in range(int(0.72 / STONE)):
        radius = (row + 0.5) * STONE
        count = max(1, round(2 * np.pi * radius / (STONE * 1.04)))
        turn = (np.arange(count) + rng.random()) * 2 * np.pi / count
        centres.append(np.stack((0.5 + radius * np.cos(turn), 0.5 + radius * np.sin(turn)), axis=1))
    ring = np.concatenate(centres)
    ring = ring[np.abs(ring - 0.5).max(axis=1) < 0.457]
    grid = (np.arange(int(1 / STONE)) + 0.5) * STONE + (1 - STONE * int(1 / STONE)) / 2
    square = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    square = square[np.abs(square - 0.5).max(axis=1) > 0.457]
    points = np.concatenate((ring, square)).astype(np.float32)
    return points[:, 0], points[:, 1]


def floor() -> Array:
    """Lay the picture: (704, 704, 3) sRGB."""
    rng = np.random.default_rng(31)
    size = SIDE * DETAIL
    x, y = stones(rng)
    kind, angle = pattern(x, y)
    sets = (GROUND, SEA, GOLD, TERRA, DARK, ("f6f1e2", "e8f0ea"))
    colours, relief = Image.new("RGB", (size, size), (74, 66, 58)), Image.new("L", (size, size), 0)
    draw, draw_relief = ImageDraw.Draw(colours), ImageDraw.Draw(relief)
    corners = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1)), np.float32)
    for px, py, k, turn in zip(x, y, kind, angle, strict=True):
        tilt = turn + rng.normal(0, 0.05)
        across, along = (
            np.array((np.cos(tilt), np.sin(tilt))),
            np.array((-np.sin(tilt), np.cos(tilt))),
        )
        half = 0.5 * STONE * rng.uniform(0.80, 0.93, 2)
        quad = corners * half * (1 + rng.normal(0, 0.07, (4, 2)))
        shape = (
            np.array((px, py))
            + rng.normal(0, 0.0004, 2)
            + quad[:, :1] * across
            + quad[:, 1:] * along
        ) * size
        tint = rgb(str(rng.choice(sets[k]))) * rng.uniform(0.88, 1.08) + rng.normal(0, 0.015, 3)
        outline = [tuple(p) for p in shape]
        draw.polygon(outline, fill=tuple(int(c) for c in np.clip(tint, 0, 1) * 255))
        draw_relief.polygon(outline, fill=int(rng.uniform(170, 255)))
    picture = np.asarray(colours).astype(np.float32) / 255
    v, u = np.mgrid[:size, :size].astype(np.float32) / size
    height = blur(np.asarray(relief).astype(np.float32) / 255, 1.6) + 0.05 * fbm(
        u * 150, v * 150, 3, 5
    )
    dy, dx = np.gradient(height)
    light = np.clip(1 - 1.2 * (dx + dy), 0.6, 1.5) * (0.97 + 0.10 * fbm(u * 60, v * 60, 3, 7))
    light *= 1 + 0.10 * fbm(u * 2, v * 2, 3, 9)
    worn = mix(
        picture * light[..., None], rgb("b8a98c"), np.clip(0.12 * noise(u * 25, v * 25, 8), 0, 1)
    )
    return np.clip(shrink(worn, DETAIL), 0, 1)
