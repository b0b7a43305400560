"""How the products of ``csrc/taps.cu`` are cut into blocks: tiles, slices and runs of pixels.

The cut depends on the shapes of all taps, on the kind of the features and on the number of
multiprocessors, and on nothing else: so do the last bits of the sums.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

FeatureKind = Literal["fp16", "bf16", "fp32", "tf32"]

STORED: dict[FeatureKind, type[np.generic]] = {
    "fp16": np.float16,
    "bf16": np.uint16,
    "fp32": np.float32,
    "tf32": np.float32,
}
# As in products.cuh and taps.cu.
PRODUCT_THREADS = 256
OPERAND_BYTES = 8192  # of either operand in a stage
LINES = 64  # that an operand lies in; at most so many pixels are in a stage
STAGES = 3  # in shared memory
SUM_BYTES = 12288  # for sums on their way out
PRODUCT_BYTES = STAGES * 2 * OPERAND_BYTES + SUM_BYTES
MOMENT_BYTES = PRODUCT_BYTES + STAGES * LINES * 4  # with the weights of the pixels
NARROW, WIDE = 64, 128  # tiles: rows and columns of a product
BAND_ROWS, BAND_COLUMNS = 4, 64  # of a small matrix that a block passes over
# Registers let a multiprocessor hold two blocks of products. Moments take one wave of them where
# slices do not become too long: more would write more partial sums. The way back takes four, so
# that none waits long for the last.
MOMENT_BLOCKS, GRADIENT_BLOCKS = 2, 8  # a multiprocessor
LEAST_STAGES = 8  # of a slice: fewer do not pay for its partial sums
MOST_PIXELS = 16384  # of a slice: more would be too long a sum in float32


@dataclass(frozen=True)
class Sizes:
    """A tap of N pictures, P pixels and C channels, as blocks see it.

    Attributes:
        tile: rows and columns of a product.
        depth: pixels of a stage of moments, and channels of one of the way back.
        down: tiles of the channels.
        triangle: tiles on and below the diagonal of the moments.
        padded: C up to whole tiles.
    """

    pictures: int
    pixels: int
    channels: int
    kind: FeatureKind

    @property
    def tile(self) -> int:
        """Wide where that saves reading features again; float32 has no tensor cores to feed."""
        return WIDE if self.channels >= WIDE and self.kind != "fp32" else NARROW

    @property
    def itemsize(self) -> int:
        """Bytes of a feature."""
        return np.dtype(STORED[self.kind]).itemsize

    @property
    def depth(self) -> int:
        """See above."""
        return OPERAND_BYTES // (self.tile * self.itemsize)

    @property
    def down(self) -> int:
        """See above."""
        return -(-self.channels // self.tile)

    @property
    def triangle(self) -> int:
        """See above."""
        return self.down * (self.down + 1) // 2

    @property
    def padded(self) -> int:
        """See above."""
        return self.down * self.tile

    def slice_stages(self, share: int) -> int:
        """Stages of a slice of the pixels; twice as many where each loads one operand alone."""
        stages = share * (2 if self.down == 1 else 1)
        return min(stages, MOST_PIXELS // self.depth, -(-self.pixels // self.depth))

    def slices(self, share: int) -> int:
        """Slices of the pixels."""
        return -(-self.pixels // (self.depth * self.slice_stages(share)))

    def run_tiles(self, share: int) -> int:
        """Tiles of pixels that one block of the gradient makes one after another.

        The share is in operands that are loaded; what is written counts likewise.
        """
        loaded = 2 * -(-self.channels // self.depth)
        written = self.tile * self.tile * self.itemsize // OPERAND_BYTES
        return min(max(1, share // (loaded + written)), -(-self.pixels // self.tile))

    def runs(self, share: int) -> int:
        """Runs of tiles of pixels."""
        return -(-self.pixels // (self.tile * self.run_tiles(share)))


@dataclass(frozen=True)
class Cut:
    """What one block takes of a tap: the least that makes few enough blocks of all of them.

    Attributes:
        moments: for :meth:`Sizes.slice_stages`.
        gradient: for :meth:`Sizes.run_tiles`.
    """

    moments: int
    gradient: int

    @classmethod
    def of(cls, styled: Sequence[Sizes], taps: Sequence[Sizes], multiprocessors: int) -> Cut:
        """Share the moments of ``styled`` taps out, and the gradients of all ``taps``."""

        def moment_blocks(share: int) -> int:
            return sum(tap.pictures * tap.triangle * tap.slices(share) for tap in styled)

        def gradient_blocks(share: int) -> int:
            return sum(tap.pictures * tap.down * tap.runs(share) for tap in taps)

        # So that no slice of any tap is cut short.
        longest = MOST_PIXELS // (2 * max(tap.depth for tap in taps))
        return cls(
            _share(moment_blocks, MOMENT_BLOCKS * multiprocessors, LEAST_STAGES, longest),
            _share(gradient_blocks, GRADIENT_BLOCKS * multiprocessors, 1, MOST_PIXELS),
        )


def _share(blocks: Callable[[int], int], wave: int, least: int, most: int) -> int:
    """The least share, up to ``most``, whose blocks take no more waves than those of ``most``."""
    waves = max(1, -(-blocks(most) // wave))
    shares = range(least, most)
    return least + bisect.bisect_left(shares, True, key=lambda s: blocks(s) <= waves * wave)
