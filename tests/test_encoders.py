"""Packs: the manifest's form, tampering, finding by name, and installing into the cache."""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from nst_fast import encoders
from nst_fast.config import DEFAULT_ENCODER, StyleSettings
from nst_fast.encoders import Tap
from nst_fast.encoders.manifest import DECODERS, STYLE_SPACE
from nst_fast.errors import EncoderError

FILES = ("forward.onnx", "backward.onnx", "weights.safetensors")
TAPS = {"relu1_1": Tap(16, 1), "relu2_1": Tap(32, 2), "relu2_2": Tap(32, 2)}


def fill(folder: Path, name: str = "tiny", seed: int = 0, **changes) -> encoders.Encoder:
    """Write a pack of random bytes."""
    rng = np.random.default_rng(seed)
    for file in FILES:
        (folder / file).write_bytes(rng.bytes(rng.integers(50, 200)))
    fields = {
        "name": name,
        "pooling": "average",
        "mean": (0.485, 0.456, 0.406),
        "taps": TAPS,
        "source": "random bytes",
        "licence": "none",
        "created_with": {"numpy": np.__version__},
    }
    return encoders.write_manifest(folder, **(fields | changes))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NST_FAST_CACHE", str(folder))
    return folder


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    fill(folder)
    return folder


def error_of(name_or_path: str | Path) -> str:
    with pytest.raises(EncoderError) as caught:
        encoders.load(name_or_path)
    message = str(caught.value)
    assert message.isprintable(), "a message is one line"
    return message


@contextlib.contextmanager
def temporary_pack(name: str = "tiny", **changes) -> Iterator[tuple[Path, encoders.Encoder]]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), fill(Path(folder), name, **changes)


# The manifest

quick = settings(max_examples=100, deadline=None)
names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=20)
lines = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
tap_lists = st.lists(
    st.tuples(names, st.integers(1, 4096), st.integers(1, 64)), min_size=1, unique_by=lambda t: t[0]
).map(lambda rows: sorted(rows, key=lambda row: row[2]))


@settings(quick, max_examples=50)
@given(
    name=names,
    pooling=st.sampled_from(["average", "max"]),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    taps=tap_lists,
    source=lines,
    licence=lines,
    created_with=st.dictionaries(lines, lines),
)
def test_a_written_pack_is_read_as_it_was_written(taps, created_with, **values) -> None:
    shapes = {tap: Tap(channels, stride) for tap, channels, stride in taps}
    with temporary_pack(**values, taps=shapes, created_with=created_with) as (folder, written):
        encoder = encoders.load(folder)
        manifest = (folder / "manifest.json").read_bytes()
        assert sorted(os.listdir(folder)) == sorted([*FILES, "manifest.json"])
    assert encoder == written
    assert {key: getattr(encoder, key) for key in values} == values
    assert list(encoder.taps.items()) == list(shapes.items())
    assert json.loads(manifest)["created_with"] == created_with
    assert encoder.digest == hashlib.sha256(manifest).hexdigest()
    assert encoder.forward_path == folder / "forward.onnx"
    assert encoder.backward_path == folder / "backward.onnx"


def load_or_error(folder: Path) -> encoders.Encoder | str:
    try:
        return encoders.load(folder)
    except EncoderError as error:
        return str(error)


@settings(quick, max_examples=300)
@given(file=st.sampled_from([*FILES, "manifest.json"]), data=st.data())
def test_any_changed_byte_is_noticed(file, data) -> None:
    """A change of the manifest that still is a manifest gives the pack another digest."""
    with temporary_pack() as (folder, before):
        content = bytearray((folder / file).read_bytes())
        where = data.draw(st.integers(0, len(content) - 1))
        content[where] ^= data.draw(st.integers(1, 255))
        (folder / file).write_bytes(content)
        after = load_or_error(folder)
    if isinstance(after, str):
        assert str(folder) in after
        assert file in after or file == "manifest.json"
    else:
        assert file == "manifest.json"
        assert after.digest != before.digest


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = ("format", "name", "pooling", "mean", "taps", "files", "source", "licence", "created_with")


@quick
@given(value=json_values)
def test_any_json_gives_an_encoder_error(value) -> None:
    with temporary_pack() as (folder, _):
        (folder / "manifest.json").write_text(json.dumps(value), "utf-8")
        assert "manifest.json" in error_of(folder)


@settings(quick, max_examples=200)
@given(key=st.sampled_from(KEYS), value=json_values)
def test_any_json_in_a_field_gives_an_encoder_or_an_encoder_error(key, value) -> None:
    with temporary_pack() as (folder, _):
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {key: value}), "utf-8")
        found = load_or_error(folder)
    if isinstance(found, str):
        assert found.isprintable()
        assert "manifest.json" in found
    else:  # the few fields that take free text, or versions
        assert key in ("format", "name", "source", "licence", "created_with", "mean")


@quick
@given(data=st.binary(max_size=40))
def test_any_bytes_give_an_encoder_error(data) -> None:
    with temporary_pack() as (folder, _):
        (folder / "manifest.json").write_bytes(data)
        assert "manifest.json" in error_of(folder)


