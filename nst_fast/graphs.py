"""ONNX surgery without torch: load an encoder's graphs, prune them to taps, join them.

An encoder pack holds two graphs over the same names: ``forward.onnx`` maps ``image`` to
the taps, ``backward.onnx`` maps the ReLU activations and the gradients ``d_<tap>`` to
``d_image``. Everything here works on :class:`Graph`, a list of nodes with numpy constants;
``nst_fast.forms`` rewrites it into what each provider runs fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from nst_fast.encoders import Encoder

OPSET = 18
IR_VERSION = 10
SMALL = 64  # elements: what a shape can depend on; larger constants are weights
IMAGE = "image"
IMAGE_GRADIENT = "d_image"
Array = NDArray[Any]
Shape = tuple[int, int, int]  # N, H, W of the image


def gradient_name(tap: str) -> str:
    """Name of the gradient of the loss with respect to a tap."""
    return f"d_{tap}"


@dataclass
class Graph:
    """Nodes in topological order, constants as numpy arrays, and the names at both ends.

    Inputs and outputs are float32 but for those that ``halves`` names, which are float16.
    """

    nodes: list[NodeProto]
    constants: dict[str, Array]
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    halves: set[str] = field(default_factory=set)
    _serial: int = field(default=0, repr=False)

    def add(
        self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
    ) -> str:
        """Append a node and return the name of its output (a fresh one unless given)."""
        node = self.node(op, inputs, output, **attributes)
        self.nodes.append(node)
        return str(node.output[0])

    def node(
        self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
    ) -> NodeProto:
        """Make a node, without placing it."""
        name = output or self.fresh(op)
        return helper.make_node(op, list(inputs), [name], name=f"node_{name}", **attributes)

    def fresh(self, stem: str) -> str:
        """Return a value name that nothing in the graph uses."""
        self._serial += 1
        return f"{stem}_{self._serial}__"

    def constant(self, value: Array) -> str:
        """Store an array and return its name."""
        name = self.fresh("constant")
        self.constants[name] = value
        return name

    def shape_constant(self, *sizes: int) -> str:
        """Store an int64 vector and return its name."""
        return self.constant(np.array(sizes, dtype=np.int64))

    def float_constant(self, value: float) -> str:
        """Store a float32 scalar and return its name."""
        return self.constant(np.array(value, dtype=np.float32))

    def producers(self) -> dict[str, NodeProto]:
        """Map each value to the node that computes it."""
        return {name: node for node in self.nodes for name in node.output}

    def consumers(self) -> dict[str, list[NodeProto]]:
        """Map each value to the nodes that read it."""
        readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        return readers

    def rename(self, old: str, new: str) -> None:
        """Let every node that reads ``old`` read ``new``."""
        for node in self.nodes:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new

    def remove_dead(self) -> None:
        """Drop nodes, constants and inputs that no output depends on."""
        live = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if live.intersection(node.output):
                live.update(name for name in node.input if name)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {k: v for k, v in self.constants.items() if k in live}
        self.inputs = {k: v for k, v in self.inputs.items() if k in live}

    def dtype(self, name: str) -> type[np.floating[Any]]:
        """Type of an input or output."""
        return np.float16 if name in self.halves else np.float32

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every value that ONNX can infer from the inputs'."""
        small = {k: v for k, v in self.constants.items() if v.size <= SMALL}
        large = {k: v.shape for k, v in self.constants.items() if k not in small}
        light = Graph(self.nodes, small, self.inputs | large, self.outputs, self.halves)
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(light.to_model()))
        return {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
        }

    def to_model(self) -> bytes:
        """Serialise with the fixed shapes of ``inputs`` and ``outputs``."""

        def values(ends: Mapping[str, tuple[int, ...]]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype(name))), shape
                )
                for name, shape in ends.items()
            ]

        tensors = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(
            self.nodes, "nst_fast", values(self.inputs), values(self.outputs), tensors
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        return bytes(model.SerializeToString())


def load(path: Path) -> Graph:
    """Read an exported graph and fold what is constant: casts and flips of weights.

    The shapes of inputs and outputs stay open; :func:`feature_graph` and
    :func:`backward_graph` set them.
    """
    model = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        value = _fold(node, constants)
        if value is None:
            nodes.append(node)
        else:
            constants[node.output[0]] = value
    inputs: dict[str, tuple[int, ...]] = {v.name: () for v in model.graph.input}
    outputs: dict[str, tuple[int, ...]] = {v.name: () for v in model.graph.output}
    graph = Graph(nodes, constants, inputs, outputs)
    graph.remove_dead()
    return graph


@functools.lru_cache(maxsize=2)  # forward and backward of the encoder in use
def _loaded(path: Path, digest: str) -> Graph:
    del digest  # part of the key: the same path may hold another pack later
    return load(path)


def _fresh(path: Path, encoder: Encoder) -> Graph:
    """A copy of an encoder's graph to rewrite; the arrays are shared and never written."""
    graph = _loaded(path, encoder.digest)
    nodes = []
    for node in graph.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
    return Graph(nodes, dict(graph.constants), dict(graph.inputs), dict(graph.outputs))


def attribute(node: NodeProto, name: str) -> Any:
    """Value of a node's attribute; None where it is not set."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return None


def _fold_slice(data: Array, starts: Array, ends: Array, axes: Array, steps: Array) -> Array:
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # ONNX clamps the ends; for a full reversal numpy writes the far end as None.
        stop = None if step < 0 and end < -data.shape[axis] else int(end)
        index[axis] = slice(int(start), stop, int(step))
    return data[tuple(index)]


def _fold(node: NodeProto, constants: Mapping[str, Array]) -> Array | None:
    """Value of a node that depends on constants alone, or None."""
    if node.op_type == "Constant":
        return _constant_value(node)
    if not all(name in constants for name in node.input):
        return None
    values = [constants[name] for name in node.input]
    if node.op_type == "Cast":
        return values[0].astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to")))
    if node.op_type == "Slice":
        return np.ascontiguousarray(_fold_slice(*values))
    if node.op_type == "Transpose":
        return np.ascontiguousarray(values[0].transpose(attribute(node, "perm")))
    return None


def _constant_value(node: NodeProto) -> Array:
    item = node.attribute[0]
    value = helper.get_attribute_value(item)
    if item.name == "value":
        tensor: Array = numpy_helper.to_array(value)
        return tensor
    kind = np.float32 if item.name.startswith("value_float") else np.int64
    return np.array(value, dtype=kind)


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
    if node.op_type in ("Conv", "Resize", "Mul"):
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
