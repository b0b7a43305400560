"""Graph: ONNX nodes with numpy constants, rewritten and serialised without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 10
SMALL = 64  # elements: what a shape can depend on; larger constants are weights
Array = NDArray[Any]


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

    def shapes(self, *, strict: bool = False) -> dict[str, tuple[int, ...]]:
        """Shape of every value that ONNX can infer from the inputs'.

        ``strict`` raises where a node does not fit what it reads, and infers the outputs' too.
        """
        small = {k: v for k, v in self.constants.items() if v.size <= SMALL}
        large = {k: v.shape for k, v in self.constants.items() if k not in small}
        light = Graph(self.nodes, small, self.inputs | large, self.outputs, self.halves)
        model = onnx.load_from_string(light.to_model())
        if strict:
            for value in model.graph.output:
                value.type.tensor_type.ClearField("shape")
        model = onnx.shape_inference.infer_shapes(model, check_type=strict, strict_mode=strict)
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


def attribute(node: NodeProto, name: str) -> Any:
    """Value of a node's attribute; None where it is not set."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return None
