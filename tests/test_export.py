"""Export: checkpoints in, packs out, checked against torch autograd in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from closeness import assert_close, relative_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch_reference import IMAGENET_STD, Network, he_weights, waves

from nst_fast.errors import EncoderError
from nst_fast.export import backward, build_pack
from nst_fast.export.checkpoint import torchvision_names
from nst_fast.export.vgg import ARCHITECTURES, VGG16, VGG19, VggSpec

TOLERANCE = {"average": 1e-5, "max": 1e-4}
TINY = VggSpec(((5, 6), (7,)), std=IMAGENET_STD)
TINY_WIDTHS = {"conv1_1": 5, "conv1_2": 6, "conv2_1": 7}
VGG16_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG19_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
SIZES = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))


def session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])


def run_backward(pack_backward, features: dict, gradients: dict) -> np.ndarray:
    """Image gradient of the exported graph, masks from the given activations."""
    feeds = dict(features) | {f"d_{tap}": d for tap, d in gradients.items()}
    wanted = {value.name for value in pack_backward.get_inputs()}
    feeds = {k: np.asarray(v, np.float32) for k, v in feeds.items() if k in wanted}
    return pack_backward.run(["d_image"], feeds)[0]


@pytest.fixture(scope="session")
def forward_session(pack):
    return session(pack.encoder.path, "forward")


@pytest.fixture(scope="session")
def backward_session(pack):
    return session(pack.encoder.path, "backward")


@given(size=SIZES, seed=st.integers(0, 2**31))
@settings(max_examples=8)
def test_graphs_match_autograd_at_any_size(pack, forward_session, backward_session, size, seed):
    n, rows, columns = size
    image = waves(seed, n, 3, 16 * rows, 16 * columns)
    assume(pack.network.clearance(image) > 1e-7)
    features = pack.network.features(image)
    found = forward_session.run(list(features), {"image": image})
    for tap, value in zip(features, found, strict=True):
        assert_close(value, features[tap], 1e-5)
    rng = np.random.default_rng(seed)
    gradients = {tap: rng.standard_normal(f.shape, np.float32) for tap, f in features.items()}
    d_image = run_backward(backward_session, features, gradients)
    assert_close(d_image, pack.network.vjp(image, gradients), TOLERANCE[pack.encoder.pooling])


def test_backward_is_the_adjoint_of_the_forward_derivative(pack, backward_session, seed):
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩; the network is piecewise linear, so J v is a difference quotient."""
    rng = np.random.default_rng(seed)
    network, h = pack.network, 1e-8
    image = waves(seed, 2, 3, 48, 32).astype(np.float64)
    v = rng.standard_normal(image.shape)
    features, ahead = network.features(image), network.features(image + h * v)
    pushed = {tap: (ahead[tap] - features[tap]) / h for tap in features}
    u = {tap: rng.standard_normal(j.shape, np.float32) for tap, j in pushed.items()}
    pulled = run_backward(backward_session, features, u).astype(np.float64)
    size = sum(np.linalg.norm(u[tap]) * np.linalg.norm(pushed[tap]) for tap in u)
    difference = sum((u[tap] * pushed[tap]).sum() for tap in u) - (pulled * v).sum()
    assert abs(difference) < 1e-5 * size


def test_manifest_describes_the_network(pack):
    taps = pack.encoder.taps
    assert list(taps) == pack.network.taps
    for tap, value in pack.network.features(waves(0, 1, 3, 32, 48)).items():
        stride = taps[tap].stride
        assert value.shape == (1, taps[tap].channels, 32 // stride, 48 // stride)
    assert pack.encoder.mean == (0.485, 0.456, 0.406)
    manifest = json.loads((pack.encoder.path / "manifest.json").read_text())
    assert {"torch", "onnx", "nst-fast"} <= set(manifest["created_with"])


def test_weights_are_stored_once(pack):
    """Both graphs point into one safetensors file and hold no weights themselves."""
    folder = pack.encoder.path
    stored = load_file(folder / "weights.safetensors")
    for name in ("forward", "backward"):
        path = folder / f"{name}.onnx"
        model = onnx.load(path, load_external_data=False)
        for tensor_ in model.graph.initializer:
            assert tensor_.data_location == onnx.TensorProto.EXTERNAL, tensor_.name
            place = {item.key: item.value for item in tensor_.external_data}
            assert place["location"] == "weights.safetensors"
            assert not tensor_.raw_data
            assert not tensor_.float_data
        assert path.stat().st_size < 40_000
        for loaded in onnx.load(path).graph.initializer:
            assert np.array_equal(onnx.numpy_helper.to_array(loaded), stored[loaded.name])
    assert {p.name for p in folder.iterdir()} == {
        "forward.onnx", "backward.onnx", "weights.safetensors", "style_space.safetensors",
        "manifest.json",
    }  # fmt: skip
    parameters = sum(value.size for value in stored.values())
    assert (folder / "weights.safetensors").stat().st_size < 4 * parameters + 4096


def test_graphs_pass_onnx_checks(pack):
    for name in ("forward", "backward"):
        onnx.checker.check_model(pack.encoder.path / f"{name}.onnx", full_check=True)


# ------------------------------------------------------------------------- torchvision's layout


@pytest.mark.parametrize(
    ("spec", "positions"), [(VGG16, VGG16_POSITIONS), (VGG19, VGG19_POSITIONS)]
)
def test_torchvision_names(spec, positions):
    convs = [layer.conv for layer in spec.layers()]
    assert len(convs) == len(positions)
    assert torchvision_names(spec) == {
        f"features.{position}.{part}": f"{conv}.{part}"
        for position, conv in zip(positions, convs, strict=True)
        for part in ("weight", "bias")
    }


def test_architectures_are_those_of_the_paper():
    """Simonyan and Zisserman 2014, table 1, columns D and E."""
    assert VGG16.blocks == ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    assert VGG19.blocks == ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)
    assert [y.tap for y in VGG19.layers()][-1] == "relu5_4"


