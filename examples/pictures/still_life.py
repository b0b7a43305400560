"""A vase, a bottle and fruit on a chequered cloth, in the light of a window."""

from __future__ import annotations

import numpy as np
from pictures.noise import Array, fbm, film, linear, mix, noise, smoothstep
from pictures.tracer import (
    Camera,
    Colour,
    Convex,
    Ellipsoid,
    Plane,
    Scene,
    Shape,
    Surface,
    Turned,
    plain,
    unit,
)

WIDTH, HEIGHT, SAMPLES = 768, 576, 56


def cloth(p: Array, n: Array) -> Array:
    """Red and white squares, woven."""
    a, b = 0.94 * p[:, 0] + 0.34 * p[:, 2], -0.34 * p[:, 0] + 0.94 * p[:, 2]
    squares = (np.floor(a / 0.42) + np.floor(b / 0.42)) % 2
    weave = 1 + 0.10 * noise(a * 60, b * 14, 3) + 0.10 * noise(a * 14, b * 60, 4)
    return mix(linear("ece4d4"), linear("b8342c"), squares) * weave[:, None]


def folds(p: Array, n: Array) -> Array:
    bend = 0.10 * np.sin(p[:, 0] * 2.1 + p[:, 2] * 1.1 + 1.5 * noise(p[:, 0], p[:, 2], 8))
    return n + np.stack((bend, 0 * bend, 0.6 * bend), axis=1)


def wall(p: Array, n: Array) -> Array:
    """Lime wash in a warm green grey, with clouds in it."""
    tone = fbm(p[:, 0] * 0.9, p[:, 1] * 0.9, 5, 14)
    return mix(linear("6f7f74"), linear("a99f78"), np.clip(0.45 + 0.5 * tone, 0, 1))


def glaze(foot: tuple[float, float, float]) -> Colour:
    """White porcelain painted in cobalt: bands, and leaves between them."""

    def colour(p: Array, n: Array) -> Array:
        q = p - np.float32(foot)
        turn, y = np.arctan2(q[:, 2], q[:, 0]), q[:, 1]
        bands = sum(
            smoothstep(0.035, 0.02, np.abs(y - at)) for at in (0.18, 0.30, 1.22, 1.34, 1.86)
        )
        petal = np.abs(np.sin(turn * 4)) * 0.34 - np.abs(y - 0.76)
        vine = np.abs(np.sin(turn * 8 + 5 * y)) * 0.09 - np.abs(y - 1.58)
        leaves = smoothstep(0.0, 0.02, petal) * (
            0.35 + 0.65 * smoothstep(-0.02, 0.09, np.abs(petal - 0.12))
        )
        paint = np.clip(bands + leaves + smoothstep(0, 0.02, vine), 0, 1)
        return mix(
            linear("e9ece8"), linear("1c3f94"), paint * (0.9 + 0.1 * noise(turn * 30, y * 30, 2))
        )

    return colour


def label(foot: tuple[float, float, float]) -> Colour:
    """Dark green glass with a paper label."""

    def colour(p: Array, n: Array) -> Array:
        q = p - np.float32(foot)
        paper = smoothstep(0.34, 0.325, np.abs(q[:, 1] - 0.72)) * (q[:, 2] + 0.5 * q[:, 0] < 0.1)
        lines = (np.abs(np.mod(q[:, 1], 0.11) - 0.05) < 0.014) & (np.abs(q[:, 1] - 0.66) < 0.2)
        ink = mix(linear("e6d8b0"), linear("5a3a24"), lines.astype(np.float32))
        capsule = smoothstep(1.84, 1.86, q[:, 1])
        glass = mix(linear("14351f"), linear("7a1d22"), capsule)
        return glass + (ink - glass) * paper[:, None]

    return colour


def skin(foot: tuple[float, float, float], low: str, high: str, seed: int) -> Colour:
    """Fruit: streaks from stalk to foot, one cheek redder."""

    def colour(p: Array, n: Array) -> Array:
        q = p - np.float32(foot)
        turn = np.arctan2(q[:, 2], q[:, 0])
        streak = 0.5 + 0.45 * noise(turn * 9, q[:, 1] * 2, seed) + 0.5 * np.sin(turn + seed)
        return mix(linear(low), linear(high), np.clip(streak, 0, 1))

    return colour


def peel(amount: float, scale: float) -> Surface:
    def bumps(p: Array, n: Array) -> Array:
        q = p * scale
        shift = [noise(q[:, i] + 7, q[:, i - 1] - q[:, i - 2], 5 + i) for i in range(3)]
        return n + amount * np.stack(shift, axis=1)

    return bumps


