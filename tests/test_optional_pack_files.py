"""Style maps and decoders of a pack: read, written, and refused where they do not fit."""

import json
import tempfile
from pathlib import Path

import numpy as np
import packs
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from packs import TAPS, error_of, fill, quick
from safetensors.numpy import save

from nst_fast import encoders
from nst_fast.config import DEFAULT_ENCODER, StyleSettings
from nst_fast.encoders import Tap
from nst_fast.encoders.manifest import DECODERS, STYLE_SPACE
from nst_fast.errors import EncoderError

cache = packs.cache
pack = packs.pack


# Style maps


def random_maps(seed: int = 0) -> dict[str, np.ndarray]:
    """For two of the three taps; of values that float16 holds."""
    rng = np.random.default_rng(seed)
    shapes = {"relu2_2": (40, 33), "relu1_1": (1, 17)}
    return {tap: rng.normal(size=shape).astype(np.float16) for tap, shape in shapes.items()}


def fill_with_maps(folder: Path, name: str = "tiny") -> encoders.Encoder:
    fill(folder, name)
    return encoders.write_style_space(folder, random_maps())


def map_error_of(encoder: encoders.Encoder) -> str:
    """The error is that of every tap, whichever has the fault."""
    messages = set()
    for tap in encoder.taps:
        with pytest.raises(EncoderError) as caught:
            encoder.style_map(tap)
        messages.add(str(caught.value))
    (message,) = messages
    assert message.isprintable(), "a message is one line"
    assert message.startswith(f"encoder pack {encoder.path}: {STYLE_SPACE} cannot be used")
    assert message.endswith("; build the pack again")
    return message


def test_without_style_maps_styles_are_compared_at_the_taps(pack: Path) -> None:
    encoder = encoders.load(pack)
    assert not encoder.has_style_space
    for tap, shape in TAPS.items():
        found = encoder.style_map(tap)
        assert found.dtype == np.float64
        assert (found == np.hstack([np.eye(shape.channels), np.zeros((shape.channels, 1))])).all()


def test_style_maps_are_read_as_they_were_written(pack: Path) -> None:
    before = encoders.load(pack)
    written = fill_with_maps(pack)
    encoder = encoders.load(pack)
    assert encoder == written
    assert encoder.has_style_space
    assert encoder.digest != before.digest
    assert STYLE_SPACE in encoders.verify(pack)
    for tap, expected in random_maps().items():
        found = encoder.style_map(tap)
        assert found.dtype == np.float64
        assert (found == expected).all()
    assert (encoder.style_map("relu2_1") == np.eye(32, 33)).all()
    (pack / STYLE_SPACE).unlink()
    assert (encoder.style_map("relu1_1") == random_maps()["relu1_1"]).all(), "read once"
    with pytest.raises(KeyError):
        encoder.style_map("relu9_1")


def test_other_style_maps_replace_those_before(pack: Path) -> None:
    fill_with_maps(pack)
    manifest = json.loads((pack / "manifest.json").read_bytes())
    maps = {"relu2_1": np.full((3, 33), 1 / 3)}
    encoder = encoders.write_style_space(pack, maps)
    assert (encoder.style_map("relu2_1") == np.float16(1 / 3)).all()
    assert (encoder.style_map("relu1_1") == np.eye(16, 17)).all()
    after = json.loads((pack / "manifest.json").read_bytes())
    assert after["files"].pop(STYLE_SPACE) != manifest["files"].pop(STYLE_SPACE)
    assert after == manifest


def test_a_pack_keeps_its_style_maps_when_it_is_installed(cache: Path) -> None:
    encoders.install_pack(fill_with_maps, "tiny")
    assert encoders.load("tiny").style_map("relu2_2").shape == (40, 33)


@pytest.mark.parametrize("content", [None, b"", b"other"])
def test_missing_and_changed_style_maps_are_named(pack: Path, content: bytes | None) -> None:
    encoder = fill_with_maps(pack)
    (pack / STYLE_SPACE).unlink()
    if content is not None:
        (pack / STYLE_SPACE).write_bytes(content)
    assert STYLE_SPACE in error_of(pack)
    map_error_of(encoder)