def test_vgg19_from_torchvision_layout(vgg19_pack, seed):
    """The unfolded (x − mean)/std network in float64 gives the same taps and gradient."""
    image = waves(seed, 1, 3, 32, 48)
    features = vgg19_pack.network.features(image)
    found = session(vgg19_pack.encoder.path, "forward").run(list(features), {"image": image})
    for tap, value in zip(features, found, strict=True):
        assert_close(value, features[tap], 1e-5)
    rng = np.random.default_rng(seed)
    gradients = {tap: rng.standard_normal(f.shape, np.float32) for tap, f in features.items()}
    d_image = run_backward(session(vgg19_pack.encoder.path, "backward"), features, gradients)
    assert_close(d_image, vgg19_pack.network.vjp(image, gradients), 1e-5)


# --------------------------------------------------------------- std folding and half precision


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Build packs of a two-block network with std."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)

    def make(weights: dict, *, pooling: str = "average", half: bool = False) -> Path:
        checkpoint = tmp_path / "tiny.safetensors"
        save_file(weights, checkpoint)
        pack = tmp_path / f"pack-{pooling}-{half}"
        pack.mkdir()
        build_pack(
            pack,
            checkpoint,
            name="tiny",
            architecture="tiny",
            pooling=pooling,
            half=half,
            source="random",
            licence="none",
        )
        return pack

    return make


@pytest.mark.parametrize(("pooling", "half"), [("average", True), ("max", False)])
def test_std_is_folded_into_the_first_convolution(tiny, seed, pooling, half):
    weights = he_weights(TINY_WIDTHS, seed)
    folder = tiny(weights, pooling=pooling, half=half)
    stored = load_file(folder / "weights.safetensors")
    folded = weights["conv1_1.weight"] / np.array(IMAGENET_STD, np.float32).reshape(1, 3, 1, 1)
    if half:
        assert stored["conv1_1.weight"].dtype == np.float16
        assert stored["conv1_1.bias"].dtype == np.float32
        # Folded before it is rounded: one rounding, not two.
        assert np.array_equal(stored["conv1_1.weight"], folded.astype(np.float16))
        assert stored["conv2_1.weight"].dtype == np.float16
    else:
        assert_close(stored["conv1_1.weight"], folded, 1e-7)
    # The pack computes what its stored weights say, ...
    image = waves(seed, 2, 3, 12, 20)
    features = Network(stored, pooling).features(image)
    found = session(folder, "forward").run(list(features), {"image": image})
    for tap, value in zip(features, found, strict=True):
        assert_close(value, features[tap], 1e-6)
    # ... and that is the network with (x − mean)/std in front.
    unfolded = Network(weights, pooling, std=IMAGENET_STD).features(image)
    for tap, value in zip(features, found, strict=True):
        assert_close(value, unfolded[tap], 3e-3 if half else 1e-6)


def test_shipped_pack_is_stored_in_half_precision(shipped):
    stored = load_file(shipped.encoder.path / "weights.safetensors")
    for name, value in stored.items():
        assert value.dtype == (np.float16 if name.endswith(".weight") else np.float32), name
    image = waves(3, 1, 3, 32, 48)
    features = shipped.network.features(image)
    found = session(shipped.encoder.path, "forward").run(list(features), {"image": image})
    for tap, value in zip(features, found, strict=True):
        assert_close(value, features[tap], 1e-5)


# ----------------------------------------------------------------------------------- refusals


