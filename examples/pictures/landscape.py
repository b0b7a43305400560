"""A mountain lake: a height field seen by ray casting, with snow, firs, clouds and a reflection."""

from __future__ import annotations

import numpy as np
from pictures.noise import Array, fbm, film, linear, mix, noise, ridged, shrink, smoothstep

WIDTH, HEIGHT, DETAIL = 768, 576, 2
EYE = 1.1  # camera above the water
FOCAL = 1.05  # in picture widths
HORIZON = 0.52  # of the picture's height
ISLAND = (-2.9, 9.3)
STEPS = 2000  # depths sampled along a column
SUN = np.array((-0.86, 0.42, -0.28), np.float32)
SUNLIGHT = np.array((3.0, 2.35, 1.6), np.float32)
SKYLIGHT = np.array((0.38, 0.55, 0.85), np.float32)


def ground(x: Array, z: Array, octaves: int = 9) -> Array:
    """Height above the water at lateral position x and depth z."""
    shore = 15 + 2.2 * noise(x * 0.16, x * 0 + 0.5, 3) + 0.05 * np.abs(x) ** 1.3
    hills = smoothstep(0, 18, z - shore) * (0.7 + 0.5 * fbm(x * 0.12, z * 0.12, 3, 7))
    valley = 0.35 + 0.65 * smoothstep(1, 15, np.abs(x - 2.0 - 0.05 * z))
    peaks = ridged(x * 0.055 + 0.15, z * 0.055 + 0.3, octaves, 21) ** 1.35
    peaks *= smoothstep(2, 34, z - shore) * 8.5 * valley
    beach = -0.28 + 0.62 * smoothstep(-1.0, 2.2, z - shore)
    away = np.hypot(x - ISLAND[0], (z - ISLAND[1]) * 1.2) + 0.4 * fbm(x, z, 4, 5)
    island = 0.62 * smoothstep(2.3, 0.4, away)
    rough = 0.05 * fbm(x * 2, z * 2, max(octaves - 5, 1), 9)
    return hills + peaks + island + beach + rough * smoothstep(-2, 4, z - shore)


def first_hits(eye: float, width: int, rows: int) -> Array:
    """Depth at which the ray of each pixel meets the ground; infinity for the sky.

    Along a column of the picture the height of the skyline seen so far only grows with depth, so
    one search in it finds the first ground that reaches each row. A mirrored ray (from an eye below
    the water) starts where it leaves the water; where ground lies before that, it is skipped.
    """
    depths = np.geomspace(1.6, 120, STEPS).astype(np.float32)
    columns = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    across = columns[None] * depths[:, None] / FOCAL
    heights = ground(across, np.broadcast_to(depths[:, None], across.shape))
    if eye < 0:  # what is mirrored stands above the water
        heights[heights < 0] = eye
    seen = FOCAL * (heights - eye) / depths[:, None]
    skyline = np.maximum.accumulate(seen, axis=0)
    slopes = slopes_of_rows(width, rows)
    leaving = -eye * FOCAL / np.maximum(slopes, 1e-6)
    start = np.searchsorted(depths, leaving) if eye < 0 else np.zeros(rows, np.int64)
    hits = np.full((rows, width), np.inf, np.float32)
    for column in range(width):
        index = np.searchsorted(skyline[:, column], slopes)
        for row in np.nonzero((index < start) & (start < len(depths)))[0]:
            later = seen[start[row] :, column] >= slopes[row]
            index[row] = start[row] + later.argmax() if later.any() else len(depths)
        found = index < len(depths)
        hits[found, column] = depths[index[found]]
    return hits


def slopes_of_rows(width: int, rows: int) -> Array:
    """Upward slope of each row's rays, in picture widths."""
    return ((HORIZON * rows - np.arange(rows, dtype=np.float32) - 0.5) / width).astype(np.float32)


def sky(x: Array, slope: Array) -> Array:
    """Colour of the sky, clouds lit from the sun's side."""
    up = np.clip(slope, 0.0, 1)
    colour = mix(linear("f6d9b8"), linear("4f86c6"), smoothstep(-0.02, 0.30, up))
    colour = mix(colour, linear("2a5a9e"), smoothstep(0.22, 0.6, up))
    scale = 1 / (up + 0.16)
    u, v = x * scale * 1.3 + 3.1, scale * 1.5
    warp = 0.22 * fbm(u * 0.7, v * 0.9, 3, 61)
    density = fbm(1.25 * u + warp, v * 1.9 + warp, 6, 50)
    towards_sun = fbm(1.25 * u + warp - 0.16, v * 1.9 + warp - 0.10, 6, 50)
    cover = smoothstep(0.0, 0.5, density + 0.05) * smoothstep(0.0, 0.10, up)
    lit = np.clip(0.62 + 1.5 * (density - towards_sun), 0.15, 1.25)
    cloud = mix(linear("8fa0bd"), np.array((1.25, 1.08, 0.92), np.float32), lit)
    return mix(colour, cloud, 0.92 * cover)