@quick
@given(where=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_of_the_style_maps_is_noticed(where, change) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / STYLE_SPACE
        fill_with_maps(Path(folder))
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= change
        path.write_bytes(content)
        assert f"{STYLE_SPACE} is damaged" in error_of(Path(folder))


FAULTS = [
    ({"relu1_1": np.zeros((5, 16), np.float16)}, "must have shape (D, 17), not (5, 16)"),
    ({"relu1_1": np.zeros((0, 17), np.float16)}, "must have shape (D, 17), not (0, 17)"),
    ({"relu2_1": np.zeros(33, np.float16)}, "must have shape (D, 33), not (33,)"),
    ({"relu9_1": np.zeros((5, 17), np.float16)}, "there is no tap 'relu9_1'"),
    ({"relu1_1": np.full((5, 17), np.nan, np.float16)}, "must hold finite float16"),
    ({"relu1_1": np.full((5, 17), np.inf, np.float16)}, "must hold finite float16"),
    ({"relu1_1": np.zeros((5, 17), np.float32)}, "must hold finite float16"),
    ({"relu1_1": np.zeros((5, 17), np.int16)}, "must hold finite float16"),
]


@pytest.mark.parametrize(("maps", "words"), FAULTS)
def test_style_maps_that_do_not_fit_are_named(pack: Path, maps, words: str) -> None:
    (pack / STYLE_SPACE).write_bytes(save(random_maps() | maps))
    assert words in map_error_of(fill(pack))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_style_maps_of_a_type_that_numpy_lacks_are_refused(pack: Path, dtype) -> None:
    maps = {"relu1_1": torch.zeros(5, 17).to(dtype)}
    (pack / STYLE_SPACE).write_bytes(safetensors.torch.save(maps))
    map_error_of(fill(pack))


@quick
@given(data=st.binary(max_size=60))
def test_any_bytes_for_style_maps_give_an_encoder_error(data) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / STYLE_SPACE).write_bytes(data)
        map_error_of(fill(Path(folder)))


@pytest.mark.parametrize(
    ("maps", "words"),
    [*(fault for fault in FAULTS[:6]), ({"relu1_1": np.full((1, 17), 1e6)}, "finite float16")],
)
def test_style_maps_that_do_not_fit_are_not_written(pack: Path, maps, words: str) -> None:
    before = encoders.load(pack)
    with pytest.raises(EncoderError) as caught:
        encoders.write_style_space(pack, random_maps() | maps)
    assert words in str(caught.value)
    assert encoders.load(pack) == before
    assert not (pack / STYLE_SPACE).exists()


def test_the_default_encoder_compares_styles_in_the_channels_of_vgg19() -> None:
    encoder = encoders.load(DEFAULT_ENCODER)
    for tap, channels in zip(StyleSettings().style_layers, (64, 128, 256, 512, 512), strict=True):
        assert encoder.style_map(tap).shape == (channels, encoder.taps[tap].channels + 1)
    content = encoder.taps["relu4_2"].channels
    assert (encoder.style_map("relu4_2") == np.eye(content, content + 1)).all()


# Decoders


def random_decoders(seed: int = 1) -> dict[str, np.ndarray]:
    """For two of the three taps: relu2_2 to relu1_1 in two layers, and that to the picture."""
    rng = np.random.default_rng(seed)
    widths = {"relu2_2.0": (24, 32), "relu2_2.1": (16, 24), "relu1_1.0": (3, 16)}
    arrays = {}
    for name, (outputs, inputs) in widths.items():
        arrays[f"{name}.weight"] = rng.normal(size=(outputs, inputs, 3, 3)).astype(np.float16)
        arrays[f"{name}.bias"] = rng.normal(size=outputs).astype(np.float16)
    return arrays


def test_a_pack_without_decoders_has_none(pack: Path) -> None:
    encoder = encoders.load(pack)
    assert not encoder.has_decoders
    assert encoder.decoders == ()


