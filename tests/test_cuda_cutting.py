"""How products are cut into blocks: all pixels once, a wave of blocks, sums of bounded length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_fast.gpu.cutting import (
    GRADIENT_BLOCKS,
    MOMENT_BLOCKS,
    MOST_PIXELS,
    STORED,
    Cut,
    Sizes,
)

VGG19 = [(512 * 512, 64), (256 * 256, 128), (128 * 128, 256), (64 * 64, 512), (32 * 32, 512)]


def taps_of(pictures: int, shapes: list[tuple[int, int]], kind: str) -> list[Sizes]:
    return [Sizes(pictures, pixels, channels, kind) for pixels, channels in shapes]


@given(
    pictures=st.integers(1, 9),
    shapes=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 600)), min_size=1, max_size=6),
    kind=st.sampled_from(list(STORED)),
    multiprocessors=st.integers(1, 150),
)
def test_every_pixel_is_in_one_slice_and_one_run(pictures, shapes, kind, multiprocessors):
    taps = taps_of(pictures, shapes, kind)
    cut = Cut.of(taps, taps, multiprocessors)
    for tap in taps:
        lengths = {
            tap.depth * tap.slice_stages(cut.moments): tap.slices(cut.moments),
            tap.tile * tap.run_tiles(cut.gradient): tap.runs(cut.gradient),
        }
        for length, count in lengths.items():
            assert (count - 1) * length < tap.pixels <= count * length
        assert tap.depth * tap.slice_stages(cut.moments) <= MOST_PIXELS
        assert tap.padded - tap.tile < tap.channels <= tap.padded


@pytest.mark.parametrize(("pictures", "waves"), [(1, 1), (8, 2)])
def test_a_step_of_vgg19_fills_whole_waves(pictures, waves):
    """On 132 multiprocessors; with eight pictures, slices would be too long for one of moments."""
    taps, chip = taps_of(pictures, VGG19, "fp16"), 132
    cut = Cut.of(taps, taps, chip)
    slices = [tap.slices(cut.moments) for tap in taps]
    tiles = [pictures * tap.triangle * count for tap, count in zip(taps, slices, strict=True)]
    gradients = sum(pictures * tap.down * tap.runs(cut.gradient) for tap in taps)
    assert 0.8 < sum(tiles) / (MOMENT_BLOCKS * chip * waves) <= 1
    assert 0.9 < gradients / (GRADIENT_BLOCKS * chip) <= 1
    written = sum(4 * tap.tile**2 * count for tap, count in zip(taps, tiles, strict=True))
    assert written < {1: 13e6, 8: 27e6}[pictures]  # bytes of partial sums