@quick
@given(name=st.text())
def test_any_text_that_names_no_encoder_gives_an_encoder_error(name) -> None:
    with pytest.raises(EncoderError):
        encoders.load(f"no-such-{name}")
    with pytest.raises(EncoderError):
        encoders.load(f"/no/such/{name}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "upgrade nst-fast"),
        ({"format": True}, "format must be 1"),
        ({"format": 0}, "format must be 1"),
        ({"name": "../evil"}, "name must be"),
        ({"pooling": "median"}, "average or max, not 'median'"),
        ({"mean": [0.5, 0.5]}, "three numbers from 0 to 1"),
        ({"mean": [0.5, 0.5, float("nan")]}, "three numbers from 0 to 1"),
        ({"mean": [103.9, 116.8, 123.7]}, "three numbers from 0 to 1"),
        ({"taps": {}}, "one tap or more"),
        ({"taps": {"relu1_1": {"channels": 0, "stride": 1}}}, "channels of relu1_1"),
        ({"taps": {"relu1_1": {"channels": 64}}}, "stride of relu1_1"),
        (
            {"taps": {"a": {"channels": 1, "stride": 2}, "b": {"channels": 1, "stride": 1}}},
            "stride of b must be 2 or more",
        ),
        ({"source": "two\nlines"}, "source must be one line"),
        ({"licence": ""}, "licence must be one line"),
        ({"created_with": {"torch": 2}}, "created_with"),
    ],
)
def test_a_wrong_value_is_named(pack: Path, changes: dict[str, object], words: str) -> None:
    path = pack / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes), "utf-8")
    assert words in error_of(pack)


@pytest.mark.parametrize(
    "file",
    ["../forward.onnx", "a/b", "a\\b", "..", ".", "", "/etc/passwd", "C:x", "manifest.json", ".x"],
)
def test_a_file_outside_the_pack_is_refused(pack: Path, file: str) -> None:
    path = pack / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"][file] = "0" * 64
    path.write_text(json.dumps(manifest), "utf-8")
    assert "a file beside the manifest" in error_of(pack)


def test_deeply_nested_json_is_refused(pack: Path) -> None:
    (pack / "manifest.json").write_text("[" * 100_000, "utf-8")
    assert "manifest.json is not JSON" in error_of(pack)


def test_a_manifest_is_written_whole_or_not_at_all(pack: Path) -> None:
    before = (pack / "manifest.json").read_bytes()
    with pytest.raises(EncoderError, match="stride of late"):
        fill(pack, taps={"early": Tap(1, 4), "late": Tap(1, 2)})
    (pack / "forward.onnx").unlink()
    with pytest.raises(EncoderError, match=r"forward\.onnx"):
        encoders.write_manifest(
            pack,
            name="tiny",
            pooling="max",
            mean=(0, 0, 0),
            taps=TAPS,
            source="s",
            licence="l",
            created_with={},
        )
    assert (pack / "manifest.json").read_bytes() == before


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


# Finding packs


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(pack: Path, file: str) -> None:
    (pack / file).unlink()
    message = error_of(pack)
    assert str(pack) in message
    assert file in message


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [b"", b"other"])
def test_a_changed_file_is_named_with_both_hashes(pack: Path, file: str, content: bytes) -> None:
    expected = encoders.verify(pack)[file]
    (pack / file).write_bytes(content)
    message = error_of(pack)
    assert file in message
    assert expected[:8] in message
    assert hashlib.sha256(content).hexdigest()[:8] in message


def test_verify_gives_the_hashes(pack: Path) -> None:
    expected = {file: hashlib.sha256((pack / file).read_bytes()).hexdigest() for file in FILES}
    assert dict(encoders.verify(pack)) == expected


def test_an_unknown_encoder_lists_the_known_ones(cache: Path) -> None:
    encoders.install_pack(lambda folder: fill(folder, "mine"), "mine")
    message = error_of("vgg18")
    assert "mine, vgg16, vgg19, vgg19-lite" in message
    assert "nst-fast models get NAME" in message


def test_an_encoder_that_is_not_here_says_how_to_get_it() -> None:
    assert "run: nst-fast models get vgg19" in error_of("vgg19")


@pytest.mark.parametrize("path", ["", "/no/such/folder", "./vgg19", Path("vgg19")])
def test_a_path_without_a_pack_is_named(path: str | Path) -> None:
    assert repr(str(path)) in error_of(path) or str(path) in error_of(path)


def test_a_plain_name_is_never_a_folder(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pack.parent)
    assert "unknown encoder 'pack'" in error_of("pack")
    for path in (os.path.join(".", "pack"), Path("pack"), str(pack)):
        encoder = encoders.load(path)
        assert encoder.path == pack
        assert encoder.path.is_absolute()


