"""Graph surgery: pruned and joined graphs compute what the whole network does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from closeness import assert_close
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch_reference import waves

from nst_fast.export.vgg import VGG19_LITE
from nst_fast.graph.exported import load
from nst_fast.graph.graph import Graph
from nst_fast.graph.parts import backward_graph, feature_graph, gradient_name, join
from nst_fast.runtime import Session

TAPS = tuple(layer.tap for layer in VGG19_LITE.layers())
SUBSETS = st.sets(st.sampled_from(TAPS), min_size=1)
SEEDS = st.integers(0, 2**31)
TOLERANCE = {"average": 1e-5, "max": 1e-4}


def run(graph: Graph, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = Session(graph, provider="cpu", precision="fp32", threads=1)
    assert set(session.inputs) == set(inputs)
    for name, value in inputs.items():
        np.copyto(session.inputs[name], value)
    session.run()
    return session.outputs


def count(graph: Graph, op: str) -> int:
    return sum(node.op_type == op for node in graph.nodes)


def deepest(taps: set[str]) -> int:
    return max(TAPS.index(tap) for tap in taps)


@given(taps=SUBSETS, n=st.integers(1, 2), seed=SEEDS)
@settings(max_examples=12)
def test_pruning_keeps_the_taps_and_drops_deeper_layers(pack, taps, n, seed):
    image = waves(seed, n, 3, 32, 16)
    graph = feature_graph(pack.encoder, taps, (n, 32, 16))
    assert count(graph, "Conv") == deepest(taps) + 1
    stride = pack.encoder.taps[TAPS[deepest(taps)]].stride
    assert 2 ** (count(graph, "AveragePool") + count(graph, "MaxPool")) == stride
    expected = pack.network.features(image)
    outputs = run(graph, image=image)
    assert set(outputs) == taps
    for tap in taps:
        assert_close(outputs[tap], expected[tap], 1e-5)


@given(taps=SUBSETS, n=st.integers(1, 2), seed=SEEDS)
@settings(max_examples=15)
def test_zero_gradients_are_propagated(pack, taps, n, seed):
    """Gradients at any subset of taps; the others are 0 without being computed."""
    image = waves(seed, n, 3, 16, 32)
    assume(pack.network.clearance(image) > 1e-7)
    features = pack.network.features(image)
    rng = np.random.default_rng(seed)
    gradients = {tap: rng.standard_normal(features[tap].shape, np.float32) for tap in taps}
    graph = backward_graph(pack.encoder, taps, (n, 16, 32))
    assert count(graph, "Conv") == deepest(taps) + 1
    assert count(graph, "Identity") == 0
    masks = set(graph.inputs) - {gradient_name(tap) for tap in taps}
    # Average pooling needs no activation but for the masks of the ReLUs on the way.
    assert masks == set(TAPS[: deepest(taps) + 1])
    inputs = {tap: features[tap] for tap in masks}
    inputs |= {gradient_name(tap): value for tap, value in gradients.items()}
    (found,) = run(graph, **inputs).values()
    assert_close(found, pack.network.vjp(image, gradients), TOLERANCE[pack.encoder.pooling])


def test_shapes_are_set(pack):
    graph = backward_graph(pack.encoder, ["relu3_1"], (2, 32, 48))
    assert graph.inputs["d_relu3_1"] == graph.inputs["relu3_1"] == (2, 64, 8, 12)
    assert graph.inputs["relu1_2"] == (2, 16, 32, 48)
    assert graph.outputs == {"d_image": (2, 3, 32, 48)}
    graph = feature_graph(pack.encoder, ["relu3_1"], (2, 32, 48))
    assert graph.inputs == {"image": (2, 3, 32, 48)}
    assert graph.outputs == {"relu3_1": (2, 64, 8, 12)}


def test_weights_are_folded_once(pack):
    """Casts, flips and transpositions of weights are done when the graph is read."""
    for path in (pack.encoder.forward_path, pack.encoder.backward_path):
        graph = load(path, pack.encoder)
        assert not {"Cast", "Slice", "Transpose", "Constant"} & {n.op_type for n in graph.nodes}
        assert {name for node in graph.nodes for name in node.input if name} <= (
            set(graph.constants) | set(graph.inputs) | set(graph.producers())
        )


def test_half_weights_become_float32(shipped):
    for value in load(shipped.encoder.forward_path, shipped.encoder).constants.values():
        assert value.dtype != np.float16


def test_models_are_valid_onnx(pack):
    for graph in (
        feature_graph(pack.encoder, TAPS, (1, 16, 16)),
        backward_graph(pack.encoder, TAPS[2:5], (3, 32, 16)),
    ):
        onnx.checker.check_model(onnx.load_from_string(graph.to_model()), full_check=True)


def test_join_feeds_the_head_and_keeps_names_apart(pack, seed):
    """A head that hands each tap on as its own gradient gives Σ Jᵀ tap."""
    taps, shape = ("relu2_2", "relu5_1"), (2, 16, 32)
    backward = backward_graph(pack.encoder, taps, shape)
    needed = [name for name in backward.inputs if name in TAPS]
    forward = feature_graph(pack.encoder, needed, shape)

    def head(graph: Graph) -> None:
        for tap in taps:
            graph.add("Identity", [tap], gradient_name(tap))

    graph = join(forward, backward, head)
    assert set(graph.inputs) == {"image"}
    assert set(graph.outputs) == {"d_image"}
    names = [name for node in graph.nodes for name in node.output]
    assert len(names) == len(set(names))
    image = pack.network.clear_image(waves(seed, 2, 3, 16, 32), seed)
    features = pack.network.features(image)
    expected = pack.network.vjp(image, {tap: features[tap] for tap in taps})
    assert_close(run(graph, image=image)["d_image"], expected, 1e-4)


def test_remove_dead_drops_all_that_no_output_needs():
    graph = Graph([], {}, {"a": (1,), "b": (1,)}, {"sum": (1,)})
    graph.add("Add", ["a", graph.float_constant(2.0)], "sum")
    graph.add("Mul", ["b", graph.float_constant(3.0)], "unused")
    graph.remove_dead()
    assert [node.op_type for node in graph.nodes] == ["Add"]
    assert set(graph.inputs) == {"a"}
    assert [float(v) for v in graph.constants.values()] == [2.0]
    with pytest.raises(KeyError):
        graph.producers()["unused"]
