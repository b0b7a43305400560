"""A night of swirling brush strokes in blue and yellow, thick paint lit from one side."""

from __future__ import annotations

import numpy as np
from pictures.noise import Array, blur, fbm, mix, noise, rgb, shrink, smoothstep
from PIL import Image, ImageDraw

SIDE, DETAIL = 720, 2
# x, y, radius, turn: where the sky whirls; and x, y, radius of the lights in it
WHIRLS = (
    (0.36, 0.36, 0.17, 1.0),
    (0.60, 0.44, 0.12, -1.0),
    (0.16, 0.56, 0.10, -0.8),
    (0.86, 0.60, 0.12, 0.9),
)
LIGHTS = (
    (0.83, 0.15, 0.085), (0.12, 0.14, 0.045), (0.30, 0.10, 0.034), (0.53, 0.16, 0.042),
    (0.64, 0.07, 0.026), (0.08, 0.37, 0.036), (0.72, 0.30, 0.030), (0.93, 0.40, 0.034),
)  # fmt: skip
NIGHT = ("0d1b4c", "16308a", "1f4fa8", "3b7fc4", "7fb2d9", "c5dbe0")
GLOW = ("f7f0b8", "f9d94a", "f0b323", "d9921c")


def flow(x: Array, y: Array) -> Array:
    """Angle of the strokes at points of the unit square."""
    u = np.ones_like(x) * 0.55
    v = 0.38 * np.sin(6.5 * x + 1.4 * fbm(x * 2, y * 2, 2, 5)) + 0.2 * fbm(x * 3, y * 3, 2, 6)
    for cx, cy, radius, turn in WHIRLS:
        dx, dy = x - cx, y - cy
        pull = 2.4 * np.exp(-((dx * dx + dy * dy) / (1.1 * radius) ** 2))
        far = np.hypot(dx, dy) / radius + 0.05
        u, v = (
            u + pull * (-turn * dy / radius - 0.15 * dx) / far,
            v + pull * (turn * dx / radius) / far,
        )
    for cx, cy, radius in LIGHTS:
        dx, dy = x - cx, y - cy
        far = np.hypot(dx, dy) / radius + 0.05
        pull = 4.0 * np.exp(-((far / 2.0) ** 2))
        u, v = u - pull * dy / radius / far, v + pull * dx / radius / far
    hill = smoothstep(-0.02, 0.05, y - ridge(x))
    slope = 0.35 * np.cos(5 * x + 9 * y)
    u, v = u * (1 - hill) + hill * 1.6, v * (1 - hill) + hill * slope * 1.6
    tree = smoothstep(0.02, -0.01, cypress(x, y))
    return np.arctan2(
        v * (1 - tree) - 2.0 * tree, u * (1 - tree) + tree * 0.5 * np.sin(26 * y + 30 * x)
    )


def ridge(x: Array) -> Array:
    """Height (downwards) of the hills' outline."""
    return 0.76 + 0.05 * np.sin(5.2 * x + 0.6) + 0.025 * np.sin(13 * x) - 0.06 * x


def cypress(x: Array, y: Array) -> Array:
    """Signed distance, roughly, to the dark flame of a tree."""
    top = np.clip((y - 0.30) / 0.72, 0, 1)
    half = 0.088 * top**0.75 * (1 - 0.25 * top**4) + 0.010 * np.sin(38 * y + 4)
    return np.where(y < 0.30, 0.05, np.abs(x - 0.245 - 0.018 * np.sin(9 * y)) - half)


