"""The journal: every row comes back, a torn end is dropped, damage is named."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nst_fast.batch.journal import Journal, Row, rows
from nst_fast.batch.storage import StorageFullError
from nst_fast.errors import BatchError

# Bytes of a name that are no UTF-8 are lone surrogates (PEP 383).
LETTER = st.characters(exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff")
TEXT = st.text(LETTER, max_size=20)
NUMBER = st.floats(0, 1e9)
ROWS = st.builds(
    Row,
    output=TEXT,
    content=TEXT,
    styles=st.tuples(TEXT, TEXT),
    status=st.sampled_from(["done", "failed"]),
    digest=TEXT,
    attempts=st.integers(1, 9),
    error=TEXT,
    seconds=st.dictionaries(TEXT, NUMBER, max_size=3),
    sha256=st.dictionaries(TEXT, TEXT, max_size=3),
    stamp=TEXT,
    length=st.integers(0, 2**40),
    size=st.tuples(st.integers(0, 9999), st.integers(0, 9999)),
    loss=NUMBER,
    worker=TEXT,
    finished=NUMBER,
)
SOME = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def row(output: str, **changes) -> Row:
    return Row(**({"output": output, "content": "c", "styles": ("s",), "status": "done"} | changes))


@given(ROWS)
def test_a_row_is_one_line_and_comes_back(value):
    line = value.to_json()
    assert "\n" not in line
    assert "\r" not in line
    assert Row.from_json(line) == value


def test_fields_of_a_later_version_are_left_out():
    values = json.loads(row("a").to_json()) | {"colour": "blue"}
    assert Row.from_json(json.dumps(values)) == row("a")


@given(
    st.recursive(st.none() | st.integers() | TEXT, lambda v: st.lists(v) | st.dictionaries(TEXT, v))
)
def test_any_other_json_is_no_row(value):
    with pytest.raises(ValueError, match="no row"):
        Row.from_json(json.dumps(value))


@SOME
@given(values=st.lists(ROWS, max_size=4), cut=st.integers(0, 10_000))
def test_a_cut_anywhere_loses_no_whole_row(values, cut, tmp_path):
    """Power loss at any byte: the rows whose line was whole are read, and one more can follow."""
    path = tmp_path / "cut.jsonl"
    path.write_text("".join(value.to_json() + "\n" for value in values), "utf-8", newline="\n")
    data = path.read_bytes()[: min(cut, path.stat().st_size)]
    path.write_bytes(data)
    whole = values[: data.count(b"\n")]
    assert list(rows(path)) == whole
    with Journal(path) as journal:
        journal.append(row("next"))
    assert list(rows(path)) == [*whole, row("next")]


def test_a_torn_line_longer_than_a_block_is_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(row("a").to_json().encode() + b"\n" + b"x" * 200_000)
    with Journal(path):
        assert list(rows(path)) == [row("a")]
        assert path.read_bytes() == row("a").to_json().encode() + b"\n"


def test_damage_within_is_named_with_its_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(row("a").to_json() + "\n{broken\n" + row("b").to_json() + "\n")
    with pytest.raises(BatchError, match=r"journal.jsonl, line 2 is damaged .*delete that line"):
        list(rows(path))


def test_only_one_run_has_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path), pytest.raises(BatchError, match="in use by another run"):
        Journal(path)
    with Journal(path):
        pass


def test_a_row_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced: list[int] = []
    path = tmp_path / "journal.jsonl"
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    with Journal(path) as journal:
        journal.append(row("a"))
        journal.append(row("b"))
    assert synced[-1] == path.stat().st_size
    assert len(synced) == 2


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(path) as journal:
        journal.append(row("a"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StorageFullError, match=r"journal.jsonl: no space left; free some"):
                journal.append(row("b"))
        journal.append(row("c"))
    assert list(rows(path)) == [row("a"), row("c")]


def test_a_folder_that_cannot_be_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BatchError, match=r"cannot be opened .*--journal"):
        Journal(tmp_path / "file" / "journal.jsonl")
