"""Settings in TOML files: what is written is read, what is wrong is named, what is typed wins."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

import commanding
import pytest
from commanding import QUICK, STYLIZE, assert_fails, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nst_fast import EngineOptions, OutputOptions, SettingsError, StyleSettings, settings_file
from nst_fast.cli.options import read_all
from nst_fast.config import Colour, Normalization, OptimizerName, StyleSpace

pictures = commanding.pictures
command = commanding.command

NUMBERS = st.floats(0.02, 1)
WEIGHTS = st.dictionaries(st.text(min_size=1, max_size=9), NUMBERS, max_size=3)
STYLES = st.builds(
    StyleSettings,
    size=st.none() | st.integers(16, 4096),
    steps=st.integers(1, 1_000_000),
    until=st.none() | NUMBERS,
    max_seconds=st.none() | st.floats(1e-3, 1e9),
    style_weight=st.floats(1e-9, 1e12),
    content_weight=st.floats(0, 1e12),
    style_layers=WEIGHTS.filter(bool),
    content_layers=WEIGHTS,
    style_loss=st.text(max_size=9),
    style_space=st.sampled_from(get_args(StyleSpace)),
    colour=st.sampled_from(get_args(Colour)),
    normalization=st.sampled_from(get_args(Normalization)),
    style_blend=st.lists(NUMBERS, max_size=3),
    init=st.text(min_size=1, max_size=9),
    optimizer=st.sampled_from(get_args(OptimizerName)),
    seed=st.integers(0, 2**32 - 1),
)
ENGINES = st.builds(
    EngineOptions, encoder=st.text(max_size=9), threads=st.none() | st.integers(1, 1024)
)
OUTPUTS = st.builds(
    OutputOptions,
    bits=st.sampled_from([8, 16]),
    profile=st.sampled_from(["srgb", "keep"]),
    quality=st.none() | st.integers(1, 100) | st.just("lossless"),
    metadata=st.booleans(),
    sidecar=st.booleans(),
)
FRESH = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FRESH
@given(STYLES, ENGINES, OUTPUTS)
def test_what_is_written_is_read(tmp_path, style, engine, output):
    path = tmp_path / "a.toml"
    settings_file.write(path, [style, engine, output])
    assert StyleSettings.from_toml(path) == style
    assert EngineOptions.from_toml(path) == engine
    assert OutputOptions.from_toml(str(path)) == output
    for each in (style, engine, output):
        each.to_toml(path)
        assert type(each).from_toml(path) == each


def test_a_file_is_what_a_reader_expects(tmp_path):
    path = tmp_path / "look.toml"
    StyleSettings(size=None, style_layers={"relu1_1": 2}).to_toml(path)
    found = tomllib.loads(path.read_text())
    assert set(found) == {item.name for item in fields(StyleSettings)}
    assert (found["size"], found["style_layers"]) == ("none", {"relu1_1": 2.0})


def test_what_is_not_named_is_at_its_default(tmp_path):
    path = tmp_path / "look.toml"
    path.write_text('steps = 7\n[engine]\nthreads = 2\n[output]\nquality = "lossless"\n')
    assert StyleSettings.from_toml(path) == StyleSettings(steps=7)
    assert EngineOptions.from_toml(path) == EngineOptions(threads=2)
    assert OutputOptions.from_toml(path) == OutputOptions(quality="lossless")
    path.write_text('preset = "fine"\nsteps = 7\n')
    assert StyleSettings.from_toml(path) == StyleSettings.preset("fine", steps=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"stepz = 3", "there is no setting 'stepz'; did you mean steps?"),
        (b"[engin]\nthreads = 1", "there is no setting 'engin'; see nst-fast stylize --help"),
        (b"[engine]\nsize = 64", "[engine] there is no setting 'size'"),
        (b"[engine]\nthreads = 0", "[engine] threads must be a whole number from 1"),
        (b"[output]\nbits = 12", "[output] bits must be 8 or 16, not 12"),
        (b"engine = 3", "[engine] must be a table"),
        (b"steps = 'many'", "steps must be a whole number from 1 to 1000000, not 'many'"),
        (b"steps = 'none'", "steps must be a whole number from 1 to 1000000, not 'none'"),
        (b"tv_weight = nan", "tv_weight must be a number"),
        (b"size = 1979-05-27", "size must be a whole number"),
        (b"style_layers = 3", "style_layers must map layers to weights"),
        (b"preset = 'best'", "preset must be one of draft, standard, fine, not 'best'"),
        (b"steps = ", "look.toml is no TOML ("),
        (b"steps = 3\nsteps = 4", "look.toml is no TOML ("),
        (b"\xff\xfe", "look.toml is no TOML ("),
        (b"a = " + b"[" * 10_000, "look.toml is no TOML ("),
    ],
)
def test_what_is_wrong_is_one_line_that_names_file_and_key(pictures, command, text, message):
    Path("look.toml").write_bytes(text)
    for words in (STYLIZE, ["batch", "photo.jpg", "--style", "paint.jpg", "-o", "made"]):
        assert_fails(command, [*words, "--settings", "look.toml"], 2, "settings look.toml")
        assert message in command(*words, "--settings", "look.toml")[2]


def test_files_that_cannot_be_used(pictures, command):
    assert_fails(command, [*STYLIZE, "--settings", "none.toml"], 2, "no such file")
    assert_fails(command, [*STYLIZE, "--settings", "."], 2, "cannot be read")
    for name, message in [
        ("photo.jpg", "settings photo.jpg must end in .toml"),
        ("none/a.toml", "there is no such folder"),
        ("made.toml", "is a folder"),
    ]:
        Path("made.toml").mkdir(exist_ok=True)
        assert_fails(command, [*STYLIZE, "--save-settings", name], 2, message)
        with pytest.raises(SettingsError, match=message):
            StyleSettings().to_toml(name)
    with pytest.raises(SettingsError, match="cannot be written"):
        StyleSettings(init="\udcff").to_toml("a.toml")
    assert not Path("a.toml").exists()


def test_settings_are_saved_and_used_again(pictures, command):
    typed = ["--tv-weight", "3", "--style-layers", "relu1_1", "--size", "none", "--steps", "2"]
    typed += ["--threads", "1", "--bits", "16", "--no-metadata"]
    words = ["stylize", "photo.jpg", "paint.jpg", "-o", "a.png", "--json"]
    first = json.loads(command(*words, *typed, "--save-settings", "look.toml")[1])
    again = ["stylize", "photo.jpg", "paint.jpg", "-o", "b.png", "--json"]
    second = json.loads(command(*again, "--settings", "look.toml")[1])
    assert first["settings"]["tv_weight"] == 3
    assert second["settings"] == first["settings"]
    assert second["environment"] == first["environment"]
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert Path("a.png").read_bytes()[24] == 16  # bits, in the header


def test_what_is_typed_wins_over_a_preset_and_that_over_the_file(tmp_path):
    path = tmp_path / "look.toml"
    path.write_text(
        'size = 32\nsteps = 3\nseed = 4\npreset = "fine"\n[engine]\nthreads = 2\nplan = "split"\n'
    )
    for typed, preset, expected in [
        ({}, "standard", {"size": 32, "steps": 3, "seed": 4, "scales": 3}),
        ({"steps": 2}, "standard", {"size": 32, "steps": 2, "seed": 4, "scales": 3}),
        ({}, "draft", {"size": 32, "steps": 36, "seed": 4, "scales": 3}),
        ({"steps": 2}, "draft", {"size": 32, "steps": 2, "seed": 4, "scales": 3}),
    ]:
        found = read_all({"threads": "1", **typed}, preset, path)
        assert found[:2] == (StyleSettings(**expected), EngineOptions(threads=1, plan="split"))
    assert read_all({}, "standard", path)[1] == EngineOptions(threads=2, plan="split")
    assert read_all({}, "standard", None) == (StyleSettings(), EngineOptions(), OutputOptions())


def test_a_batch_takes_a_file(pictures, command):
    Path("look.toml").write_text(
        f'size = {QUICK[1]}\nsteps = 2\n[engine]\nprovider = "cpu"\n[output]\nsidecar = true\n'
    )
    words = ["batch", "photo.jpg", "--style", "paint.jpg", "-o", "made", "--settings", "look.toml"]
    assert command(*words, "--workers", "1", "--threads", "1")[0] == 0
    sidecar = json.loads(Path("made/photo.png.json").read_text())
    assert sidecar["settings"]["size"] == int(QUICK[1])
    assert sidecar["engine"]["provider"] == "cpu"
    assert sidecar["output"] == asdict(OutputOptions(sidecar=True))
    assert set(snapshot(Path("made"))) >= {"photo.png", "photo.png.json", "journal.jsonl"}
