"""Packs whose hashes are right and whose files are not: refused in one line, nothing else read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nst_fast import encoders
from nst_fast.config import StyleSettings
from nst_fast.encoders import manifest
from nst_fast.errors import EncoderError
from nst_fast.graph.forms import FORMS, fused_graph, statistics_graph
from nst_fast.graph.parts import backward_graph, feature_graph
from nst_fast.losses import Objective

SHAPE = (1, 64, 32)
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def pack(shipped, tmp_path) -> Path:
    return Path(shutil.copytree(shipped.encoder.path, tmp_path / "pack"))


def seal(pack: Path, **changes) -> None:
    """Write the manifest anew, with the hashes of the files as they are."""
    stored = json.loads((pack / "manifest.json").read_bytes())
    stored["files"] = {name: manifest.sha256(pack / name) for name in stored["files"]}
    (pack / "manifest.json").write_text(json.dumps(stored | changes))


def use(pack: Path) -> None:
    """Everything that a step reads of a pack."""
    encoder = encoders.load(pack)
    objective = Objective.from_settings(StyleSettings(), encoder)
    feature_graph(encoder, encoder.taps, SHAPE)
    backward_graph(encoder, encoder.taps, SHAPE)
    for form in FORMS.values():
        fused_graph(encoder, objective, SHAPE, form, weighted=True)
        statistics_graph(encoder, objective, SHAPE, form)


def fault(pack: Path) -> str:
    with pytest.raises(EncoderError) as caught:
        use(pack)
    message = str(caught.value)
    assert message.isprintable(), "a message is one line"
    assert len(message) < 600
    assert str(pack) in message
    assert message.endswith("; build the pack again")
    return message


def rewrite(pack: Path, file: str, change: Change) -> None:
    model = onnx.load(pack / file, load_external_data=False)
    change(model)
    (pack / file).write_bytes(model.SerializeToString())
    seal(pack)


def place(model: onnx.ModelProto, **values: str) -> None:
    """Let the first weights lie elsewhere."""
    for entry in model.graph.initializer[0].external_data:
        entry.value = values.get(entry.key, entry.value)


def test_a_pack_that_is_sealed_anew_is_used(pack):
    seal(pack)
    use(pack)


@pytest.mark.parametrize("file", ["forward.onnx", "backward.onnx"])
@pytest.mark.parametrize("data", [b"", b"no ONNX at all", b"\x08", os.urandom(300)])
def test_what_is_no_graph_is_refused(pack, file, data):
    (pack / file).write_bytes(data)
    seal(pack)
    assert f"{file} cannot be used" in fault(pack)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "other.safetensors", "./weights.safetensors", ""]
)
def test_weights_elsewhere_are_never_read(pack, location):
    """Not even those whose path leads back, and not those beside it: their hashes are unknown."""
    (pack.parent / "secret").write_bytes(bytes(1 << 20))
    (pack / "other.safetensors").write_bytes(bytes(1 << 20))
    rewrite(pack, "forward.onnx", lambda model: place(model, location=location))
    assert "not in weights.safetensors" in fault(pack)


@pytest.mark.parametrize("target", ["../secret", "/dev/zero", "/dev/stdin"])
def test_a_link_out_of_the_folder_is_never_read(pack, target):
    """/dev/zero has no end."""
    shutil.copy(pack / "weights.safetensors", pack.parent / "secret")
    (pack / "weights.safetensors").unlink()
    (pack / "weights.safetensors").symlink_to(target)
    assert "is no file of this folder" in fault(pack)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(pack):
    (pack / "manifest.json").unlink()
    os.mkfifo(pack / "manifest.json")
    assert "is no file of this folder" in fault(pack)


@pytest.mark.parametrize(
    "values",
    [
        {"offset": "-4"},
        {"offset": str(2**63)},
        {"length": "-1"},
        {"length": str(2**62)},
        {"offset": "x"},
        {"length": "863"},
    ],
)
def test_places_outside_the_weights_are_refused(pack, values):
    rewrite(pack, "forward.onnx", lambda model: place(model, **values))
    assert "forward.onnx cannot be used" in fault(pack)


@pytest.mark.parametrize("dims", [(2**40, 2**40), (-1, 3), (0, 5), (2**31, 2**31, 4)])
def test_shapes_beyond_the_weights_are_refused_before_memory_is_taken(pack, dims):
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        del model.graph.initializer[0].external_data[2]

    rewrite(pack, "backward.onnx", change)
    assert "does not lie within weights.safetensors" in fault(pack)


def test_constants_that_grow_are_refused(pack):
    """A thousand casts of one weight would fill the memory."""

    def change(model: onnx.ModelProto) -> None:
        largest = max(model.graph.initializer, key=lambda t: np.prod(t.dims))
        for number in range(1000):
            model.graph.node.append(
                helper.make_node("Cast", [largest.name], [f"x{number}"], to=TensorProto.DOUBLE)
            )

    rewrite(pack, "backward.onnx", change)
    assert "its constants grow beyond the weights" in fault(pack)


@pytest.mark.parametrize(
    ("op", "domain"), [("If", ""), ("Loop", ""), ("Expand", ""), ("Conv", "com.evil"), ("", "")]
)
def test_operators_that_no_encoder_has_are_refused(pack, op, domain):
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type, model.graph.node[0].domain = op, domain

    rewrite(pack, "forward.onnx", change)
    assert "which no encoder does" in fault(pack)


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "elsewhere"


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "elsewhere"


def drop_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[len(model.graph.node) // 2 :]


def clear_attributes(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        del node.attribute[:]


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9


def cycle(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in ("Relu", "Add"):
            node.input[0] = node.output[0]


@pytest.mark.parametrize("file", ["forward.onnx", "backward.onnx"])
@pytest.mark.parametrize(
    "change", [rename_output, rename_input, drop_nodes, clear_attributes, other_opset, cycle]
)
def test_graphs_that_are_not_those_of_the_manifest_are_refused(pack, file, change):
    rewrite(pack, file, change)
    assert f"{file} cannot be used" in fault(pack)


@pytest.mark.parametrize("channels", [8, 4096])
def test_taps_that_are_not_the_graphs_are_refused(pack, channels):
    taps = json.loads((pack / "manifest.json").read_bytes())["taps"]
    taps["relu2_1"]["channels"] = channels
    seal(pack, taps=taps)
    assert "by the manifest" in fault(pack)


@pytest.mark.parametrize(("key", "value"), [("channels", 10**9), ("stride", 10**6)])
def test_taps_that_no_memory_holds_are_refused(pack, key, value):
    taps = json.loads((pack / "manifest.json").read_bytes())["taps"]
    taps["relu5_1"][key] = value
    seal(pack, taps=taps)
    assert f"{key} of relu5_1 must be a whole number from 1 to" in fault(pack)


@pytest.mark.parametrize("file", ["manifest.json", "forward.onnx", "weights.safetensors"])
def test_a_file_larger_than_any_packs_is_not_read(pack, file):
    """Of holes: it takes no room on disk."""
    with (pack / file).open("r+b") as stream:
        stream.truncate(1 << 40)
    assert f"{file} is larger than" in fault(pack)
