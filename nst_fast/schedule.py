"""Sizes and steps from coarse to fine, and how far a run is through them.

Large strokes are settled while the picture is small, where a step is cheap and a feature map
sees more of the picture; detail follows at full size. Gatys et al. 2017, "Controlling
Perceptual Factors in Neural Style Transfer", section 6.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from nst_fast import images
from nst_fast.config import MAX_SIZE, StyleSettings
from nst_fast.errors import SettingsError
from nst_fast.images import Picture
from nst_fast.styles import style_scales

THINNEST = 8  # pixels: the shorter side of a picture once it is resized
SMALLEST = 128  # pixels: below it a coarse picture has nothing left to decide


def scale_sizes(longest: int, scales: int) -> list[int]:
    """Longest sides in pixels, coarse to fine, each half of the next; the last is ``longest``.

    At most ``scales`` of them; none but the last is below ``SMALLEST``.

    >>> scale_sizes(512, 2)
    [256, 512]
    >>> scale_sizes(200, 2)
    [200]
    """
    sizes = [longest]
    while len(sizes) < scales and round(sizes[0] / 2) >= SMALLEST:
        sizes.insert(0, round(sizes[0] / 2))
    return sizes


def scale_steps(steps: int, scales: int) -> list[int]:
    """Share the steps, at least ``scales``: each size takes half as many as the coarser one before.

    A step of half the size costs a quarter, and what it settles is settled for good; the last size
    takes what rounding leaves over.

    >>> scale_steps(90, 2)
    [60, 30]
    >>> scale_steps(4, 4)
    [1, 1, 1, 1]
    """
    shares = [2.0 ** (scales - 1 - index) / (2**scales - 1) for index in range(scales)]
    counts: list[int] = []
    for index, share in enumerate(shares[:-1]):
        left = steps - sum(counts) - (scales - 1 - index)  # one for each size to come
        counts.append(min(max(1, round(steps * share)), left))
    return [*counts, steps - sum(counts)]


def steps_left(
    taken: Sequence[int], left: int, before: Sequence[int], now: Sequence[int]
) -> int | None:
    """Steps left at a size when a run goes on with other steps than it began with.

    Args:
        taken: steps at each size so far, the last of which is the one in hand; fewer than there
            were to take where the picture no longer changed.
        left: of the steps at that size.
        before: the steps of each size when it began.
        now: those of today.

    Returns:
        The number; None where a run that begins with the steps of today would not come by here.

    >>> steps_left([64, 8], 24, [64, 32], [64, 32])
    24
    >>> steps_left([8], 24, [32], [99])
    91
    >>> steps_left([64, 8], 24, [64, 32], [128, 64])
    """
    if len(before) != len(now):
        return None
    for done, then, today in zip(taken[:-1], before, now, strict=False):
        if then != today and done >= min(then, today):
            return None
    here, place = taken[-1], len(taken) - 1
    if here > now[place]:
        return None
    return 0 if left == 0 and here < before[place] else now[place] - here


class Progress:
    """How far a run is through its sizes, and the steps at each.

    Attributes:
        sizes: longest sides of the content.
        steps: that there are to take at each of them.
        taken: steps at each size so far.
        left: steps at the last of them.
    """

    def __init__(self, content: Picture, sizes: Sequence[int], steps: Sequence[int]) -> None:
        """Stand before the first size."""
        self.sizes, self.steps = sizes, steps
        self.taken: list[int] = []
        self.left = 0
        self._pixels = [math.prod(images.fit(content.size, size)) for size in sizes]

    @property
    def steps_left(self) -> int:
        """At all sizes."""
        return self.left + sum(self.steps[len(self.taken) :])

    @property
    def share(self) -> float:
        """Of the work that is done, in pixels times steps; what was left out counts as done."""
        done = list(self.steps[: len(self.taken)])
        done[-1] -= self.left
        return self._work(done) / self._work(self.steps)

    def _work(self, steps: Sequence[int]) -> int:
        return sum(map(operator.mul, self._pixels, steps))

    def enter(self) -> None:
        """Begin with the next size."""
        self.left = self.steps[len(self.taken)]
        self.taken.append(0)

    def take(self) -> None:
        """Count a step; one that was under way already when the others were left out, too."""
        self.taken[-1] += 1
        self.left = max(0, self.left - 1)


def check_sizes(
    contents: Sequence[Picture], styles: Sequence[Picture], longest: int, settings: StyleSettings
) -> None:
    """Refuse sizes beyond the limits before anything large is allocated.

    Raises:
        SettingsError: the longest side of contents or styles is too long, or a side too short.
    """
    if longest > MAX_SIZE:
        raise SettingsError(f"size: {longest} pixels are more than {MAX_SIZE}; give a smaller size")
    scales = style_scales(settings.style_scale, len(styles))
    if longest * max(scales) > MAX_SIZE:
        raise SettingsError(f"style_scale: the style would be above {MAX_SIZE} pixels; lower it")
    sizes = [max(1, round(longest * scale)) for scale in scales]
    pictures = [("content", content, longest) for content in contents]
    pictures += [("style", style, size) for style, size in zip(styles, sizes, strict=True)]
    for role, picture, size in pictures:
        if min(images.fit(picture.size, size)) < THINNEST:
            width, height = picture.size
            raise SettingsError(
                f"size: at {size} pixels the {role} picture ({width}×{height}) has a side below "
                f"{THINNEST}; give a larger size"
                + (" or style_scale" if role == "style" and settings.style_scale != 1 else "")
            )
