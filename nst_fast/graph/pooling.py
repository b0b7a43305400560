"""The VJP of max pooling with fewer passes over whole maps; the values stay the same to the bit.

A pack shares the gradient of a window among the cells that are equal to its maximum:
``Where(x = up(max), up(g / (4·mean(Where(x = up(max), 1, 0)))), 0)``, and the ReLU before the
pooling then lets pass what x > 0 does.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from nst_fast.graph.graph import Graph


def count_cells(graph: Graph) -> None:
    """Count the cells at the maximum as the mean of fours, in place: no product by four."""
    producers = graph.producers()
    for node in [n for n in graph.nodes if n.op_type == "Mul"]:
        mean = producers.get(node.input[0])
        if mean is None or mean.op_type != "AveragePool":
            continue
        ones = producers[mean.input[0]]
        one, four = graph.constants[ones.input[1]], graph.constants[node.input[1]]
        ones.input[1] = graph.constant(np.asarray(one * four, one.dtype))
        graph.nodes.remove(node)
        graph.rename(node.output[0], mean.output[0])


def mask_maxima(graph: Graph) -> None:
    """Apply ReLU's mask to the maxima where they are pooled, a quarter of the cells, in place.

    A cell at the maximum of its window is above 0 exactly where the maximum is. Where a tap's
    gradient is added in between, the mask stays where it is.
    """
    producers = graph.producers()
    for mask in [n for n in graph.nodes if n.op_type == "Where"]:
        relu, spread = (producers.get(name) for name in mask.input[:2])
        if relu is None or spread is None or relu.op_type != "Greater":
            continue
        equal, upsampled = _maxima(spread, producers)
        if equal is None or upsampled is None or equal.input[0] != relu.input[0]:
            continue
        if len(graph.consumers()[spread.output[0]]) > 1:
            continue
        above = graph.node("Greater", [producers[equal.input[1]].input[0], relu.input[1]])
        small = graph.node("Where", [above.output[0], upsampled.input[0], mask.input[2]])
        upsampled.input[0] = small.output[0]
        place = graph.nodes.index(upsampled)
        graph.nodes[place:place] = [above, small]
        graph.nodes.remove(mask)
        graph.rename(mask.output[0], spread.output[0])
    graph.remove_dead()


def _maxima(
    node: NodeProto, producers: dict[str, NodeProto]
) -> tuple[NodeProto | None, NodeProto | None]:
    """Of a node that spreads a gradient over maxima: its condition, and its Resize."""
    equal, resize = (producers.get(name) for name in node.input[:2])
    if node.op_type != "Where" or equal is None or resize is None:
        return None, None
    if equal.op_type != "Equal" or resize.op_type != "Resize":
        return None, None
    return equal, resize