def paint(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Colour of a stroke at points, with the painter's freedom."""
    jitter = rng.normal(0, 0.16, x.shape)
    tone = 0.40 + 0.42 * fbm(x * 4, y * 4, 4, 11) + jitter
    for cx, cy, radius, _ in WHIRLS:
        far = np.hypot(x - cx, y - cy) / radius
        tone += 0.30 * np.exp(-((far - 0.75) ** 2) / 0.06) + 0.25 * np.exp(-(far**2) / 0.05)
        tone += 0.10 * np.sin(far * 17) * np.exp(-(far**2) / 1.2)
    colour = ramp(NIGHT, tone)
    for cx, cy, radius in LIGHTS:
        far = np.hypot(x - cx, y - cy) / radius
        gold = ramp(GLOW, far / 1.9 + 0.6 * jitter)
        halo = smoothstep(2.7, 1.2, far + 1.2 * np.abs(jitter))
        rings = 0.82 + 0.18 * np.cos(far * 5.0) * smoothstep(0.6, 1.2, far) + 0.2 * (far < 1)
        colour = mix(colour, gold, np.clip(halo * rings * 1.15, 0, 1))
    band = smoothstep(0.09, 0.0, ridge(x) - y) * (rng.random(x.shape) < 0.6)
    colour = mix(colour, rgb("dfe3b0"), band * 0.75)
    land = ramp(
        ("0e2a3a", "1c4a4a", "2f6a4f", "6f8f4a", "b7a544"),
        0.42 + 0.5 * fbm(x * 7, y * 9, 3, 17) + jitter,
    )
    colour = mix(colour, land, smoothstep(0.0, 0.01, y - ridge(x)))
    dark = ramp(
        ("0b0f14", "12241f", "1f3b24", "3f4f22", "6a4a22"),
        0.32 + 0.4 * fbm(x * 12, y * 6, 3, 19) + 1.1 * jitter,
    )
    return mix(colour, dark, (cypress(x, y) < 0).astype(np.float32))


def ramp(colours: tuple[str, ...], t: Array) -> Array:
    """Interpolate along a list of colours, t in [0, 1]."""
    table = np.stack([rgb(c) for c in colours])
    at = np.clip(t, 0, 1) * (len(colours) - 1)
    return np.stack(
        [np.interp(at, np.arange(len(colours)), table[:, i]) for i in range(3)], axis=-1
    ).astype(np.float32)


def trace(x: Array, y: Array, length: Array, steps: int = 9) -> Array:
    """Follow the flow both ways from points: (N, steps, 2)."""
    halves = []
    for sign in (-1, 1):
        px, py, points = x.copy(), y.copy(), []
        for _ in range(steps // 2):
            angle = flow(px, py)
            px, py = (
                px + sign * length / steps * np.cos(angle),
                py + sign * length / steps * np.sin(angle),
            )
            points.append(np.stack((px, py), axis=-1))
        halves.append(points[::-1] if sign < 0 else points)
    return np.stack([*halves[0], np.stack((x, y), axis=-1), *halves[1]], axis=1)


def layer(
    colours: Image.Image,
    relief: Image.Image,
    *,
    count: int,
    length: float,
    width: float,
    rng: np.random.Generator,
) -> None:
    """Lay ``count`` strokes of about ``length`` and ``width`` (shares of the side)."""
    size = colours.size[0]
    x, y = (rng.uniform(-0.03, 1.03, count).astype(np.float32) for _ in range(2))
    paths = trace(x, y, (length * rng.uniform(0.6, 1.3, count)).astype(np.float32))
    tints = paint(x, y, rng)
    across = np.gradient(paths, axis=1)[..., ::-1] * (-1, 1)
    across /= np.linalg.norm(across, axis=2, keepdims=True) + 1e-9
    taper = np.sin(np.linspace(0.35, np.pi - 0.35, paths.shape[1]))[:, None]
    draw, draw_relief = ImageDraw.Draw(colours), ImageDraw.Draw(relief)
    bristles = max(5, round(width * size / 2.2))
    for path, side, tint in zip(paths, across, tints, strict=True):
        for offset in np.linspace(-0.5, 0.5, bristles):
            line = (path + side * offset * width * taper) * size
            line = [tuple(p) for p in line[int(rng.integers(2)) : len(line) - int(rng.integers(2))]]
            shade = np.clip(tint * rng.uniform(0.86, 1.12) + rng.normal(0, 0.02, 3), 0, 1) * 255
            draw.line(line, fill=tuple(int(c) for c in shade), width=4, joint="curve")
            body = 150 * (1 - (1.7 * offset) ** 2) + rng.uniform(0, 105)
            draw_relief.line(line, fill=int(np.clip(body, 0, 255)), width=3, joint="curve")


def starry() -> Array:
    """Paint the picture: (720, 720, 3) sRGB."""
    rng = np.random.default_rng(42)
    size = SIDE * DETAIL
    colours, relief = (
        Image.new("RGB", (size, size), (20, 40, 110)),
        Image.new("L", (size, size), 60),
    )
    for count, length, width in ((1800, 0.16, 0.026), (3800, 0.11, 0.017), (5200, 0.075, 0.012)):
        layer(colours, relief, count=count, length=length, width=width, rng=rng)
    picture = np.asarray(colours).astype(np.float32) / 255
    height = blur(np.asarray(relief).astype(np.float32) / 255, 1.1)
    grain = noise(*np.meshgrid(np.arange(size) / 3, np.arange(size) / 3), 3).astype(np.float32)
    dy, dx = np.gradient(height + 0.03 * grain)
    light = np.clip(1 - 1.5 * (dx + 1.2 * dy), 0.55, 1.45)[..., None]
    shine = np.clip(-(dx + dy) - 0.16, 0, 0.5)[..., None] * 0.9
    return np.clip(shrink(picture * light + shine, DETAIL), 0, 1)