def test_decoders_are_read_as_they_were_written(pack: Path) -> None:
    maps = fill_with_maps(pack)
    written = encoders.write_decoders(pack, random_decoders())
    encoder = encoders.load(pack)
    assert encoder == written
    assert encoder.has_decoders
    assert encoder.digest != maps.digest
    assert (encoder.style_map("relu1_1") == maps.style_map("relu1_1")).all()
    assert {DECODERS, STYLE_SPACE} < set(encoders.verify(pack))
    deep, shallow = encoder.decoders
    assert (deep.tap, deep.after) == ("relu2_2", "relu1_1")
    assert (shallow.tap, shallow.after) == ("relu1_1", None)
    for decoder, count in ((deep, 2), (shallow, 1)):
        assert len(decoder.layers) == count
        for index, layer in enumerate(decoder.layers):
            for part, found in zip(("weight", "bias"), layer, strict=True):
                assert found.dtype == np.float32
                assert (found == random_decoders()[f"{decoder.tap}.{index}.{part}"]).all()


HALF = np.float16
DECODER_FAULTS = [
    ({"relu2_2.1.weight": np.zeros((16, 23, 3, 3), HALF)}, "must be (…, 24, 3, 3)"),
    ({"relu2_2.1.weight": np.zeros((16, 24, 5, 5), HALF)}, "must be (…, 24, 3, 3)"),
    ({"relu2_2.1.weight": np.zeros((15, 24, 3, 3), HALF)}, "relu2_2.1.bias must have shape (15,)"),
    ({"relu1_1.0.bias": np.zeros((3, 1), HALF)}, "relu1_1.0.bias must have shape (3,)"),
    ({"relu1_1.0.bias": np.full(3, np.nan, HALF)}, "must hold finite float16"),
    ({"relu1_1.0.weight": np.zeros((3, 16, 3, 3), np.float32)}, "must hold finite float16"),
    ({"relu9_1.0.weight": np.zeros((3, 16, 3, 3), HALF)}, "nothing reads ['relu9_1.0.weight']"),
    ({"relu2_2.3.bias": np.zeros(3, HALF)}, "nothing reads ['relu2_2.3.bias']"),
    (
        {
            "relu1_1.0.weight": np.zeros((4, 16, 3, 3), HALF),
            "relu1_1.0.bias": np.zeros(4, HALF),
        },
        "the decoder of relu1_1 does not lead to the picture",
    ),
    (
        {
            "relu2_2.1.weight": np.zeros((15, 24, 3, 3), HALF),
            "relu2_2.1.bias": np.zeros(15, HALF),
        },
        "the decoder of relu2_2 does not lead to relu1_1",
    ),
]


@pytest.mark.parametrize(("arrays", "words"), DECODER_FAULTS)
def test_decoders_that_do_not_fit_are_named(pack: Path, arrays, words: str) -> None:
    (pack / DECODERS).write_bytes(save(random_decoders() | arrays))
    encoder = fill(pack)
    with pytest.raises(EncoderError) as caught:
        _ = encoder.decoders
    message = str(caught.value)
    assert message.startswith(f"encoder pack {pack}: {DECODERS} cannot be used")
    assert words in message
    assert message.endswith("; build the pack again")


def test_decoders_cannot_skip_a_size(pack: Path) -> None:
    taps = {"relu1_1": Tap(16, 1), "relu3_1": Tap(32, 4)}
    arrays = {k.replace("relu2_2", "relu3_1"): v for k, v in random_decoders().items()}
    (pack / DECODERS).write_bytes(save(arrays))
    encoder = fill(pack, taps=taps)
    with pytest.raises(EncoderError, match="the decoder of relu3_1 does not lead to relu1_1"):
        _ = encoder.decoders


def test_decoders_that_do_not_fit_are_not_written(pack: Path) -> None:
    before = encoders.load(pack)
    arrays = random_decoders()
    del arrays["relu1_1.0.bias"]
    with pytest.raises(EncoderError, match=f"cannot write {DECODERS} .* relu1_1.0.bias"):
        encoders.write_decoders(pack, arrays)
    with pytest.raises(EncoderError, match="nothing reads"):
        encoders.write_decoders(pack, {})
    assert encoders.load(pack) == before
    assert not (pack / DECODERS).exists()


def test_the_default_encoder_decodes_its_style_taps() -> None:
    decoders = encoders.load(DEFAULT_ENCODER).decoders
    assert [decoder.tap for decoder in decoders] == list(StyleSettings().style_layers)[::-1]
