"""The fuzz harness: a short run of each target, and that it finds what is wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from nst_fast.errors import ImageError

TOOL = Path(__file__).parents[1] / "tools" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = spec_from_file_location("fuzz", TOOL)
    module = module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz"]


def test_damaged_pictures_are_read_or_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, TOOL, "decode", "--inputs", "1500", "--into", tmp_path / "failed"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1500 inputs, seed 0: 0 failed" in done.stdout
    assert not (tmp_path / "failed").exists()


def test_inputs_depend_on_seed_and_number_alone(fuzz):
    seeds = [bytes(range(200)), b"another file" * 9]
    made = [fuzz.damaged(seeds, 1, number) for number in range(50)]
    assert made == [fuzz.damaged(seeds, 1, number) for number in range(50)]
    assert len(set(made)) > 40
    assert made != [fuzz.damaged(seeds, 2, number) for number in range(50)]


def refuse(_: bytes) -> None:
    raise ImageError("no picture; give one")


def refuse_without_remedy(_: bytes) -> None:
    raise ImageError("no picture")


def fail(_: bytes) -> None:
    raise KeyError("tag")


def hang(_: bytes) -> None:
    time.sleep(5)


@pytest.mark.parametrize(
    ("feed", "found"),
    [
        (refuse, None),
        (len, None),
        (refuse_without_remedy, "no line with a remedy: 'no picture'"),
        (fail, "KeyError: 'tag' (test_fuzz.py:"),
        (hang, "TimeoutError: more than 1 s"),
    ],
)
def test_only_refusals_pass(fuzz, monkeypatch, feed, found):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    said = fuzz.one(fuzz.Target(list, feed, ImageError), b"x")
    assert said is None if found is None else said.startswith(found)
