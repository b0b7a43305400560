"""An encoder's two graphs, cut down to what a step needs, and joined around a loss head.

A pack holds two graphs over the same names: ``forward.onnx`` maps ``image`` to the taps,
``backward.onnx`` maps the ReLU activations and the gradients ``d_<tap>`` to ``d_image``.
``nst_fast.graph.forms`` rewrites them into what each provider runs fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

from onnx import NodeProto, helper

from nst_fast.encoders import Encoder
from nst_fast.graph.exported import load, usable
from nst_fast.graph.graph import Graph

IMAGE = "image"
IMAGE_GRADIENT = "d_image"
Shape = tuple[int, int, int]  # N, H, W of the image


def gradient_name(tap: str) -> str:
    """Name of the gradient of the loss with respect to a tap."""
    return f"d_{tap}"


@functools.lru_cache(maxsize=2)  # forward and backward of the encoder in use
def _loaded(path: Path, encoder: Encoder) -> Graph:
    """Checked against the manifest: which values go in and come out, and of what shape."""
    graph = load(path, encoder)
    taps, gradients = set(encoder.taps), {gradient_name(tap) for tap in encoder.taps}
    with usable(encoder, path.name):
        ends = {IMAGE}, taps
        if path == encoder.backward_path:
            ends = taps | gradients, {IMAGE_GRADIENT}
        if not (set(graph.inputs) <= ends[0] and set(graph.outputs) >= ends[1]):
            raise ValueError("its inputs and outputs are not those of the manifest")
        side = 2 * max(tap.stride for tap in encoder.taps.values())
        names = (*graph.inputs, *graph.outputs)
        expected = {name: _end_shape(encoder, name, (2, side, 2 * side)) for name in names}
        graph.inputs = {name: expected[name] for name in graph.inputs}
        found = graph.shapes(strict=True)
        for name in graph.outputs:
            if found.get(name) != expected[name]:
                raise ValueError(f"{name} is {found.get(name)}, by the manifest {expected[name]}")
    return graph


def _fresh(path: Path, encoder: Encoder) -> Graph:
    """A copy of an encoder's graph to rewrite; the arrays are shared and never written."""
    graph = _loaded(path, encoder)
    nodes = []
    for node in graph.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
    return Graph(nodes, dict(graph.constants), dict(graph.inputs), dict(graph.outputs))


def _end_shape(encoder: Encoder, name: str, shape: Shape) -> tuple[int, int, int, int]:
    """Shape of an input or output of an encoder's graph for images of a shape."""
    if name in (IMAGE, IMAGE_GRADIENT):
        return shape[0], 3, *shape[1:]
    return _tap_shape(encoder, name.removeprefix("d_"), shape)


def _tap_shape(encoder: Encoder, tap: str, shape: Shape) -> tuple[int, int, int, int]:
    n, height, width = shape
    info = encoder.taps[tap]
    return n, info.channels, height // info.stride, width // info.stride


def feature_graph(encoder: Encoder, outputs: Iterable[str], shape: Shape) -> Graph:
    """Forward graph for images (N, 3, H, W), cut down to the activations asked for.

    Args:
        encoder: the pack to read.
        outputs: tap names; what they do not need is not computed.
        shape: N, H, W of the image; H and W are multiples of the deepest tap's stride.
    """
    graph = _fresh(encoder.forward_path, encoder)
    graph.inputs = {IMAGE: (shape[0], 3, shape[1], shape[2])}
    graph.outputs = {tap: _tap_shape(encoder, tap, shape) for tap in outputs}
    graph.remove_dead()
    return graph


def backward_graph(encoder: Encoder, taps: Iterable[str], shape: Shape) -> Graph:
    """Backward graph with gradients coming in at ``taps`` only.

    Its inputs are the gradients ``d_<tap>`` and the activations that the masks read.
    """
    wanted = {gradient_name(tap) for tap in taps}
    graph = _fresh(encoder.backward_path, encoder)
    ends = {name: _tap_shape(encoder, name.removeprefix("d_"), shape) for name in graph.inputs}
    zeros = {n for n in graph.inputs if n.startswith("d_") and n not in wanted}
    graph.inputs = {name: end for name, end in ends.items() if name not in zeros}
    graph.outputs = {IMAGE_GRADIENT: (shape[0], 3, shape[1], shape[2])}
    _propagate_zeros(graph, zeros)
    graph.remove_dead()
    return graph


def graph_pair(encoder: Encoder, taps: Iterable[str], shape: Shape) -> tuple[Graph, Graph]:
    """Forward and backward graph of these taps, for images (N, 3, H, W).

    The forward graph also has the activations that the backward one reads, under the same names.
    """
    backward = backward_graph(encoder, taps, shape)
    activations = (name for name in backward.inputs if name in encoder.taps)
    return feature_graph(encoder, dict.fromkeys((*activations, *taps)), shape), backward


def _propagate_zeros(graph: Graph, zeros: set[str]) -> None:
    """Remove what a zero gradient flows through; every operator of a VJP is linear in it."""
    nodes = []
    for node in graph.nodes:
        data = _linear_inputs(node)
        if node.op_type == "Add" and zeros.intersection(data) and not zeros.issuperset(data):
            (kept,) = (name for name in data if name not in zeros)
            nodes.append(helper.make_node("Identity", [kept], list(node.output)))
        elif data and zeros.issuperset(data):
            zeros.update(node.output)
        else:
            nodes.append(node)
    graph.nodes = nodes
    _remove_identities(graph)


def _linear_inputs(node: NodeProto) -> list[str]:
    """Inputs of a node of the backward graph that carry a gradient."""
    if node.op_type == "Where":
        return [node.input[1]]
    if node.op_type in ("Conv", "Div", "Mul", "Resize"):
        return [node.input[0]]
    return list(node.input) if node.op_type == "Add" else []


def _remove_identities(graph: Graph) -> None:
    for node in [n for n in graph.nodes if n.op_type == "Identity"]:
        graph.nodes.remove(node)
        graph.rename(node.output[0], node.input[0])


def join(forward: Graph, backward: Graph, head: Callable[[Graph], None]) -> Graph:
    """Compose forward, a loss head that adds ``d_<tap>`` and the loss, and backward.

    ``head`` is called between the two; it may read every tap and must write a gradient for
    each ``d_<tap>`` that ``backward`` takes.
    """
    prefix = "b_"
    shared = set(backward.inputs) | set(backward.outputs)

    def renamed(name: str) -> str:
        return name if not name or name in shared else prefix + name

    halves = forward.halves | backward.halves
    graph = Graph(
        list(forward.nodes),
        dict(forward.constants),
        dict(forward.inputs),
        {},
        halves,
        _serial=forward._serial,  # the head's names must not meet those given before
    )
    head(graph)
    for node in backward.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed(name) for name in node.input]
        copy.output[:] = [renamed(name) for name in node.output]
        copy.name = prefix + node.name
        graph.nodes.append(copy)
    graph.constants |= {renamed(name): value for name, value in backward.constants.items()}
    graph.outputs |= backward.outputs
    graph.remove_dead()
    return graph