def test_a_wrong_graph_is_not_packed(tiny, monkeypatch, seed):
    pool = torch.ops.aten.avg_pool2d_backward.default
    monkeypatch.setitem(
        backward.DECOMPOSITIONS, pool, lambda grad, *_: backward.upsample(grad) * 0.26
    )
    with pytest.raises(EncoderError, match=r"differ from autograd by \d"):
        tiny(he_weights(TINY_WIDTHS, seed))


@given(seed=st.integers(0, 2**20), levels=st.integers(1, 5))
def test_cells_that_tie_for_the_maximum_share_its_gradient(seed, levels):
    """With so few values there are ties of two, three and four cells."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, (2, 3, 4, 6)).astype(np.float32)
    grad = rng.standard_normal((2, 3, 2, 3)).astype(np.float32)
    maximum = torch.ops.aten.max_pool2d_with_indices_backward.default
    found = backward.DECOMPOSITIONS[maximum](torch.from_numpy(grad), torch.from_numpy(x))
    windows = x.reshape(2, 3, 2, 2, 3, 2)
    largest = windows == windows.max((3, 5), keepdims=True)
    shares = largest / largest.sum((3, 5), keepdims=True)
    assert_close(found.numpy(), (shares * grad[:, :, :, None, :, None]).reshape(x.shape), 1e-6)


def checkpoint_text(path: Path) -> None:
    path.write_text("not weights\n" * 10)


def checkpoint_empty(path: Path) -> None:
    path.write_bytes(b"")


def checkpoint_list(path: Path) -> None:
    torch.save([torch.ones(3)], path)


def checkpoint_nested(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"features.0.weight": torch.ones(3)}}, path)


def checkpoint_truncated(path: Path) -> None:
    torch.save({"features.0.weight": torch.ones(300)}, path)
    path.write_bytes(path.read_bytes()[:600])


def checkpoint_code(path: Path) -> None:
    """Pickled code, which must be refused and must not run."""
    torch.save({"features.0.weight": Bomb(str(path.with_name("ran")))}, path)


class Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "write",
    [
        None,
        checkpoint_text,
        checkpoint_empty,
        checkpoint_list,
        checkpoint_nested,
        checkpoint_truncated,
        checkpoint_code,
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, suffix, write):
    path = tmp_path / f"weights{suffix}"
    if write:
        write(path)
    refused(tmp_path, path, str(path))
    assert not (tmp_path / "ran").exists()


def refused(tmp_path: Path, checkpoint: Path, *parts: str) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    with pytest.raises(EncoderError) as caught:
        build_pack(
            pack, checkpoint, name="x", architecture="vgg19-lite", source="random", licence="none"
        )
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert list(pack.iterdir()) == []


@pytest.fixture
def lite_weights(average_pack) -> dict[str, np.ndarray]:
    return load_file(average_pack.checkpoint)


def test_missing_entry_is_named(tmp_path, lite_weights):
    del lite_weights["conv3_2.bias"]
    save_file(lite_weights, tmp_path / "w.safetensors")
    refused(tmp_path, tmp_path / "w.safetensors", "conv3_2.bias")


def test_wrong_shape_is_named(tmp_path, lite_weights):
    lite_weights["conv2_1.weight"] = lite_weights["conv2_1.weight"][:, :8].copy()
    save_file(lite_weights, tmp_path / "w.safetensors")
    refused(tmp_path, tmp_path / "w.safetensors", "conv2_1.weight", "(32, 8, 3, 3)")


def test_another_architecture_is_refused(tmp_path, vgg19_pack):
    refused(tmp_path, vgg19_pack.checkpoint, "not this architecture")


def test_non_finite_weights_are_refused(tmp_path, lite_weights):
    lite_weights["conv2_1.weight"][0, 0, 0, 0] = np.nan
    save_file(lite_weights, tmp_path / "w.safetensors")
    pack = tmp_path / "pack"
    pack.mkdir()
    with pytest.raises(EncoderError):
        build_pack(
            pack,
            tmp_path / "w.safetensors",
            name="x",
            architecture="vgg19-lite",
            source="random",
            licence="none",
        )


def test_layouts_give_the_same_weights(vgg19_pack):
    """Every convolution of the pack is the entry of the checkpoint at its position."""
    stored = load_file(vgg19_pack.encoder.path / "weights.safetensors")
    state = torch.load(vgg19_pack.checkpoint, weights_only=True)
    convs = [layer.conv for layer in VGG19.layers()]
    for position, conv in zip(VGG19_POSITIONS, convs, strict=True):
        expected = state[f"features.{position}.weight"].numpy()
        if conv == "conv1_1":
            expected = expected / np.array(IMAGENET_STD, np.float32).reshape(1, 3, 1, 1)
        assert relative_error(stored[f"{conv}.weight"], expected) < 1e-7
        assert np.array_equal(stored[f"{conv}.bias"], state[f"features.{position}.bias"].numpy())
    assert set(stored) == {f"{c}.{p}" for c in convs for p in ("weight", "bias")} | {"mean"}
