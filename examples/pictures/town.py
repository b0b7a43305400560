"""A canal between gabled houses, with an arched bridge, in late sun."""

from __future__ import annotations

import numpy as np
from pictures.noise import Array, fbm, film, linear, mix, noise, smoothstep
from pictures.tracer import Camera, Colour, Convex, Ellipsoid, Plane, Scene, Shape, plain, unit

WIDTH, HEIGHT, SAMPLES = 768, 576, 32
QUAY = 2.6  # half the width of the canal
WALLS = ("c98a5a", "b4543c", "d9b36a", "c9c0a8", "8f4a38", "d68f6c", "a9b08c", "cfa24f", "7f8fa0")
ROOFS = ("7a3b2c", "8c4a34", "4f4a4a", "6b3a30")


def facade(wall: str, roof: str, *, low: float, eaves: float, width: float, seed: int) -> Colour:
    """Plaster or brick with rows of windows, a door zone below, tiles on what faces up."""
    floors = max(2, round((eaves - low) / 0.95))
    across = max(2, round(width / 0.72))

    def colour(p: Array, n: Array) -> Array:
        along = np.where(np.abs(n[:, 0]) > 0.5, p[:, 2], p[:, 0])
        u, v = along * across / width + 0.37 * seed, (p[:, 1] - low) / (eaves - low) * floors
        stain = (
            1
            + 0.16 * fbm(along * 1.6, p[:, 1] * 1.6, 4, seed)
            + 0.05 * noise(along * 30, p[:, 1] * 45, seed)
        )
        base = linear(wall) * stain[:, None]
        x, y = np.abs(np.mod(u, 1) - 0.5), np.abs(np.mod(v, 1) - 0.48)
        room = (v > 0.05) & (v < floors)
        frame, glass = room & (x < 0.27) & (y < 0.36), room & (x < 0.21) & (y < 0.31)
        bars = (x < 0.022) | (np.abs(np.mod(v, 1) - 0.58) < 0.022)
        base[frame] = linear("efe8d8")
        tint = noise(np.floor(u) * 7.3, np.floor(v) * 3.1, seed)
        base[glass & ~bars] = (linear("24303c") * (1 + 0.7 * tint[:, None]))[glass & ~bars]
        shutter = room & (x > 0.27) & (x < 0.43) & (y < 0.34) & (seed % 3 == 0)
        base[shutter] = linear("2f5d4a")
        tiles = (
            linear(roof)
            * (0.75 + 0.25 * np.sin(p[:, 1] * 38) + 0.2 * noise(p[:, 0] * 9, p[:, 2] * 9, seed))[
                :, None
            ]
        )
        up = n[:, 1] > 0.3
        base[up] = tiles[up]
        return base

    return colour


def stone(p: Array, n: Array) -> Array:
    """Coursed stone blocks."""
    along = np.where(np.abs(n[:, 0]) > 0.5, p[:, 2], p[:, 0])
    row = np.floor(p[:, 1] / 0.17)
    brick = np.floor(along / 0.42 + 0.5 * np.mod(row, 2))
    tone = 1 + 0.22 * noise(brick * 5.1, row * 7.7, 3) + 0.18 * fbm(along * 2, p[:, 1] * 2, 4, 5)
    joint = (np.mod(p[:, 1] / 0.17, 1) < 0.09) | (
        np.mod(along / 0.42 + 0.5 * np.mod(row, 2), 1) < 0.04
    )
    damp = smoothstep(0.5, 0.0, p[:, 1])
    colour = (
        mix(linear("b09f84"), linear("56604a"), damp) * (tone * np.where(joint, 0.6, 1))[:, None]
    )
    return np.maximum(colour, 0.01)


def ripples(p: Array, n: Array) -> Array:
    near = 1 / (1 + 0.04 * (p[:, 2] + 8))
    a = fbm(p[:, 0] * 1.5, p[:, 2] * 1.1, 4, 31) * 0.055 * near
    b = fbm(p[:, 0] * 1.5 + 40, p[:, 2] * 1.1, 4, 37) * 0.075 * near
    return n + np.stack((a, 0 * a, b), axis=1)


def foliage(p: Array, n: Array) -> Array:
    leaf = noise(p[:, 0] * 17 + p[:, 1] * 9, p[:, 2] * 17 - p[:, 1] * 13, 41)
    return mix(linear("2f4a1c"), linear("8a9a35"), np.clip(0.5 + 0.7 * leaf, 0, 1))


def ruffle(p: Array, n: Array) -> Array:
    shift = [noise(p[:, i] * 15, p[:, i - 1] * 15 + p[:, i - 2] * 11, 51 + i) for i in range(3)]
    return n + 0.8 * np.stack(shift, axis=1)


def house(
    side: int, near: float, deep: float, *, eaves: float, rise: float, seed: int
) -> list[Shape]:
    """A house on one quay: its gable looks on the canal, its ridge runs away from it."""
    low, middle = 0.55, near + deep / 2
    colour = facade(
        WALLS[seed % len(WALLS)],
        ROOFS[seed % len(ROOFS)],
        low=low,
        eaves=eaves,
        width=deep,
        seed=seed,
    )
    front, back = side * (QUAY + 0.9), side * (QUAY + 4.5)
    gable = [
        (near, low),
        (near + deep, low),
        (near + deep, eaves),
        (middle, eaves + rise),
        (near, eaves),
    ]
    shapes: list[Shape] = [Convex(gable, *sorted((front, back)), "zyx", colour=colour)]
    x = side * (QUAY + 2.2)
    stack = [
        (x - 0.18, middle + 0.5),
        (x + 0.18, middle + 0.5),
        (x + 0.18, middle + 0.8),
        (x - 0.18, middle + 0.8),
    ]
    shapes.append(Convex(stack, eaves, eaves + rise + 0.35, "xzy", colour=plain("7d4a3a")))
    return shapes


