"""A stained-glass window: cubist facets of a figure with a lute, dark lead between them."""

from __future__ import annotations

import numpy as np
from pictures.noise import Array, blur, fbm, mix, noise, rgb, shrink, smoothstep

WIDTH, HEIGHT, DETAIL = 640, 720, 2
COOL = ("123a6b", "1e6a9e", "3a9aa8", "0f5560", "5c4a8f", "2c2f6e")
WARM = ("b3242a", "d9622b", "eaa63a", "f3d27a", "8c2f52", "c44a3a")
SKIN = ("e8b58a", "f0cfa4", "cf8a62", "f5dcb8", "b9684a")
EARTH = ("6b3a22", "94562c", "c98b45", "4a2a1e", "e0b060")


def regions(x: Array, y: Array) -> Array:
    """Index of the part of the figure at each point: ground, halo, robe, hair, face, lute, hand."""
    part = np.zeros(x.shape, np.int64)
    part[np.hypot(x - 0.50, y - 0.30) < 0.265] = 1
    shoulders = 0.50 + 0.9 * np.abs(x - 0.5) ** 1.6
    part[(y > shoulders) & (np.abs(x - 0.5) < 0.16 + 0.55 * (y - 0.45))] = 2
    part[np.hypot((x - 0.50) / 0.165, (y - 0.30) / 0.21) < 1] = 3
    part[(np.abs(x - 0.5) < 0.06) & (y > 0.4) & (y < 0.56)] = 4
    part[np.hypot((x - 0.51) / 0.118, (y - 0.325) / 0.165) < 1] = 4
    u, v = (x - 0.56) * 0.78 + (y - 0.78) * 0.62, -(x - 0.56) * 0.62 + (y - 0.78) * 0.78
    part[np.hypot(u / 0.22, v / 0.145) < 1] = 5
    part[(np.abs(v) < 0.028) & (u < 0) & (u > -0.52)] = 5
    part[np.hypot((x - 0.36) / 0.075, (y - 0.66) / 0.045) < 1] = 6
    part[np.hypot((x - 0.63) / 0.08, (y - 0.80) / 0.05) < 1] = 6
    return part


def facets(x: Array, y: Array, part: Array, rng: np.random.Generator) -> Array:
    """Label of the pane at each point: the plane cut by long chords, each part by its own set."""
    label = part.astype(np.int64)
    for kind, cuts in enumerate((17, 9, 11, 7, 7, 6, 2)):
        here = part == kind
        cx, cy = x[here].mean(), y[here].mean()
        spread = 0.9 * max(float(np.ptp(x[here])), float(np.ptp(y[here]))) / 2
        code = np.zeros(int(here.sum()), np.int64)
        for cut in range(cuts):
            angle, shift = rng.uniform(0, np.pi), rng.uniform(-spread, spread)
            bend = rng.uniform(-0.5, 0.5) * (rng.random() < 0.4)
            along = (x[here] - cx) * np.cos(angle) + (y[here] - cy) * np.sin(angle)
            across = -(x[here] - cx) * np.sin(angle) + (y[here] - cy) * np.cos(angle)
            code |= (along + bend * across**2 > shift).astype(np.int64) << cut
        label[here] += code * 7
    return np.unique(label, return_inverse=True)[1].reshape(x.shape)


def window() -> Array:
    """Paint the picture: (720, 640, 3) sRGB."""
    rng = np.random.default_rng(20)
    width, height = WIDTH * DETAIL, HEIGHT * DETAIL
    y, x = np.mgrid[0 : HEIGHT / WIDTH : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    y = y * WIDTH / HEIGHT
    part = regions(x, y)
    panes = facets(x, y, part, rng)
    kinds = np.zeros(panes.max() + 1, np.int64)
    kinds[panes.ravel()] = part.ravel()
    sets = (COOL, WARM[1:4], WARM, EARTH, SKIN, EARTH[1:], SKIN)
    base = np.stack([rgb(str(rng.choice(sets[k]))) for k in kinds])
    angle, strength = rng.uniform(0, 2 * np.pi, len(kinds)), rng.uniform(0.5, 1.3, len(kinds))
    slope = ((x - 0.5) * np.cos(angle)[panes] + (y - 0.5) * np.sin(angle)[panes]) * strength[panes]
    slope -= (np.bincount(panes.ravel(), slope.ravel()) / np.bincount(panes.ravel()))[panes]
    light = 1 + 2.6 * np.clip(slope, -0.2, 0.2)
    light *= 1 + 0.10 * fbm(x * 9, y * 9, 5, 3) + 0.05 * noise(x * 90, y * 24, 5)
    picture = np.clip(base[panes] * light[..., None], 0, 1)
    picture = mix(
        picture, np.sqrt(picture), np.clip(0.5 - 1.2 * np.hypot(x - 0.5, y - 0.35), 0, 0.4)
    )
    lead = blur(edges(panes), 2.2) * 3.4 + blur(edges(part), 3.2) * 2.6 + blur(features(x, y), 1.5)
    lead = smoothstep(0.25, 0.45, lead)
    roundness = blur(lead, 1.5)
    dy, dx = np.gradient(roundness)
    metal = np.clip(0.10 - 0.9 * (dx + dy), 0.03, 0.5)[..., None] * rgb("b8c0cc")
    glow = 1 + 0.25 * blur(1 - lead, 9)[..., None] - 0.2
    return np.clip(shrink(mix(np.clip(picture * glow, 0, 1), metal, lead), DETAIL), 0, 1)


def edges(label: Array) -> Array:
    """1 where the label differs from the pixel to the right or below."""
    out = np.zeros(label.shape, np.float32)
    out[:, :-1] += label[:, 1:] != label[:, :-1]
    out[:-1] += label[1:] != label[:-1]
    return np.clip(out, 0, 1)


def features(x: Array, y: Array) -> Array:
    """Eyes, brows, nose, mouth; strings and the rose of the lute: painted dark on the glass."""
    ink = np.zeros(x.shape, bool)
    for side in (-1, 1):
        ex = x - 0.51 - side * 0.05
        ink |= np.abs(np.hypot(ex / 0.030, (y - 0.305) / 0.014) - 1) < 0.18
        ink |= np.hypot(ex, y - 0.305) < 0.0095
        ink |= (np.abs(y - 0.275 + 3 * ex**2 + 0.006) < 0.005) & (np.abs(ex) < 0.036)
    ink |= (np.abs(x - 0.51 - 0.28 * (y - 0.30)) < 0.004) & (y > 0.30) & (y < 0.375)
    ink |= (np.abs(y - 0.378) < 0.004) & (x > 0.50) & (x < 0.535)
    ink |= (np.abs(y - 0.418 + 4 * (x - 0.515) ** 2) < 0.005) & (np.abs(x - 0.515) < 0.034)
    u, v = (x - 0.56) * 0.78 + (y - 0.78) * 0.62, -(x - 0.56) * 0.62 + (y - 0.78) * 0.78
    ink |= (
        (np.abs(np.mod(v + 0.004, 0.012) - 0.006) < 0.0016)
        & (np.abs(v) < 0.02)
        & (u > -0.5)
        & (u < 0.12)
    )
    ink |= np.abs(np.hypot(u, v) - 0.042) < 0.005
    return ink.astype(np.float32)