def test_the_cache_is_the_users_unless_overridden(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoders.cache_dir() == cache
    monkeypatch.delenv("NST_FAST_CACHE")
    assert "nst-fast" in encoders.cache_dir().parts
    assert encoders.cache_dir() != cache


def test_a_shipped_pack_comes_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_shipped", lambda: tmp_path / "data")
    assert "missing from this installation: reinstall nst-fast" in error_of("vgg19-lite")
    for parent, seed in ((tmp_path / "data", 1), (cache / "encoders", 2)):
        folder = parent / "vgg19-lite"
        folder.mkdir(parents=True)
        fill(folder, "vgg19-lite", seed)
    assert encoders.load("vgg19-lite").path == tmp_path / "data" / "vgg19-lite"
    with pytest.raises(EncoderError, match="ships with nst-fast"):
        encoders.install_pack(fill, "vgg19-lite")
    (tmp_path / "data" / "vgg19-lite" / "forward.onnx").write_bytes(b"")
    assert "reinstall nst-fast" in error_of("vgg19-lite")


def test_the_default_encoder_ships_and_is_sound() -> None:
    encoder = encoders.load(DEFAULT_ENCODER)
    assert encoder.name == DEFAULT_ENCODER


def test_the_catalogue_gives_each_state(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_shipped", lambda: tmp_path / "data")
    lite = tmp_path / "data" / "vgg19-lite"
    lite.mkdir(parents=True)
    fill(lite, "vgg19-lite")
    for name in ("mine", "vgg16"):
        encoders.install_pack(lambda folder, name=name: fill(folder, name), name)
    (cache / "encoders" / "vgg16" / "backward.onnx").write_bytes(b"")
    entries = {entry.name: entry for entry in encoders.catalogue()}
    assert {name: entry.state for name, entry in entries.items()} == {
        "vgg19-lite": "shipped",
        "vgg19": "available",
        "vgg16": "damaged",
        "mine": "cached",
    }
    assert entries["vgg19-lite"].path == lite
    assert entries["vgg19"].path is None
    assert "backward.onnx" in entries["vgg16"].description
    assert "run: nst-fast models get vgg16" in entries["vgg16"].description
    assert entries["mine"].description == "random bytes"


# Installing packs


def visible(folder: Path) -> list[str]:
    """What a folder of the cache holds, without the empty lock files."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def test_an_installed_pack_replaces_the_one_before(cache: Path) -> None:
    digests = set()
    for seed in (1, 2):
        path = encoders.install_pack(lambda folder, seed=seed: fill(folder, seed=seed), "tiny")
        assert path == cache / "encoders" / "tiny"
        digests.add(encoders.load("tiny").digest)
        assert visible(path.parent) == ["tiny"]
    assert len(digests) == 2


def test_a_failed_build_leaves_the_cache_as_it_was(cache: Path) -> None:
    def fails(folder: Path) -> None:
        fill(folder, seed=2)
        raise KeyboardInterrupt

    def tampers(folder: Path) -> None:
        fill(folder, seed=3)
        (folder / "forward.onnx").write_bytes(b"")

    def misnames(folder: Path) -> None:
        fill(folder, "other")

    def fills_the_disk(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    builds = {fails: KeyboardInterrupt, tampers: EncoderError, misnames: EncoderError}
    builds |= {fills_the_disk: EncoderError, Path.exists: EncoderError}
    for installed in ([], ["tiny"]):
        for build, error in builds.items():
            with pytest.raises(error):
                encoders.install_pack(build, "tiny")
            assert visible(cache / "encoders") == installed
        digest = encoders.load(encoders.install_pack(fill, "tiny")).digest
    assert encoders.load("tiny").digest == digest


def test_a_failed_rename_brings_the_old_pack_back(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders.install_pack(fill, "tiny")
    before = encoders.load("tiny")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == ".tiny.new":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EncoderError, match="cannot write tiny"):
        encoders.install_pack(lambda folder: fill(folder, seed=1), "tiny")
    assert encoders.load("tiny") == before
    assert visible(cache / "encoders") == ["tiny"]


def test_what_a_killed_build_left_is_swept(cache: Path) -> None:
    stale = cache / "encoders" / ".tiny.new"
    stale.mkdir(parents=True)
    (stale / "weights.safetensors").write_bytes(b"half")
    encoders.install_pack(fill, "tiny")
    assert visible(cache / "encoders") == ["tiny"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(EncoderError, match="name of an encoder"):
        encoders.install_pack(fill, name)


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file, not a folder")
    with pytest.raises(EncoderError, match="NST_FAST_CACHE"):
        encoders.install_pack(fill, "tiny")


def _install_in_another_process(pipe) -> None:
    try:
        encoders.install_pack(fill, "tiny")
    except EncoderError as error:
        pipe.send(str(error))


def test_a_second_process_is_told_of_the_first(cache: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def build(folder: Path) -> None:
        other = multiprocessing.get_context("spawn").Process(
            target=_install_in_another_process, args=(sender,)
        )
        other.start()
        other.join()
        fill(folder)

    encoders.install_pack(build, "tiny")
    assert receiver.poll()
    assert "another process is writing" in receiver.recv()
    assert encoders.load("tiny").name == "tiny"


def test_a_pack_may_be_moved(pack: Path, tmp_path: Path) -> None:
    digest = encoders.load(pack).digest
    shutil.move(pack, tmp_path / "moved")
    assert encoders.load(tmp_path / "moved").digest == digest


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