def bridge(at: float, thick: float) -> list[Shape]:
    """One stone arch across the canal, cut into wedges, with a parapet."""
    edges = np.linspace(-QUAY - 1.2, QUAY + 1.2, 25)
    deck = 0.75 + 1.15 * np.cos(edges / (QUAY + 1.2) * np.pi / 2) ** 1.2
    arch = np.where(
        np.abs(edges) < 2.15, 1.42 * np.sqrt(np.maximum(1 - (edges / 2.15) ** 2, 0)), -0.5
    )
    shapes: list[Shape] = []
    for i in range(len(edges) - 1):
        a, b = edges[i], edges[i + 1]
        shapes.append(
            Convex(
                [(a, arch[i]), (b, arch[i + 1]), (b, deck[i + 1]), (a, deck[i])],
                at,
                at + thick,
                colour=stone,
            )
        )
        rail = [(a, deck[i]), (b, deck[i + 1]), (b, deck[i + 1] + 0.3), (a, deck[i] + 0.3)]
        shapes.append(Convex(rail, at, at + 0.14, colour=stone))
    return shapes


def tree(x: float, z: float, size: float, seed: int) -> list[Shape]:
    rng = np.random.default_rng(seed)
    trunk = [(x - 0.07, z - 0.07), (x + 0.07, z - 0.07), (x + 0.07, z + 0.07), (x - 0.07, z + 0.07)]
    shapes: list[Shape] = [Convex(trunk, 0.5, 1.7, "xzy", colour=plain("4a3a2a"))]
    for _ in range(9):
        at = rng.normal(0, (0.33, 0.28, 0.33)) * size + (x, 1.55 + 0.75 * size, z)
        radii = rng.uniform(0.28, 0.5, 3) * size
        shapes.append(Ellipsoid(tuple(at), tuple(radii), colour=foliage, bumps=ruffle))
    return shapes


def boat(x: float, z: float, hull: str) -> list[Shape]:
    bench = [(x - 0.3, z - 0.12), (x + 0.3, z - 0.12), (x + 0.3, z + 0.12), (x - 0.3, z + 0.12)]
    return [
        Ellipsoid((x, 0.16, z), (0.42, 0.27, 1.15), colour=plain(hull), gloss=0.03),
        Ellipsoid((x, 0.36, z), (0.34, 0.12, 1.0), colour=plain("c8a878")),
        Convex(bench, 0.4, 0.52, "xzy", colour=plain("e6dcc4")),
    ]


def objects() -> list[Shape]:
    rng = np.random.default_rng(7)
    shapes: list[Shape] = [Plane(1, 0.0, 1, colour=plain("1d3a38"), gloss=0.06, bumps=ripples)]
    for side in (-1, 1):
        inner, outer = sorted((side * QUAY, side * 60.0))
        shapes.append(
            Convex([(inner, -1), (outer, -1), (outer, 0.55), (inner, 0.55)], -9, 60, colour=stone)
        )
        near, seed = -3.4 - 0.6 * side, 3 + side
        while near < 34:
            deep = rng.uniform(1.9, 2.9)
            shapes += house(
                side, near, deep, eaves=rng.uniform(2.9, 4.6), rise=rng.uniform(0.8, 1.5), seed=seed
            )
            near, seed = near + deep, seed + 2
    shapes += bridge(6.5, 1.5)
    shapes += (
        tree(-3.05, 1.2, 1.0, 1)
        + tree(3.05, 3.6, 0.95, 2)
        + tree(3.1, 10.5, 1.1, 3)
        + tree(-3.1, 9.6, 1.0, 4)
    )
    shapes += boat(-1.75, 0.3, "2f5f8a") + boat(1.8, 2.2, "a8392c") + boat(-1.9, 3.4, "e0d6bc")
    tower = [(-1.1, 36), (1.1, 36), (1.1, 38.2), (-1.1, 38.2)]
    shapes.append(
        Convex(
            tower,
            0,
            8.6,
            "xzy",
            colour=facade("c9b48a", "6b3a30", low=0.5, eaves=8.6, width=2.2, seed=5),
        )
    )
    shapes.append(Convex([(-1.2, 8.6), (1.2, 8.6), (0, 12.6)], 36.0, 38.2, colour=plain("4a5a5c")))
    return shapes


def heaven(d: Array) -> Array:
    """Evening blue, warm at the horizon, with flat clouds."""
    up = np.clip(d[:, 1], 0, 1)
    colour = mix(linear("efc795") * 0.95, linear("4c86c8"), smoothstep(0.02, 0.36, up))
    scale = 1 / (up + 0.14)
    u, v = d[:, 0] * scale * 1.5, d[:, 2] * scale * 0.8
    cover = smoothstep(0.12, 0.75, fbm(u, v + 0.6, 6, 91))
    return mix(colour, np.float32((0.95, 0.82, 0.72)), cover * smoothstep(0.0, 0.2, up) * 0.9)


def canal() -> Array:
    """Render the picture: (576, 768, 3) sRGB."""
    sun = unit(np.float32((-0.62, 0.60, -0.50)))
    scene = Scene(objects(), heaven, sun, np.float32((2.7, 2.2, 1.55)), softness=0.012)
    camera = Camera((0.45, 2.1, -7.2), (0.05, 1.85, 6.0), 0.95)
    return film(camera.photograph(scene, WIDTH, HEIGHT, SAMPLES, seed=5), 0.72)
