"""Sizes and steps from coarse to fine; pure functions.

Large strokes are settled while the picture is small, where a step is cheap and a feature map
sees more of the picture; detail follows at full size. Gatys et al. 2017, "Controlling
Perceptual Factors in Neural Style Transfer", section 6.
"""

from __future__ import annotations

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
    """Share the steps equally; the finest scales take what is left over.

    >>> scale_steps(201, 2)
    [100, 101]
    """
    each, rest = divmod(steps, scales)
    return [each + (index >= scales - rest) for index in range(scales)]
