"""Windows that cover a picture, and what adds up over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import assert_close
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import cell_weights, make_objective, make_targets
from torch_reference import tensor, waves

from nst_fast.canvas import Canvas
from nst_fast.targets import TargetExtractor
from nst_fast.tiles import cut, halo, smaller

STYLE = {"relu1_1": 1.0, "relu2_2": 0.5, "relu3_1": 1.0}
CONTENT = {"relu2_1": 1.0, "relu3_2": 0.5}
SIDES = st.integers(1, 40)


@given(height=SIDES, width=SIDES, side=SIDES, margin=st.integers(0, 6), stride=st.integers(1, 4))
def test_windows_of_one_size_whose_own_parts_cover_the_picture_once(
    height, width, side, margin, stride
):
    assume(side > 2 * margin)
    height, width, side, margin = (stride * n for n in (height, width, side, margin))
    tiling = cut(height, width, side, margin)
    owners = np.zeros((height // stride, width // stride), int)
    cells = np.arange(owners.size).reshape(owners.shape)
    for tile in tiling.tiles:
        rows, columns = tile.window()
        assert (rows.stop - rows.start, columns.stop - columns.start) == tiling.window
        assert max(tiling.window) <= side
        owners[tile.own(stride)] += 1
        shown = cells[tile.window(stride)]
        assert np.array_equal(shown[tile.inside(stride)], cells[tile.own(stride)])
        for window, own, length in zip(tile.window(), tile.own(), (height, width), strict=True):
            assert own.start - window.start >= margin or window.start == own.start == 0
            assert window.stop - own.stop >= margin or window.stop == own.stop == length
    assert (owners == 1).all()
    assert tiling.share == pytest.approx(np.prod(tiling.window) / (height * width))


@given(side=st.integers(1, 300), margin=st.integers(1, 20))
def test_smaller_windows_end(side, margin):
    sides = [side]
    while (less := smaller(sides[-1], margin)) is not None:
        sides.append(less)
        assert less % margin == 0
        assert 3 * margin <= less < sides[-2]
        assert less >= sides[-2] / 2
    assert sides[-1] <= 6 * margin


@pytest.mark.parametrize("tap", ["relu1_1", "relu1_2", "relu2_2", "relu3_3", "relu4_3"])
def test_the_halo_is_as_far_as_a_feature_sees(average_pack, tap):
    """Of float64 autograd: nothing farther has a gradient, and what is as far has one."""
    encoder, network = average_pack.encoder, average_pack.network
    margin, stride = halo(encoder, [tap, "relu1_1"]), encoder.taps[tap].stride
    assert margin % stride == 0
    size = 2 * margin + stride + 32  # the cell in the middle, and more than it sees around it
    size += -size % 16
    image = tensor(waves(1, 1, 3, size, 16)).requires_grad_()
    middle = size // 2 // stride
    (seen,) = torch.autograd.grad(network(image)[tap][:, :, middle].sum(), image)
    rows = np.flatnonzero(seen.numpy().any(axis=(0, 1, 3)))
    before, behind = middle * stride - rows[0], rows[-1] + 1 - (middle + 1) * stride
    assert margin - stride < max(before, behind) <= margin


@pytest.mark.parametrize("side", [48, 64])
def test_targets_in_windows_are_those_of_the_whole(pack, backend, seed, side):
    image = waves(seed, 2, 3, 64, 80)
    opacity = np.random.default_rng(seed).random((2, 64, 80), np.float32)
    opacity[:, :20] = 0
    encoder = pack.encoder
    objective = make_objective(encoder, style_layers=STYLE, content_layers=CONTENT)
    canvas = Canvas.around(64, 80, margin=0, stride=4)
    extract = TargetExtractor(encoder, objective, (2, 64, 80), backend("cpu", "fp32"), side=side)
    found = extract(image, cell_weights(encoder, objective, canvas, opacity))
    expected = make_targets(pack, objective, image, image, opacity=opacity)
    for tap, moments in expected.style.items():
        assert_close(found.style[tap], moments, 1e-5)
    for tap, features in expected.content.items():
        assert_close(found.content[tap], features, 1e-5)
