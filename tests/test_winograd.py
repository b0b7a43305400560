"""Winograd's convolutions compute what the convolutions they replace do."""

from __future__ import annotations

import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st
from reference import convolution

from nst_fast.graph.graph import Graph
from nst_fast.graph.winograd import use_winograd
from nst_fast.runtime import Session


def graph_of(
    n: int, inputs: int, outputs: int, sides: tuple[int, int], seed: int, bias: bool, **attributes
) -> Graph:
    """One convolution of ``x``, with random weights."""
    rng = np.random.default_rng(seed)
    graph = Graph([], {}, {"x": (n, inputs, *sides)}, {"y": (n, outputs, *sides)})
    weights = rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float32)
    names = ["x", graph.constant(weights)]
    if bias:
        names.append(graph.constant(rng.standard_normal(outputs).astype(np.float32)))
    graph.add("Conv", names, "y", **({"pads": [1, 1, 1, 1]} | attributes))
    return graph


def run(graph: Graph, x: np.ndarray, provider: str = "cpu") -> np.ndarray:
    session = Session(graph, provider=provider, precision="fp32", threads=1)
    np.copyto(session.inputs["x"], x)
    session.run()
    return session.outputs["y"]


def expected(graph: Graph, x: np.ndarray) -> np.ndarray:
    weights, *bias = graph.constants.values()
    return convolution(x, weights, bias[0] if bias else np.zeros(len(weights)))


SIDES = st.integers(1, 6).map(lambda half: 2 * half)


@given(
    n=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sides=st.tuples(SIDES, SIDES),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_same_convolution(n, channels, sides, bias, seed):
    graph = graph_of(n, *channels, sides, seed, bias)
    x = np.random.default_rng(seed + 1).standard_normal((n, channels[0], *sides))
    wanted = expected(graph, x.astype(np.float32))
    use_winograd(graph, channels=1)
    assert sum(node.op_type == "Conv" for node in graph.nodes) == 16
    assert_close(run(graph, x), wanted, 1e-5)


def test_on_openvino(backend):
    backend("openvino", "fp32")
    graph = graph_of(2, 24, 40, (8, 6), 3, bias=True)
    x = np.random.default_rng(4).standard_normal((2, 24, 8, 6)).astype(np.float32)
    wanted = expected(graph, x)
    use_winograd(graph, channels=24)
    assert_close(run(graph, x, "openvino"), wanted, 1e-3)


@pytest.mark.parametrize(
    ("channels", "sides", "attributes"),
    [
        ((8, 7), (4, 4), {}),  # too few channels on one side
        ((8, 8), (5, 4), {}),  # an odd side
        ((8, 8), (4, 4), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ((8, 8), (4, 4), {"pads": [0, 0, 2, 2]}),
    ],
)
def test_what_does_not_fit_stays(channels, sides, attributes):
    graph = graph_of(1, *channels, sides, 0, bias=True, **attributes)
    use_winograd(graph, channels=8)
    assert [node.op_type for node in graph.nodes] == ["Conv"]
