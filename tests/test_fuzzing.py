"""What fuzzing found, and a little of it in every run of the tests."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nst_fast.batch import manifest
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import BatchError, SettingsError

TOOL = Path(__file__).parent.parent / "tools" / "fuzz_targets.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_targets", TOOL)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("target", "count"), [("settings", 300), ("manifest", 200), ("pack", 20)])
def test_what_is_fed_is_taken_or_refused_in_one_line(tool, seed, target, count):
    for number in range(count):
        tool.TARGETS[target](random.Random(f"{seed}/{number}"))


def refusal(kind: type, **settings) -> str:
    with pytest.raises(SettingsError) as caught:
        kind(**settings)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    return message


@pytest.mark.parametrize("value", [None, 3, 0.5, [], {}, b"x", object])
def test_an_encoder_or_loss_that_is_no_name_is_refused(value):
    assert refusal(EngineOptions, encoder=value).startswith("encoder must be a name or a folder")
    assert refusal(StyleSettings, style_loss=value).startswith("style_loss must be a name")


class Silent:
    """An object whose own code fails."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "value",
    ["x" * 5000, np.zeros((9, 9)), 10**5000, Silent(), "a\nb"],
    ids=["long", "array", "digits", "silent", "lines"],
)
@pytest.mark.parametrize("name", ["size", "style_weight", "style_layers", "optimizer"])
def test_a_value_of_any_length_is_refused_in_one_line(name, value):
    refusal(StyleSettings, **{name: value})


def test_cells_that_nest_too_deeply_are_text(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(f"content,size\na.png,{'[' * 100_000}\n")
    (entry,) = manifest.read(str(path))
    refusal(StyleSettings, **entry.settings)


def test_an_unknown_column_of_any_length_is_told_in_one_line(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(f"content,{'x' * 5000}\na.png,1\n")
    with pytest.raises(BatchError, match="there is no column 'xxx") as caught:
        list(manifest.read(str(path)))
    assert len(str(caught.value)) < 500


def test_a_parquet_text_that_is_no_utf8_is_told_in_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "m.parquet"
    parquet.write_table(pyarrow.table({"content": ["abcdefgh.png"]}), path, compression="none")
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abc\xff\xfefgh"[:8]))
    with pytest.raises(BatchError, match="is no Parquet file") as caught:
        list(manifest.read(str(path)))
    assert len(str(caught.value).splitlines()) == 1
