"""3×3 convolutions with 2.25 times fewer multiplications, written in ONNX's own operators.

Winograd's minimal filtering F(2×2, 3×3) as Lavin and Gray give it, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016, section 4.1: a 4×4 window d of the input and a filter
g give 2×2 outputs

    Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A

summed over the input channels inside the brackets. The windows overlap by two, so their 16
entries are shifted views of the four parity planes that SpaceToDepth makes; each of the 16
products is a 1×1 convolution; DepthToSpace puts the outputs together. B and A hold 0 and ±1 only:
the sums around the products are exact to float32's rounding.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from nst_fast.graph.graph import Array, Graph, attribute

INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # Bᵀ
FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # Aᵀ
LAST = np.iinfo(np.int64).max  # ONNX clamps the end of a slice
Grid = list[list[str]]  # names of values by row and column


def use_winograd(graph: Graph, channels: int) -> None:
    """Rewrite the 3×3 convolutions with at least ``channels`` channels on both sides.

    Those of stride 1 and padding 1, on maps of even height and width; the others stay. The
    graph's input shapes must be set.
    """
    shapes = graph.shapes()
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        fits = _fits(node, graph, channels)
        if fits and not any(side % 2 for side in shapes[node.input[0]][2:]):
            _write(node, graph)
        else:
            graph.nodes.append(node)


def _fits(node: NodeProto, graph: Graph, channels: int) -> bool:
    if node.op_type != "Conv" or node.input[1] not in graph.constants:
        return False
    weights = graph.constants[node.input[1]]
    plain = (
        attribute(node, "pads") == [1, 1, 1, 1]
        and attribute(node, "strides") in (None, [1, 1])
        and attribute(node, "dilations") in (None, [1, 1])
        and attribute(node, "group") in (None, 1)
    )
    return plain and weights.shape[2:] == (3, 3) and min(weights.shape[:2]) >= channels


def _write(node: NodeProto, graph: Graph) -> None:
    """Append operators that compute what ``node`` does, under its output's name."""
    windows = _transform(graph, INPUT, _windows(graph, node.input[0]))
    filters = _filters(graph.constants[node.input[1]])
    bias = list(node.input[2:])

    def product(row: int, column: int) -> str:
        # Row 1 of A holds ones alone: what is added at (1, 1) reaches every output once.
        extra = bias if row == column == 1 else []
        return graph.add(
            "Conv", [windows[row][column], graph.constant(filters[row, column]), *extra]
        )

    products = [[product(row, column) for column in range(4)] for row in range(4)]
    outputs = _transform(graph, OUTPUT, products)
    joined = graph.add("Concat", [*outputs[0], *outputs[1]], axis=1)
    graph.add("DepthToSpace", [joined], node.output[0], blocksize=2, mode="DCR")


def _windows(graph: Graph, data: str) -> Grid:
    """Entry (r, c) of every 4×4 window of the padded input, (N, C, H/2, W/2) each."""
    border = graph.shape_constant(0, 0, 1, 1, 0, 0, 1, 1)
    padded = graph.add("Pad", [data, border])
    stacked = graph.add("SpaceToDepth", [padded], blocksize=2)
    planes = [graph.fresh("plane") for _ in range(4)]
    graph.nodes.append(
        helper.make_node("Split", [stacked], planes, axis=1, num_outputs=4, name=planes[0])
    )
    axes = graph.shape_constant(2, 3)

    def entry(row: int, column: int) -> str:
        # A plane has one cell more than there are windows, in each direction.
        start = graph.shape_constant(row // 2, column // 2)
        end = graph.shape_constant(*(LAST if shift else -1 for shift in (row // 2, column // 2)))
        return graph.add("Slice", [planes[2 * (row % 2) + column % 2], start, end, axes])

    return [[entry(row, column) for column in range(4)] for row in range(4)]


def _filters(weights: Array) -> Array:
    """G g Gᵀ, from (O, C, 3, 3) to (4, 4, O, C, 1, 1) float32."""
    outputs, inputs = weights.shape[:2]
    both_ways = np.kron(FILTER, FILTER).astype(np.float32)  # on (3·3,) → (4·4,); exact
    found = both_ways @ weights.reshape(outputs * inputs, 9).T.astype(np.float32)
    return found.reshape(4, 4, outputs, inputs, 1, 1)


def _transform(graph: Graph, matrix: Array, values: Grid) -> Grid:
    """M V Mᵀ for a matrix M of 0 and ±1."""
    columns = [_sums(graph, matrix, [row[c] for row in values]) for c in range(len(values[0]))]
    return [_sums(graph, matrix, [column[r] for column in columns]) for r in range(len(matrix))]


def _sums(graph: Graph, matrix: Array, values: list[str]) -> list[str]:
    """M v."""
    found = []
    for row in matrix:
        first, *others = [v for v, sign in zip(values, row, strict=True) if sign > 0]
        for other in others:
            first = graph.add("Add", [first, other])
        for other in [v for v, sign in zip(values, row, strict=True) if sign < 0]:
            first = graph.add("Sub", [first, other])
        found.append(first)
    return found