def sunlit(x: Array, y: Array, z: Array) -> Array:
    """Share of sunlight that reaches points, by marching towards the sun."""
    light, reach = np.ones_like(x), 0.25
    for _ in range(22):
        px, py, pz = (p + reach * s for p, s in zip((x, y, z), SUN, strict=True))
        above = py - ground(px, pz, 5)
        light = np.minimum(light, np.clip(0.5 + 5 * above / reach, 0, 1))
        reach *= 1.22
    return light


def shade(x: Array, z: Array) -> Array:
    """Linear colour of the ground: snow, rock, meadow and wood by height and slope, in haze."""
    y, step = ground(x, z), 0.004 * z
    normal = np.stack((y - ground(x + step, z), step, y - ground(x, z + step)), axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    flat = normal[..., 1]
    grain = fbm(x * 3, z * 3, 4, 33)
    rock = mix(linear("6d6259"), linear("9a8b7c"), np.clip(0.5 + 0.6 * grain, 0, 1))
    meadow = mix(linear("4a6428"), linear("93883c"), np.clip(0.5 + 0.6 * fbm(x, z, 4, 35), 0, 1))
    wood = mix(
        linear("16301c"), linear("2f4d24"), np.clip(0.5 + 0.9 * noise(x * 9, z * 9, 36), 0, 1)
    )
    low = mix(meadow, wood, smoothstep(-0.15, 0.25, fbm(x * 0.5, z * 0.5, 4, 37)))
    low = mix(low, rock, smoothstep(2.6, 4.4, y + 1.2 * grain) * 0.9)
    colour = mix(rock, low, smoothstep(0.50, 0.72, flat + 0.06 * grain))
    snow = smoothstep(4.4, 6.0, y + 0.9 * grain) * smoothstep(0.42, 0.66, flat + 0.05 * grain)
    colour = mix(colour, np.array((0.86, 0.88, 0.93), np.float32), snow)
    colour = mix(linear("8d8468"), colour, smoothstep(0.02, 0.14, y))
    direct = np.clip(normal @ SUN, 0, 1) * sunlit(x, y + 0.02 * np.sqrt(z), z)
    colour = colour * (direct[..., None] * SUNLIGHT + (0.35 + 0.65 * flat)[..., None] * SKYLIGHT)
    haze = 1 - np.exp(-np.maximum(z - 6, 0) * 0.0075)
    return mix(colour, np.array((0.60, 0.66, 0.80), np.float32), haze)


def view(eye: float, width: int, rows: int) -> tuple[Array, Array]:
    """Linear picture without water, and the depth of each pixel, from height ``eye``."""
    depth = first_hits(eye, width, rows)
    slope = np.broadcast_to(slopes_of_rows(width, rows)[:, None], depth.shape)
    across = ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) / FOCAL
    across = np.broadcast_to(across[None], depth.shape)
    picture = sky(across, slope)
    land = np.isfinite(depth)
    picture[land] = shade(across[land] * depth[land], depth[land])
    return picture, depth


def firs(picture: Array, depth: Array, eye: float) -> None:
    """Stand firs on the shores, far ones first."""
    rng = np.random.default_rng(12)
    spots = [
        (x, z) for x, z in zip(rng.uniform(-16, 16, 2600), rng.uniform(4.2, 30, 2600), strict=True)
    ]
    turns, radii = rng.uniform(0, 2 * np.pi, 26), 1.25 * np.sqrt(rng.uniform(0, 1, 26))
    spots += [
        (ISLAND[0] + r * np.cos(t), ISLAND[1] + r * np.sin(t))
        for t, r in zip(turns, radii, strict=True)
    ]
    for x, z in sorted(spots, key=lambda spot: -spot[1]):
        y = float(ground(np.float32([x]), np.float32([z]))[0])
        thick = float(fbm(np.float32([x * 0.35]), np.float32([z * 0.35]), 2, 71)[0])
        if not 0.06 < y < 2.6 or (thick < -0.1 and z > 12):
            continue
        tall, seed = rng.uniform(0.75, 1.35), int(rng.integers(1 << 30))
        fir(picture, depth, (x, y - eye, z), tall=tall, seed=seed)


