"""A small path tracer: sun with soft shadows, light from the sky, glossy and rippled surfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pictures.noise import Array, linear, smoothstep

Colour = Callable[[Array, Array], Array]  # (points, normals) to albedo, all (N, 3)
Surface = Callable[[Array, Array], Array]  # (points, normals) to perturbed normals


def plain(text: str) -> Colour:
    """One colour all over."""
    albedo = linear(text)
    return lambda points, normals: np.broadcast_to(albedo, points.shape)


def unit(v: Array) -> Array:
    """Vectors (…, 3) scaled to length 1; zero stays zero."""
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    return (v / np.maximum(length, 1e-12)).astype(np.float32)


@dataclass
class Shape:
    """A surface: its colour, and the share of light mirrored at right angles (0: matte)."""

    colour: Colour
    gloss: float = 0.0
    bumps: Surface | None = None
    centre: Array | None = None  # of a bounding sphere
    radius: float = np.inf

    def hit(self, o: Array, d: Array) -> Array:
        """Distance along rays from o to the surface, infinity where they miss."""
        if self.centre is None:
            return self._hit(o, d)
        away = self.centre - o
        along = np.einsum("ij,ij->i", away, d)
        near = np.einsum("ij,ij->i", away, away) - along**2 < self.radius**2
        near &= along > -self.radius
        t = np.full(len(o), np.inf, np.float32)
        if near.any():
            t[near] = self._hit(o[near], d[near])
        return t

    def _hit(self, o: Array, d: Array) -> Array:
        raise NotImplementedError

    def normal(self, p: Array) -> Array:
        """Outward unit normals at points on the surface."""
        raise NotImplementedError


class Plane(Shape):
    """The plane at a height along one axis, facing up that axis."""

    def __init__(self, axis: int, height: float, facing: float, **look: object) -> None:
        super().__init__(**look)  # type: ignore[arg-type]
        self.axis, self.height, self.facing = axis, height, facing

    def _hit(self, o: Array, d: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (self.height - o[:, self.axis]) / d[:, self.axis]
        return np.where(t > 1e-3, t, np.inf)

    def normal(self, p: Array) -> Array:
        n = np.zeros_like(p)
        n[:, self.axis] = self.facing
        return n


class Ellipsoid(Shape):
    """An ellipsoid with axes along the coordinates."""

    def __init__(self, centre: tuple[float, ...], radii: tuple[float, ...], **look: object) -> None:
        super().__init__(**look)  # type: ignore[arg-type]
        self.centre, self.radii = np.float32(centre), np.float32(radii)
        self.radius = max(radii)

    def _hit(self, o: Array, d: Array) -> Array:
        p, q = (o - self.centre) / self.radii, d / self.radii
        a, b, c = (q * q).sum(1), (p * q).sum(1), (p * p).sum(1) - 1
        root = b * b - a * c
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        return np.where((root > 0) & (t > 1e-3), t, np.inf)

    def normal(self, p: Array) -> Array:
        return unit((p - self.centre) / self.radii**2)


class Convex(Shape):
    """A convex solid: the points below each of its planes, normals · p = offsets."""

    def __init__(
        self,
        polygon: list[tuple[float, float]],
        near: float,
        far: float,
        axes: str = "xyz",
        **look: object,
    ) -> None:
        """Extrude a counter-clockwise polygon in the first two axes along the third."""
        super().__init__(**look)  # type: ignore[arg-type]
        order = ["xyz".index(axis) for axis in axes]
        flat = np.float32(polygon)
        edges = np.roll(flat, -1, axis=0) - flat
        sides = np.zeros((len(flat) + 2, 3), np.float32)
        sides[:-2, order[0]], sides[:-2, order[1]] = edges[:, 1], -edges[:, 0]
        sides[-2, order[2]], sides[-1, order[2]] = -1, 1
        self.normals = unit(sides)
        corners = np.zeros((len(flat), 3), np.float32)
        corners[:, order[0]], corners[:, order[1]] = flat.T
        self.offsets = np.append((self.normals[:-2] * corners).sum(1), (-near, far)).astype(
            np.float32
        )
        solid = np.concatenate((corners, corners))
        solid[: len(flat), order[2]], solid[len(flat) :, order[2]] = near, far
        self.centre = (solid.max(0) + solid.min(0)) / 2
        self.radius = float(np.linalg.norm(solid - self.centre, axis=1).max())

    def _hit(self, o: Array, d: Array) -> Array:
        enter, leave = np.full(len(o), -np.inf, np.float32), np.full(len(o), np.inf, np.float32)
        for normal, offset in zip(self.normals, self.offsets, strict=True):
            fall, gap = d @ normal, offset - o @ normal
            t = gap / np.where(np.abs(fall) < 1e-9, np.float32(1e-9), fall)
            enter = np.where(fall < 0, np.maximum(enter, t), enter)
            leave = np.where(fall >= 0, np.minimum(leave, t), leave)
        return np.where((enter < leave) & (enter > 1e-3), enter, np.inf)

    def normal(self, p: Array) -> Array:
        return self.normals[np.argmax(p @ self.normals.T - self.offsets, axis=1)]


class Turned(Shape):
    """A solid of revolution about a vertical axis: radius given at heights, as on a lathe."""

    def __init__(
        self, foot: tuple[float, ...], heights: list[float], radii: list[float], **look: object
    ) -> None:
        super().__init__(**look)  # type: ignore[arg-type]
        self.foot = np.float32(foot)
        self.tall = max(heights)
        fine = np.linspace(0, self.tall, 400)
        rough = np.interp(fine, heights, radii)
        soft = np.hanning(31)
        padded = np.pad(rough, 15, mode="edge")
        self.profile = np.convolve(padded, soft / soft.sum(), "valid").astype(np.float32)
        self.profile[:4] *= np.linspace(0.9, 1, 4)
        self.fine = fine.astype(np.float32)
        self.steep = float(
            np.sqrt(1 + np.quantile(np.abs(np.gradient(self.profile, fine)), 0.98) ** 2)
        )
        self.centre = self.foot + np.float32((0, self.tall / 2, 0))
        self.radius = float(np.hypot(self.tall / 2, max(radii))) * 1.02

    def _distance(self, p: Array) -> Array:
        q = p - self.foot
        side = (
            np.hypot(q[:, 0], q[:, 2]) - np.interp(q[:, 1], self.fine, self.profile)
        ) / self.steep
        return np.maximum(side, np.abs(q[:, 1] - self.tall / 2) - self.tall / 2).astype(np.float32)

    def _hit(self, o: Array, d: Array) -> Array:
        along = ((self.centre - o) * d).sum(1)
        t = np.maximum(along - self.radius, 2e-3)
        end, far = along + self.radius, np.full(len(o), np.inf, np.float32)
        live = np.arange(len(o))
        for _ in range(90):
            gap = self._distance(o[live] + t[live, None] * d[live])
            t[live] += np.maximum(gap, 4e-4)
            far[live[gap < 5e-4]] = t[live[gap < 5e-4]]
            live = live[(gap >= 5e-4) & (t[live] < end[live])]
            if not len(live):
                break
        return far

    def normal(self, p: Array) -> Array:
        e = np.float32(2e-3)
        steps = e * np.eye(3, dtype=np.float32)
        return unit(
            np.stack([self._distance(p + s) - self._distance(p - s) for s in steps], axis=1)
        )


@dataclass
class Scene:
    """Shapes under a sun and a sky; ``sky`` gives the radiance (N, 3) of directions (N, 3)."""

    shapes: list[Shape]
    sky: Callable[[Array], Array]
    sun: Array  # unit direction towards it
    sunlight: Array
    softness: float = 0.04  # radius of the sun's disc, radians

    def nearest(self, o: Array, d: Array) -> tuple[Array, NDArray[np.int64]]:
        """Distance to the first surface and its index, -1 for none."""
        best, which = np.full(len(o), np.inf, np.float32), np.full(len(o), -1)
        for index, shape in enumerate(self.shapes):
            t = shape.hit(o, d)
            closer = t < best
            best[closer], which[closer] = t[closer], index
        return best, which

    def light(self, o: Array, d: Array, rng: np.random.Generator, bounces: int = 3) -> Array:
        """Radiance (N, 3) arriving along rays, one random path each."""
        total, share = np.zeros_like(o), np.ones_like(o)
        live = np.arange(len(o))
        for _ in range(bounces):
            t, which = self.nearest(o, d)
            lost = which < 0
            total[live[lost]] += share[lost] * self.sky(d[lost])
            o, d, live, share, which = o[~lost], d[~lost], live[~lost], share[~lost], which[~lost]
            p = o + t[~lost, None] * d
            n, albedo, gloss = self._surface(p, d, which)
            o = p + 2e-3 * n
            facing = np.clip(-(n * d).sum(1), 0, 1)
            mirror = np.where(gloss > 0, gloss + (1 - gloss) * (1 - facing) ** 5, 0)
            reflected = unit(d - 2 * (d * n).sum(1, keepdims=True) * n)
            towards = unit(self.sun + self.softness * ball(rng, len(o)))
            lit = np.clip((n * towards).sum(1), 0, None)
            ask = lit > 0
            clear = ask.copy()
            clear[ask] = self.nearest(o[ask], towards[ask])[1] < 0
            disc = smoothstep(np.cos(3 * self.softness), 1, reflected @ self.sun) * mirror * 12
            direct = albedo * (lit * (1 - mirror))[:, None] + disc[:, None]
            total[live] += share * direct * clear[:, None] * self.sunlight
            chance = np.where(
                mirror > 0, np.clip(mirror, 0.25, 1), 0
            )  # mirror more often, weigh less
            mirrored = rng.random(len(o)) < chance
            weight = np.where(
                mirrored,
                mirror / np.maximum(chance, 0.25),
                (1 - mirror) / np.maximum(1 - chance, 1e-6),
            )
            share = share * np.where(mirrored[:, None], 1, albedo) * weight[:, None]
            bounce = unit(n + 0.999 * unit(ball(rng, len(o))))
            d = np.where(mirrored[:, None], reflected, bounce)
        return total

    def _surface(self, p: Array, d: Array, which: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        n, albedo = np.zeros_like(p), np.zeros_like(p)
        gloss = np.zeros(len(p), np.float32)
        for index in np.unique(which):
            here, shape = which == index, self.shapes[index]
            n[here] = shape.normal(p[here])
            albedo[here] = shape.colour(p[here], n[here])
            if shape.bumps:
                n[here] = unit(shape.bumps(p[here], n[here]))
            gloss[here] = shape.gloss
        away = (n * d).sum(1) > 0
        n[away] -= 1.02 * (n * d).sum(1)[away, None] * d[away]  # seen from behind: graze instead
        return unit(n), albedo, gloss


def ball(rng: np.random.Generator, count: int) -> Array:
    """Random points in a ball, (count, 3)."""
    v = unit(rng.standard_normal((count, 3), dtype=np.float32))
    return v * rng.random((count, 1), dtype=np.float32) ** np.float32(1 / 3)


@dataclass
class Camera:
    """A thin lens at ``eye`` looking at ``target``; ``focal`` in picture widths."""

    eye: tuple[float, ...]
    target: tuple[float, ...]
    focal: float
    aperture: float = 0.0

    def photograph(self, scene: Scene, width: int, height: int, samples: int, seed: int) -> Array:
        """Average ``samples`` paths for each pixel: (height, width, 3) linear light."""
        rng = np.random.default_rng(seed)
        eye, target = np.float32(self.eye), np.float32(self.target)
        ahead = unit(target - eye)
        right = unit(np.cross(np.float32((0, 1, 0)), ahead))
        up = np.cross(ahead, right)
        sharp = float(np.linalg.norm(target - eye))
        picture = np.zeros((height * width, 3), np.float32)
        row, column = (a.ravel() for a in np.mgrid[:height, :width])
        for _ in range(samples):
            x = (column + rng.random(row.shape) - width / 2) / width
            y = (height / 2 - row - rng.random(row.shape)) / width
            d = self.focal * ahead + np.outer(x, right) + np.outer(y, up)
            lens = self.aperture * ball(rng, len(x))
            focus = eye + d.astype(np.float32) * np.float32(sharp / self.focal)
            origin = eye + lens[:, :1] * right + lens[:, 1:2] * up
            light = scene.light(origin, unit(focus - origin), rng)
            picture += np.minimum(light, 6)  # one bright path must not make a white dot
        return (picture / samples).reshape(height, width, 3)
