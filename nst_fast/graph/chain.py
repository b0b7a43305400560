"""An encoder as a chain of layers, where its graphs are one: convolution, ReLU, pooling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import NodeProto

from nst_fast.graph.channels_last import turn
from nst_fast.graph.graph import Array, Graph, attribute
from nst_fast.graph.parts import IMAGE, IMAGE_GRADIENT

Pooling = Literal["max", "average"]
POOLINGS: dict[str, Pooling] = {"MaxPool": "max", "AveragePool": "average"}
BACKWARD = frozenset({
    "Add", "AveragePool", "Conv", "Div", "Equal", "Greater", "MaxPool", "Resize", "Where",
})  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A 3×3 convolution of stride 1 that keeps the size, a ReLU, and perhaps a pooling by two.

    Attributes:
        name: of the activation.
        weights: (O, C, 3, 3).
        bias: (O,).
        flipped: (C, O, 3, 3): the weights of the way back; of average pooling behind this layer
            those of the next layer have the 1/4.
        pooling: of what follows the ReLU, if anything does.
    """

    name: str
    weights: Array
    bias: Array
    flipped: Array
    pooling: Pooling | None


def chain(forward: Graph, backward: Graph) -> list[Layer] | None:
    """The layers of a pair of graphs of channels first, or None where they are no chain."""
    back = [node for node in backward.nodes if node.op_type == "Conv"][::-1]
    known = {node.op_type for node in backward.nodes} <= BACKWARD
    if not known or not back or back[0].output[0] != IMAGE_GRADIENT:
        return None
    layers: list[Layer] = []
    value = IMAGE
    for conv, relu, pool in _threes(iter(forward.nodes)):
        if len(layers) == len(back) or not _follow(value, conv, relu, pool):
            return None
        weights, flipped = _kernel(conv, forward), _kernel(back[len(layers)], backward)
        if weights is None or flipped is None or len(conv.input) != 3:
            return None
        bias = forward.constants[conv.input[2]]
        pooling = None if pool is None else POOLINGS[pool.op_type]
        layers.append(Layer(relu.output[0], weights, bias, flipped, pooling))
        value = (pool or relu).output[0]
    return layers if len(layers) == len(back) else None


def convolution(weights: Array, shape: Sequence[int]) -> Graph:
    """A convolution alone, without a bias: ``x`` of a shape (N, H, W, C) to ``y`` (N, H, W, O)."""
    n, height, width, _ = shape
    graph = Graph([], {"weights": weights}, {}, {})
    graph.inputs["x"] = (n, weights.shape[1], height, width)
    graph.add("Conv", ["x", "weights"], "y", pads=[1, 1, 1, 1])
    graph.outputs["y"] = (n, weights.shape[0], height, width)
    if weights.dtype.itemsize == 2:
        graph.halves.update(("x", "y"))
    turn(graph)
    return graph


def _threes(nodes: Iterator[NodeProto]) -> Iterator[tuple[NodeProto, NodeProto, NodeProto | None]]:
    """Convolution, what follows, and a pooling where one comes next."""
    conv = next(nodes, None)
    while conv is not None:
        relu = next(nodes, conv)
        after = next(nodes, None)
        if after is not None and after.op_type in POOLINGS:
            yield conv, relu, after
            after = next(nodes, None)
        else:
            yield conv, relu, None
        conv = after


def _follow(value: str, conv: NodeProto, relu: NodeProto, pool: NodeProto | None) -> bool:
    """Whether the three read one another, the first of them a value."""
    return (
        (conv.op_type, relu.op_type) == ("Conv", "Relu")
        and (conv.input[0], relu.input[0]) == (value, conv.output[0])
        and (pool is None or (pool.input[0] == relu.output[0] and _halves(pool)))
    )


def _kernel(conv: NodeProto, graph: Graph) -> Array | None:
    """The weights of a convolution that is 3×3 and keeps the size."""
    weights = graph.constants.get(conv.input[1])
    plain = (
        weights is not None
        and weights.shape[2:] == (3, 3)
        and attribute(conv, "pads") == [1, 1, 1, 1]
        and attribute(conv, "strides") in (None, [1, 1])
        and attribute(conv, "dilations") in (None, [1, 1])
        and attribute(conv, "group") in (None, 1)
        and attribute(conv, "auto_pad") in (None, b"NOTSET")
    )
    return weights if plain else None


def _halves(pool: NodeProto) -> bool:
    """Whether a pooling takes whole windows of two by two."""
    return (
        attribute(pool, "kernel_shape") == [2, 2]
        and attribute(pool, "strides") == [2, 2]
        and attribute(pool, "pads") in (None, [0, 0, 0, 0])
        and attribute(pool, "dilations") in (None, [1, 1])
        and not attribute(pool, "ceil_mode")
    )
