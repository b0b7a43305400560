"""Encoder's graphs as GPUs run them: the same values, the channels last, and no value moved."""

from __future__ import annotations

import numpy as np
import pytest
from closeness import assert_close

from nst_fast.graph.channels_last import CHANNELS_FIRST, FIRST, LAST
from nst_fast.graph.forms import step_graphs, turned_graphs
from nst_fast.graph.graph import Graph, attribute
from nst_fast.runtime import Session

SHAPE = (2, 32, 48)
TAPS = ("relu1_1", "relu2_2", "relu4_2", "relu5_1")


def run(graph: Graph, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = Session(graph, provider="cpu", precision="fp32", threads=1)
    assert set(session.inputs) <= set(given)
    for name, array in session.inputs.items():
        np.copyto(array, given[name])
    session.run()
    return {name: array.copy() for name, array in session.outputs.items()}


def last(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.moveaxis(array, 1, -1) for name, array in values.items()}


def gradients(backward: Graph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    names = [name for name in backward.inputs if name.startswith("d_")]
    return {
        name: random.standard_normal(backward.inputs[name]).astype(np.float32) for name in names
    }


def test_all_values_are_the_same(pack):
    random = np.random.default_rng(0)
    # A third of the pixels are alike, so that maxima have ties.
    image = np.round(random.random((SHAPE[0], 3, *SHAPE[1:])) * 3).astype(np.float32) / 3
    image[..., ::3, :] = image[..., 1::3, :][..., : image[..., ::3, :].shape[-2], :]
    forward, backward = step_graphs(pack.encoder, TAPS, SHAPE)
    features = run(forward, {"image": image})
    pulls = gradients(backward)
    wanted = run(backward, features | pulls)["d_image"]

    forward, backward = turned_graphs(pack.encoder, TAPS, SHAPE, half=False)
    centred = np.moveaxis(image, 1, -1) - np.asarray(pack.encoder.mean, np.float32)
    pixels = np.pad(centred, [(0, 0)] * 3 + [(0, 1)], constant_values=9)
    found = run(forward, {"image": pixels})
    for name, array in last(features).items():
        assert_close(found[name], array, 1e-6)
    # Of the same features, else rounding would make other maxima.
    gradient = run(backward, last(features | pulls))["d_image"]
    assert gradient.shape == (*pixels.shape[:3], 4)
    assert not gradient[..., 3].any()
    assert_close(gradient[..., :3], np.moveaxis(wanted, 1, -1), 1e-6)


def moved(graph: Graph) -> list[str]:
    """Transposes that are left where an operator of channels first takes the channels last."""
    producers, consumers = graph.producers(), graph.consumers()
    left = []
    for node in graph.nodes:
        if node.op_type == "Transpose":
            before = producers.get(node.input[0])
            after = [other.op_type for other in consumers.get(node.output[0], [])]
            turned = tuple(attribute(node, "perm"))
            into = turned == FIRST and after and set(after) <= set(CHANNELS_FIRST)
            out = turned == LAST and before is not None and before.op_type in CHANNELS_FIRST
            if not into and not out:
                left.append(node.name)
        elif node.op_type in CHANNELS_FIRST:
            around = [producers.get(node.input[0]), *consumers[node.output[0]]]
            if any(other is None or other.op_type != "Transpose" for other in around):
                left.append(node.name)
    return left


@pytest.mark.parametrize("half", [False, True])
def test_nothing_moves_and_nothing_is_upsampled(pack, half):
    """As onnxruntime-gpu leaves them: a Transpose meets its inverse at every operator."""
    for graph in turned_graphs(pack.encoder, TAPS, SHAPE, half=half):
        assert moved(graph) == []
        operators = {node.op_type for node in graph.nodes}
        assert not operators & {"Resize", "Expand", "Mul"}
        dtype = np.float16 if half else np.float32
        for name, shape in (graph.inputs | graph.outputs).items():
            assert graph.dtype(name) == dtype
            if name in ("image", "d_image"):
                assert shape == (*SHAPE, 8 if half else 4)


def test_relu_masks_maxima_where_they_are_pooled(max_pack):
    """A quarter of the cells; relu2_2 and relu4_2 have gradients of their own: masks stay there."""
    _, backward = turned_graphs(max_pack.encoder, TAPS, SHAPE, half=False)
    read = [node.input[0] for node in backward.nodes if node.op_type == "Greater"]
    assert len(read) == 13
    assert {"relu2_2", "relu4_2"} <= set(read)
    assert not {"relu1_2", "relu3_4"} & set(read)
