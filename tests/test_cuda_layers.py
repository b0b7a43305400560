"""Passes of an encoder layer by layer, and csrc/layers.cu, against float64 and whole graphs."""

from __future__ import annotations

import host_gpus
import numpy as np
import pytest
from closeness import assert_close
from shim import LAUNCHERS, make_launcher

from nst_fast.device import Launcher
from nst_fast.gpu.layers import layer_kernel, passes
from nst_fast.gpu.session import DeviceSession
from nst_fast.graph.chain import Pooling, chain
from nst_fast.graph.forms import chain_of, turned_graphs
from nst_fast.graph.parts import graph_pair

host_gpu = host_gpus.host_gpu
FILES = ("device.cuh", "products.cuh", "layers.cu")
TAPS = ("relu1_1", "relu2_2", "relu3_1", "relu4_2")
SHAPE = (2, 16, 32)
ROUNDING = {np.float32: 2.0**-22, np.float16: 2.0**-10}


@pytest.fixture(params=LAUNCHERS)
def launcher(request) -> Launcher:
    return make_launcher(request.param, *FILES)


def windows(maps: np.ndarray) -> np.ndarray:
    """(N, H, W, C) as (N, H/2, W/2, C, 4)."""
    n, height, width, channels = maps.shape
    apart = maps.reshape(n, height // 2, 2, width // 2, 2, channels)
    return apart.transpose(0, 1, 3, 5, 2, 4).reshape(n, height // 2, width // 2, channels, 4)


def spread(cells: np.ndarray) -> np.ndarray:
    """(N, h, w, C, 4) as (N, 2h, 2w, C)."""
    n, height, width, channels, _ = cells.shape
    apart = cells.reshape(n, height, width, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return apart.reshape(n, 2 * height, 2 * width, channels)


def some(random, shape, dtype) -> np.ndarray:
    """Numbers with ties and zeros among them."""
    return (np.round(4 * random.standard_normal(shape)) / 4).astype(dtype)


@pytest.mark.parametrize("pooling", [None, "max", "average"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (2, 4, 6, 8), (2, 6, 10, 11), (1, 32, 34, 24)])
def test_bias_relu_and_pooling(launcher, seed, shape, dtype, pooling: Pooling | None):
    random = np.random.default_rng(seed)
    x, bias = some(random, shape, dtype), random.standard_normal(shape[3]).astype(np.float32)
    pooled = launcher.put(np.full((shape[0], shape[1] // 2, shape[2] // 2, shape[3]), 9, dtype))
    activation = launcher.put(x)
    arrays = {"bias": launcher.put(bias), "pooled": None if pooling is None else pooled}
    layer_kernel(launcher, "rectify", activation, pooling, **arrays)()
    wide = np.maximum(x.astype(np.float64) + bias, 0)
    found = launcher.download(activation)
    assert_close(found, wide, ROUNDING[dtype])
    if pooling is None:
        return
    cells = windows(found.astype(np.float64))
    if pooling == "max":  # of what is stored: cells are compared with it
        assert np.array_equal(launcher.download(pooled), cells.max(axis=-1))
    else:
        assert_close(launcher.download(pooled), cells.mean(axis=-1), ROUNDING[dtype])


@pytest.mark.parametrize("has_tap", [True, False])
@pytest.mark.parametrize("has_above", [True, False])
@pytest.mark.parametrize("pooling", [None, "max", "average"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (2, 6, 10, 11)])
def test_masks_pooling_and_taps(launcher, seed, shape, dtype, pooling, has_above, has_tap):
    random = np.random.default_rng(seed)
    x = np.maximum(some(random, shape, dtype), 0)
    n, height, width, channels = shape
    small = shape if pooling is None else (n, height // 2, width // 2, channels)
    above, tap = (random.standard_normal(s).astype(dtype) for s in (small, shape))
    expected = tap.astype(np.float64) if has_tap else np.zeros(shape)
    if has_above:
        wide = above.astype(np.float64)
        if pooling is not None:
            equal = windows(x) == windows(x).max(axis=-1, keepdims=True)
            share = equal / equal.sum(axis=-1, keepdims=True) if pooling == "max" else equal | True
            wide = spread(share * wide[..., None])
        expected = expected + wide
    expected = np.where(x > 0, expected, 0)
    given = launcher.put(above) if has_above else None
    # Where nothing is pooled it may be written in place.
    in_place = has_above and pooling is None
    gradient = given if in_place else launcher.put(np.full(shape, np.nan, dtype))
    arrays = {"above": given, "tap": launcher.put(tap) if has_tap else None, "gradient": gradient}
    layer_kernel(launcher, "descend", launcher.put(x), pooling, **arrays)()
    assert_close(launcher.download(gradient), expected, ROUNDING[dtype])


@pytest.mark.parametrize("pooling", [None, "max", "average"])
def test_what_is_not_a_number_stays_so(launcher, pooling):
    x = np.zeros((1, 4, 4, 8), np.float16)
    x[0, 1, 2, 3] = np.nan
    pooled = launcher.zeros((1, 2, 2, 8), np.float16) if pooling else None
    activation, bias = launcher.put(x), launcher.zeros((8,))
    layer_kernel(launcher, "rectify", activation, pooling, bias=bias, pooled=pooled)()
    assert np.isnan(launcher.download(activation)).sum() == 1
    if pooled is not None:
        assert np.isnan(launcher.download(pooled)).sum() == 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_passes_are_those_of_the_whole_graphs(pack, host_gpu, precision):
    half, where = precision == "fp16", host_gpu(precision)
    layers = chain_of(pack.encoder, TAPS, SHAPE, half=half)
    random = np.random.default_rng(3)
    stored = np.float16 if half else np.float32
    ends = {
        name: where.launcher.put(random.random((*SHAPE, 8 if half else 4)).astype(stored))
        for name in ("image", "d_image")
    }
    forward, backward = passes(layers, TAPS, where, ends)
    graphs = turned_graphs(pack.encoder, TAPS, SHAPE, half=half)
    sessions = [
        DeviceSession(graph, provider="cpu", precision=precision, launcher=where.launcher)
        for graph in graphs
    ]
    sessions[0].inputs["image"][:] = ends["image"]
    sessions[0].run()
    forward.run()
    for name, array in sessions[0].outputs.items():
        assert_close(forward.outputs[name], array, 1e-2 if half else 1e-5)
    assert set(sessions[1].inputs) <= set(backward.inputs)
    for name, array in sessions[1].inputs.items():
        if name.startswith("d_"):
            backward.inputs[name][:] = random.standard_normal(array.shape)
        array[:] = backward.inputs[name]  # of the same features: others have other maxima
    sessions[1].run()
    for _ in range(2):  # nothing may be left over
        backward.run()
        colours = (ends["d_image"][..., :3], sessions[1].outputs["d_image"][..., :3])
        assert_close(*colours, 2e-2 if half else 1e-5)


def test_an_encoder_that_is_no_chain_runs_as_whole_graphs(pack):
    forward, backward = graph_pair(pack.encoder, TAPS, SHAPE)
    assert chain(forward, backward) is None  # it subtracts the mean itself
    layers = chain_of(pack.encoder, TAPS, SHAPE, half=False)
    assert [layer.name for layer in layers][-1] == "relu4_2"
    assert [layer.pooling for layer in layers].count(pack.encoder.pooling) == 3