def fir(
    picture: Array, depth: Array, at: tuple[float, float, float], *, tall: float, seed: int
) -> None:
    """Paint one fir of height ``tall`` standing at (x, y, z), seen from the origin."""
    rows, width = depth.shape
    x, y, z = at
    scale = FOCAL * width / z
    foot, middle = HORIZON * rows - scale * y, width * 0.5 + scale * x
    size, half = scale * tall, scale * tall * 0.24
    r0, r1 = max(int(foot - size), 0), min(int(foot) + 1, rows)
    c0, c1 = max(int(middle - half), 0), min(int(middle + half) + 2, width)
    if r1 <= r0 or c1 <= c0:
        return
    row, column = np.mgrid[r0:r1, c0:c1].astype(np.float32) + 0.5
    v, u = (foot - row) / size, (column - middle) / size  # up the trunk, across
    tier = np.mod(v * 11 + 0.9 * noise(u * 9, v * 9, seed), 1)
    edge = (1 - v) * 0.21 * (0.45 + 0.55 * (1 - tier)) * (1 + 0.5 * noise(u * 40, v * 55, seed + 1))
    inside = (np.abs(u) < edge) | ((np.abs(u) < 0.012) & (v < 0.1))
    inside &= depth[r0:r1, c0:c1] > z - 0.3
    side = np.clip(0.5 - u / (0.3 * (1.05 - v)) + 0.5 * noise(u * 60, v * 70, seed + 2), 0, 1)
    needles = mix(linear("0f2416"), linear("4d6b2c"), side) * (0.55 + 0.75 * (1 - tier))[..., None]
    colour = needles * (0.55 * SUNLIGHT * side[..., None] + 0.75 * SKYLIGHT)
    haze = np.float32(1 - np.exp(-max(z - 6, 0) * 0.0075))
    colour += (np.array((0.60, 0.66, 0.80), np.float32) - colour) * haze
    picture[r0:r1, c0:c1][inside] = colour[inside]
    depth[r0:r1, c0:c1][inside] = z


def water(picture: Array, depth: Array, mirrored: Array) -> None:
    """Fill the lake, where the water plane is nearer than the ground."""
    rows, width = depth.shape
    slope = slopes_of_rows(width, rows)
    below = np.where(slope < 0, EYE * FOCAL / np.maximum(-slope, 1e-6), np.inf).astype(np.float32)
    row, column = np.nonzero(below[:, None] < depth)
    z = below[row]
    x = ((column + 0.5) / width - 0.5).astype(np.float32) / FOCAL * z
    ripple = fbm(x * 2.2, z * 5.5, 5, 81) * smoothstep(2, 9, z) + 0.6 * fbm(x * 0.5, z * 1.6, 3, 85)
    calm = 0.35 + 0.65 * smoothstep(-0.3, 0.5, fbm(x * 0.25, z * 0.5, 3, 87))
    shift = ripple * calm * (4.0 + 0.25 * (row - HORIZON * rows) * 0.12)
    source = np.clip(2 * HORIZON * rows - row - np.abs(shift) * 1.4 - 1, 0, rows - 1).astype(
        np.int64
    )
    aside = np.clip(column + 0.5 * shift, 0, width - 1).astype(np.int64)
    reflected = mirrored[source, aside]
    glance = 1 / np.sqrt(1 + (z / EYE) ** 2)
    fresnel = np.clip(0.04 + 0.96 * (1 - glance) ** 4 + 0.10 * ripple * calm, 0.05, 0.92)
    deep = np.array((0.015, 0.06, 0.085), np.float32)
    bed = mix(deep, linear("53603f") * 0.5, np.exp(-np.maximum(z - 1, 0) * 0.55))
    picture[row, column] = mix(bed, reflected * np.float32((0.92, 0.96, 1.0)), fresnel)


def lake() -> Array:
    """Render the picture: (576, 768, 3) sRGB."""
    width, rows = WIDTH * DETAIL, HEIGHT * DETAIL
    mirrored, mirrored_depth = view(-EYE, width, rows)
    firs(mirrored, mirrored_depth, -EYE)
    picture, depth = view(EYE, width, rows)
    firs(picture, depth, EYE)
    water(picture, depth, mirrored)
    return film(shrink(picture, DETAIL), 0.8)