def apple(x: float, z: float, size: float, *, low: str, high: str, seed: int) -> list[Shape]:
    foot = (x, 0.0, z)
    turn = np.linspace(-np.pi / 2, np.pi / 2 - 0.12, 40)
    heights = size * (0.92 + 0.92 * np.sin(turn) - 0.10 * np.exp(-(((turn - 1.45) / 0.25) ** 2)))
    radii = size * (np.cos(turn) * (1 + 0.09 * np.sin(turn)) + 0.02)
    order = np.argsort(heights)
    body = Turned(
        foot,
        heights[order].tolist(),
        radii[order].tolist(),
        colour=skin(foot, low, high, seed),
        gloss=0.05,
    )
    top = body.tall
    stalk = Convex(
        [(x - 0.012, z - 0.012), (x + 0.012, z - 0.012), (x + 0.02, z + 0.02)],
        top - 0.05,
        top + 0.16,
        "xzy",
        colour=plain("4a3520"),
    )
    return [body, stalk]


def objects() -> list[Shape]:
    vase, bottle = (-0.75, 0.0, 0.35), (0.62, 0.0, 0.75)
    shapes: list[Shape] = [
        Plane(1, 0.0, 1, colour=cloth, bumps=folds),
        Plane(2, 2.6, -1, colour=wall),
        Turned(
            vase,
            [0, 0.05, 0.25, 0.75, 1.15, 1.5, 1.7, 1.9, 1.98, 2.0],
            [0.3, 0.34, 0.44, 0.66, 0.6, 0.32, 0.24, 0.3, 0.36, 0.3],
            colour=glaze(vase),
            gloss=0.05,
        ),
        Turned(
            bottle,
            [0, 0.04, 1.15, 1.35, 1.55, 1.7, 2.15, 2.17, 2.25, 2.26],
            [0.3, 0.34, 0.34, 0.3, 0.15, 0.115, 0.105, 0.13, 0.13, 0.1],
            colour=label(bottle),
            gloss=0.06,
        ),
        Ellipsoid(
            (0.05, 0.3, -0.45),
            (0.31, 0.3, 0.31),
            colour=plain("e07b16"),
            gloss=0.04,
            bumps=peel(0.10, 34),
        ),
        Ellipsoid(
            (1.42, 0.29, 0.12),
            (0.3, 0.29, 0.3),
            colour=plain("e58a1c"),
            gloss=0.04,
            bumps=peel(0.10, 34),
        ),
        Ellipsoid(
            (-0.62, 0.215, -0.78),
            (0.31, 0.215, 0.22),
            colour=plain("ecc828"),
            gloss=0.04,
            bumps=peel(0.08, 26),
        ),
        Convex(
            [(-2.3, 0.1), (-1.15, -0.35), (-0.95, 0.2), (-2.1, 0.65)],
            0.0,
            0.2,
            "xzy",
            colour=plain("28506e"),
            gloss=0.03,
        ),
        Convex(
            [(-2.15, 0.15), (-1.2, 0.0), (-1.12, 0.55), (-2.07, 0.7)],
            0.2,
            0.36,
            "xzy",
            colour=plain("8c2f2a"),
            gloss=0.03,
        ),
    ]
    shapes += apple(0.72, -0.35, 0.31, low="c9b63c", high="b01f22", seed=4)
    shapes += apple(1.02, 0.2, 0.29, low="8ea63a", high="c8b83e", seed=9)
    shapes += apple(-1.62, 0.4, 0.27, low="d0a63a", high="a8181f", seed=13)
    for stalk in shapes[-2:]:  # the last apple lies on the books
        raise_by(stalk, 0.36)
    for low in (-3.2, -1.55, 0.1):  # bars of the window, out of sight on the left
        shapes.append(
            Convex(
                [(low, 2.55), (low + 0.22, 2.55), (low + 0.22, 6.0), (low, 6.0)],
                -4.2,
                -4.1,
                "zyx",
                colour=plain("222222"),
            )
        )
    shapes.append(
        Convex(
            [(-6, 4.2), (3, 4.2), (3, 4.4), (-6, 4.4)], -4.2, -4.1, "zyx", colour=plain("222222")
        )
    )
    return shapes


def raise_by(shape: Shape, height: float) -> None:
    """Move a shape up."""
    lift = np.float32((0, height, 0))
    shape.centre = shape.centre + lift
    if isinstance(shape, Turned):
        shape.foot = shape.foot + lift
    if isinstance(shape, Convex):
        shape.offsets = shape.offsets + shape.normals @ lift


def room(d: Array) -> Array:
    """Dim warm room with a broad bright window on the left."""
    window = smoothstep(0.0, 0.95, d @ unit(np.float32((-0.85, 0.45, -0.3))))
    return mix(np.float32((0.24, 0.21, 0.19)), np.float32((1.2, 1.3, 1.5)), window)


def still_life() -> Array:
    """Render the picture: (576, 768, 3) sRGB."""
    sun = unit(np.float32((-0.80, 0.62, -0.42)))
    scene = Scene(objects(), room, sun, np.float32((2.5, 2.15, 1.7)), softness=0.03)
    camera = Camera((0.15, 1.75, -5.6), (0.05, 0.78, 0.2), 1.45, aperture=0.03)
    return film(camera.photograph(scene, WIDTH, HEIGHT, SAMPLES, seed=3), 0.85)
