"""Build an encoder pack: two ONNX graphs over one file of weights, checked and described."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnxscript import opset18 as op
from safetensors.numpy import save_file
from torch import Tensor, nn

from nst_fast import encoders
from nst_fast.encoders.manifest import WEIGHTS
from nst_fast.errors import EncoderError
from nst_fast.export.backward import UPSAMPLE, trace_backward
from nst_fast.export.check import check_pair
from nst_fast.export.checkpoint import read_checkpoint
from nst_fast.export.vgg import ARCHITECTURES, Pooling, Vgg, VggSpec
from nst_fast.graph.exported import OPERATORS
from nst_fast.graph.graph import IR_VERSION, OPSET, Array
from nst_fast.graph.parts import IMAGE, IMAGE_GRADIENT, gradient_name
from nst_fast.runtime import choose


def build_pack(
    folder: Path,
    checkpoint: Path,
    *,
    name: str,
    architecture: str,
    pooling: Pooling = "max",
    half: bool = False,
    source: str,
    licence: str,
) -> None:
    """Export a checkpoint into ``folder``: graphs, weights, manifest.

    Args:
        folder: an existing, empty folder.
        checkpoint: torchvision layout (``.pth``) or safetensors; see ``read_checkpoint``.
        name: the encoder's name in the manifest.
        architecture: a key of ``ARCHITECTURES``.
        pooling: "max", as VGG was trained, or "average" (Gatys et al. 2016, section 2); what
            they do to pictures is in docs/convergence.md.
        half: store the weights as float16; the graphs cast them up and compute in float32.
        source: where the weights come from, for the manifest.
        licence: theirs, for the manifest.

    Raises:
        EncoderError: the checkpoint does not fit the architecture, or the exported pair
            fails its check against autograd.
    """
    choose("cpu", "fp32")  # for the check at the end; better missed now
    if architecture not in ARCHITECTURES:
        raise EncoderError(f"no architecture {architecture!r}: {', '.join(ARCHITECTURES)}")
    spec = ARCHITECTURES[architecture]
    module = _module(spec, pooling, checkpoint, half)
    weights = _weights(module, half)
    offsets = _save_weights(weights, folder / WEIGHTS)
    for model, file in zip(_graphs(module), ("forward.onnx", "backward.onnx"), strict=True):
        _finish(model, weights, offsets)
        (folder / file).write_bytes(model.SerializeToString())
    check_pair(module, folder)
    encoders.write_manifest(
        folder,
        name=name,
        pooling=pooling,
        mean=spec.mean,
        taps={y.tap: encoders.Tap(y.out_channels, y.stride) for y in spec.layers()},
        source=source,
        licence=licence,
        created_with={p: version(p) for p in ("nst-fast", "torch", "onnx", "onnxscript")},
    )


def _module(spec: VggSpec, pooling: Pooling, checkpoint: Path, half: bool) -> Vgg:
    """The network with the weights of a checkpoint; where ``half``, as float16 holds them."""
    module = Vgg(spec, pooling)
    module.load_arrays(read_checkpoint(checkpoint, spec))
    module.eval().requires_grad_(False)
    if half:
        for layer in spec.layers():
            weight = module.convs[layer.conv].get_parameter("weight")
            weight.copy_(weight.half())
    return module


def _graphs(module: Vgg) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Forward and backward, traced with a picture of 2 × 3 cells of the deepest taps."""
    cell = 2 ** len(module.spec.blocks)
    image = torch.rand(1, 3, 2 * cell, 3 * cell)
    taps = [layer.tap for layer in module.spec.layers()]
    forward = _export(_Forward(module), (image,), [IMAGE], taps)
    traced, arguments = trace_backward(module, image)
    names = [*taps, *(gradient_name(tap) for tap in taps)]
    return forward, _export(traced, arguments, names, [IMAGE_GRADIENT])


class _Forward(nn.Module):
    """The VGG with a tuple for its result, as the exporter wants it."""

    def __init__(self, module: Vgg) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(image).values())


def _weights(module: Vgg, half: bool) -> dict[str, Array]:
    """Arrays to store, by name; biases and the mean stay float32."""
    arrays = {}
    for layer in module.spec.layers():
        state = module.convs[layer.conv].state_dict()
        weight = state["weight"].numpy()
        arrays[f"{layer.conv}.weight"] = weight.astype(np.float16) if half else weight
        arrays[f"{layer.conv}.bias"] = state["bias"].numpy()
    arrays["mean"] = module.mean.numpy()
    return {k: np.ascontiguousarray(v) for k, v in arrays.items()}


def _save_weights(weights: Mapping[str, Array], path: Path) -> dict[str, tuple[int, int]]:
    """Write a safetensors file; return the byte offset in the file and length of each array."""
    save_file(dict(weights), path)
    raw = path.read_bytes()
    header = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + header])
    start = 8 + header
    return {
        name: (
            start + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in entries.items()
        if name != "__metadata__"
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of optional packages; nothing there is for our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _export(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    """Export with the sizes of the example, then open N, H and W."""

    def resize(x: Any) -> Any:
        scales = op.Constant(value_floats=[1.0, 1.0, 2.0, 2.0])
        return op.Resize(
            x, None, scales, mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            custom_translation_table={UPSAMPLE: resize},
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    operators = {node.op_type for node in model.graph.node}
    if not operators <= OPERATORS:
        raise EncoderError(f"export: the graph holds {sorted(operators - OPERATORS)}")
    return model


def _finish(
    model: onnx.ModelProto,
    weights: Mapping[str, Array],
    offsets: Mapping[str, tuple[int, int]],
) -> None:
    """Name the weights, point them at the shared file, and make N, H, W symbolic."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        name = _match(tensor, weights)
        _rename_value(graph, tensor.name, name)
        if weights[name].dtype == np.float16:
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    names = [t.name for t in graph.initializer]
    del graph.initializer[:]
    for name in dict.fromkeys(names):
        graph.initializer.append(_external(name, weights[name], offsets[name]))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        _open_shape(value)
    model.ir_version = IR_VERSION
    model.producer_name = "nst-fast"
    del model.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _match(tensor: TensorProto, weights: Mapping[str, Array]) -> str:
    """Which of our arrays an exported initializer is: the tracer does not keep their names."""
    value = onnx.numpy_helper.to_array(tensor)
    for name, array in weights.items():
        if array.shape == value.shape and np.array_equal(array.astype(np.float32), value):
            return name
    raise EncoderError(f"export: an unknown constant {tensor.name} of shape {value.shape}")


def _rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
    for tensor in graph.initializer:
        if tensor.name == old:
            tensor.name = new


def _external(name: str, array: Array, place: tuple[int, int]) -> TensorProto:
    half = array.dtype == np.float16
    tensor = TensorProto(
        name=f"{name}.half" if half else name,
        data_type=TensorProto.FLOAT16 if half else TensorProto.FLOAT,
        dims=array.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", WEIGHTS), ("offset", place[0]), ("length", place[1])):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _open_shape(value: onnx.ValueInfoProto) -> None:
    """N, H, W free; a tap's own height and width are named after its block."""
    name = value.name.removeprefix("d_")
    suffix = "" if name == IMAGE else f"_{name.removeprefix('relu').split('_')[0]}"
    dims = value.type.tensor_type.shape.dim
    dims[0].dim_param = "N"
    dims[2].dim_param = f"H{suffix}"
    dims[3].dim_param = f"W{suffix}"
