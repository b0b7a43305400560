"""Encoder's graphs with the channels of every value last, as tensor cores read them.

ONNX defines convolutions and poolings for channels first, so these wear a Transpose at each side.
CUDA's provider, which takes the channels last, puts its own next to them, and its optimiser cancels
each such pair: no value moves. All else works element by element and does not see the order.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from nst_fast.graph.graph import Array, Graph
from nst_fast.graph.parts import IMAGE, IMAGE_GRADIENT

PIXEL_BYTES = 16  # of the image and its gradient; the channels behind theirs are 0
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # from (N, C, H, W), and back to it
CHANNELS_FIRST = ("Conv", "MaxPool", "AveragePool")  # as ONNX defines them


def pad_pixels(forward: Graph, backward: Graph, *, half: bool) -> None:
    """Let the image and its gradient have channels for 16 bytes a pixel, in place; (N, C, H, W).

    Of those that are added the weights are 0. The image gets one, the gradient one or, as it will
    be ``half``, five: the two parts of an image in float16 are twice its channels.
    """
    (node,) = forward.consumers()[IMAGE]
    node.input[1] = _padded(forward, node.input[1], 1, 4)
    channels = PIXEL_BYTES // (2 if half else 4)
    node = backward.producers()[IMAGE_GRADIENT]
    node.input[1] = _padded(backward, node.input[1], 0, channels)
    for ends, name, count in (
        (forward.inputs, IMAGE, 4),
        (backward.outputs, IMAGE_GRADIENT, channels),
    ):
        n, _, height, width = ends[name]
        ends[name] = (n, count, height, width)


def _padded(graph: Graph, name: str, axis: int, length: int) -> str:
    """A constant with zeros behind, up to a length along an axis."""
    value = graph.constants[name]
    more = length - value.shape[axis]
    return graph.constant(np.pad(value, [(0, more if i == axis else 0) for i in range(value.ndim)]))


def turn_ends(graph: Graph, *names: str) -> None:
    """Let inputs and outputs have their channels last, the values within as they are, in place."""
    for name in names:
        if name in graph.inputs:
            node = graph.node("Transpose", [name], perm=FIRST)
            graph.rename(name, node.output[0])
            graph.nodes.insert(0, node)
            graph.inputs[name] = _turned(graph.inputs[name])
        else:
            node = graph.producers()[name]
            _rename_output(graph, node)
            graph.rename(name, node.output[0])
            graph.add("Transpose", list(node.output), name, perm=LAST)
            graph.outputs[name] = _turned(graph.outputs[name])


def turn(graph: Graph) -> None:
    """Let every value have its channels last, inputs and outputs too, in place.

    The shapes of the inputs must be set. Upsampling is not written to memory: what reads it
    element by element reads each cell where it is (:class:`_Windows`).
    """
    shapes = graph.shapes()
    windows = _Windows(graph, {name: shapes[name] for name in shapes if len(shapes[name]) == 4})
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if node.op_type == "Resize":
            windows.upsample(node)
        elif node.op_type in CHANNELS_FIRST:
            _turn_around(graph, node)
        elif windows.reads(node):
            windows.write(node)
        else:
            node.input[:] = [_turned_constant(graph, name) for name in node.input]
            graph.nodes.append(node)
    for ends in (graph.inputs, graph.outputs):
        ends.update({name: _turned(shape) for name, shape in ends.items()})
    graph.remove_dead()


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in LAST)


def _turn_around(graph: Graph, node: NodeProto) -> None:
    """Append an operator of channels first between two Transposes."""
    name = node.output[0]
    node.input[0] = graph.add("Transpose", [node.input[0]], perm=FIRST)
    _rename_output(graph, node)
    graph.nodes.append(node)
    graph.add("Transpose", [node.output[0]], name, perm=LAST)


def _rename_output(graph: Graph, node: NodeProto) -> None:
    """Leave the name of its output, and its own, to the last of what is written in its place."""
    node.output[0] = graph.fresh(node.op_type)
    node.name = f"node_{node.output[0]}"


def _turned_constant(graph: Graph, name: str) -> str:
    value: Array | None = graph.constants.get(name)
    if value is None or value.ndim != 4:
        return name
    return graph.constant(np.ascontiguousarray(value.transpose(LAST)))


class _Windows:
    """Writes what reads a map that was upsampled by two, without upsampling it.

    A map (N, H, W, C) is the same memory as (N·H/2, 2, W/2, 2, C), and an upsampled one repeats
    itself along the axes of length two: there it is broadcast.
    """

    def __init__(self, graph: Graph, shapes: dict[str, tuple[int, ...]]) -> None:
        self._graph, self._shapes = graph, shapes
        self._small: dict[str, str] = {}  # what was upsampled, by the name of the result

    def upsample(self, node: NodeProto) -> None:
        """Take note of a Resize; nothing is written."""
        n, channels, height, width = self._shapes[node.input[0]]
        cells = self._graph.shape_constant(n * height, 1, width, 1, channels)
        self._small[node.output[0]] = self._graph.add("Reshape", [node.input[0], cells])

    def reads(self, node: NodeProto) -> bool:
        """Whether a node reads an upsampled map."""
        return any(name in self._small for name in node.input)

    def write(self, node: NodeProto) -> None:
        """Append a node that works element by element on maps, upsampled ones among them."""
        graph, name = self._graph, node.output[0]
        node.input[:] = [self._view(part) for part in node.input]
        _rename_output(graph, node)
        graph.nodes.append(node)
        n, channels, height, width = self._shapes[name]
        whole = graph.shape_constant(n, height, width, channels)
        graph.add("Reshape", [node.output[0], whole], name)

    def _view(self, name: str) -> str:
        graph = self._graph
        if name in self._small:
            return self._small[name]
        if name in graph.constants:
            return name
        n, channels, height, width = self._shapes[name]
        view = graph.shape_constant(n * height // 2, 2, width // 2, 2, channels)
        return graph.add("Reshape", [name, view])
