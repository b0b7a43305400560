"""Read the graph of a pack, which may come from anybody and need not be what it says.

Nothing outside the pack's folder is read, nothing runs but what is checked here, and no array is
made that is larger than the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nst_fast.encoders.manifest import WEIGHTS, Encoder
from nst_fast.errors import EncoderError, one_line
from nst_fast.graph.graph import OPSET, Array, Graph, attribute

# What a graph may hold: nothing here carries the size of the traced image.
OPERATORS = frozenset({
    "Add", "AveragePool", "Cast", "Constant", "Conv", "Div", "Equal", "Greater", "MaxPool", "Mul",
    "Relu", "Resize", "Slice", "Sub", "Transpose", "Where",
})  # fmt: skip
STORED = (TensorProto.FLOAT, TensorProto.FLOAT16)
FOLDED = 16  # times the size of the weights: what casts and flips of them may come to


def load(path: Path, encoder: Encoder) -> Graph:
    """Read an exported graph and fold what is constant: casts and flips of weights.

    The shapes of inputs and outputs stay open.

    Raises:
        EncoderError: it is no such graph; the message names pack, file and remedy.
    """
    with usable(encoder, path.name):
        model = onnx.load_from_string(path.read_bytes())
        _check(model)
        weights = np.frombuffer((path.parent / WEIGHTS).read_bytes(), np.uint8)
        constants = {t.name: _array(t, weights) for t in model.graph.initializer}
        room = FOLDED * weights.size + sum(value.nbytes for value in constants.values())
        nodes = []
        for node in model.graph.node:
            value = _fold(node, constants)
            if value is None:
                nodes.append(node)
                continue
            constants[node.output[0]] = value
            room -= value.nbytes
            if room < 0:
                raise ValueError("its constants grow beyond the weights")
        inputs: dict[str, tuple[int, ...]] = {v.name: () for v in model.graph.input}
        outputs: dict[str, tuple[int, ...]] = {v.name: () for v in model.graph.output}
        graph = Graph(nodes, constants, inputs, outputs)
        graph.remove_dead()
        if not all(np.isfinite(value).all() for value in graph.constants.values()):
            raise ValueError("it holds weights that are not finite")
        return graph


@contextmanager
def usable(encoder: Encoder, file: str) -> Iterator[None]:
    """Blame a file of a pack for what goes wrong inside, in one line."""
    try:
        yield
    except EncoderError:
        raise
    except Exception as error:  # of any kind: whatever was written into the file is looked up
        fault = f"{file} cannot be used ({one_line(error)[:200]})"
        raise EncoderError(f"encoder pack {encoder.path}: {fault}; {encoder.remedy}") from error


def _check(model: onnx.ModelProto) -> None:
    """Raise ValueError unless the model is made as packs are."""
    versions = {(opset.domain or "ai.onnx", opset.version) for opset in model.opset_import}
    if versions != {("ai.onnx", OPSET)}:
        raise ValueError(f"it is written for {sorted(versions)}, not for ONNX's opset {OPSET}")
    if model.functions or model.graph.sparse_initializer:
        raise ValueError("it has functions or sparse weights")
    unknown = {node.op_type for node in model.graph.node if node.domain} | {
        node.op_type for node in model.graph.node
    } - OPERATORS
    if unknown:
        raise ValueError(f"it holds {', '.join(sorted(unknown))}, which no encoder does")


def _array(tensor: TensorProto, weights: Array) -> Array:
    """An initializer: a part of the weights of the pack, or a small array in the graph itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        inline: Array = numpy_helper.to_array(tensor)
        return inline
    place = {entry.key: entry.value for entry in tensor.external_data}
    if place.get("location") != WEIGHTS:
        raise ValueError(f"{tensor.name} lies in {place.get('location')!r}, not in {WEIGHTS}")
    if tensor.data_type not in STORED:
        raise ValueError(f"{tensor.name} must hold float32 or float16")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    size = dtype.itemsize
    for side in shape:  # numbers of Python's: no product of sides wraps around
        size *= side
    start, length = int(place.get("offset", 0)), int(place.get("length", size))
    if min(shape, default=1) < 1 or length != size or start < 0 or start + size > weights.size:
        raise ValueError(f"{tensor.name} {shape} does not lie within {WEIGHTS}")
    found: Array = weights[start : start + size].view(dtype).reshape(shape)
    return found


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
