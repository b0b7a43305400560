"""The manifest of a pack: its form, and what is noticed and named when it is wrong."""

import contextlib
import hashlib
import json
import os
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

import packs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import FILES, TAPS, error_of, fill, quick

from nst_fast import encoders
from nst_fast.encoders import Tap
from nst_fast.errors import EncoderError

cache = packs.cache
pack = packs.pack


@contextlib.contextmanager
def temporary_pack(name: str = "tiny", **changes) -> Iterator[tuple[Path, encoders.Encoder]]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), fill(Path(folder), name, **changes)


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
