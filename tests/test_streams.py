"""Surroundings that lack something: a home, a working folder, room in the output, an encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from PIL import Image
from rich.table import Table

from nst_fast import cli, encoders
from nst_fast.cli.console import lasting_streams, print_table
from nst_fast.errors import EncoderError

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
COMMANDS = ("stylize", "batch", "video", "bench", "models", "info")


def run(*words: object, **options) -> subprocess.CompletedProcess[str]:
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    options["env"] = os.environ | options.get("env", {})
    command = [sys.executable, "-m", "nst_fast", *map(str, words)]
    return subprocess.run(command, encoding="utf-8", check=False, **options)


@pytest.fixture
def pictures(tmp_path) -> Path:
    rng = np.random.default_rng(5)
    for name in ("photo.png", "paint.png"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def quick(folder: Path) -> tuple[object, ...]:
    """Words of a command that makes ``out.png``."""
    paths = folder / "photo.png", folder / "paint.png", "-o", folder / "out.png"
    return "stylize", *paths, "--size", 32, "--steps", 1, "--provider", "cpu"


# ------------------------------------------------------------------------------------- full, closed


@needs_full
@pytest.mark.parametrize(("words", "unbuffered"), [("--help", ""), ("info", "1")])
def test_a_full_output_is_one_line(words, unbuffered):
    with FULL.open("w") as full:
        found = run(words, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: the output cannot be written (")


@needs_full
@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("words", [("info",), ("models", "list"), ("--version",), ("--help",)])
def test_a_full_output_is_one_line_of_every_command(words, buffering, capfd, monkeypatch):
    """In this process: eight more of them would take long."""
    stream = io.TextIOWrapper(open(FULL, "wb", buffering=buffering), write_through=not buffering)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(words) == 1
    stream.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: the output cannot be written (")


@needs_full
def test_a_picture_is_saved_whatever_becomes_of_the_words(pictures):
    with FULL.open("w") as full:
        assert run(*quick(pictures), stderr=full).returncode == 0
        (pictures / "out.png").unlink()
        assert run(*quick(pictures), stdout=full, stderr=full).returncode == 1
    assert (pictures / "out.png").exists()


@needs_full
def test_errors_that_cannot_be_told_have_their_exit_code():
    with FULL.open("w") as full:
        assert run("nothing", stderr=full).returncode == 2
        assert run("models", "path", "nothing", stderr=full).returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0)])
def test_closed_streams_are_no_failure(closed, code):
    command = f"{sys.executable} -m nst_fast models path vgg19-lite {closed}"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (code, "")


def test_a_reader_that_leaves_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    found = run("info", stdout=write)
    os.close(write)
    assert (found.returncode, found.stderr) == (1, "")


# ---------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-16"])
@pytest.mark.parametrize("words", [*((name, "--help") for name in COMMANDS), ("info",)])
def test_every_encoding_of_the_output_will_do(words, encoding, capfd, monkeypatch):
    """In this process: fifteen of them would take long."""
    stream = io.TextIOWrapper(open(os.dup(1), "wb", buffering=0), encoding=encoding)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stream)
    code = cli.main(words)
    stream.close()
    assert code == 0
    assert capfd.readouterr().err == ""


def test_signs_that_an_encoding_lacks_are_spelled(tmp_path):
    stream = io.TextIOWrapper(io.BufferedWriter(io.FileIO(tmp_path / "out", "w")), "cp1252")
    before, sys.stdout = sys.stdout, stream
    try:
        with lasting_streams():
            print("≥ 3 × 4 … \udcff 日")
    finally:
        sys.stdout = before
    stream.close()
    assert (tmp_path / "out").read_text("cp1252") == ">= 3 × 4 … \\udcff \\u65e5\n"


def test_a_file_name_that_is_no_text_is_told(pictures):
    name = os.fsdecode(b"\xff.png")
    found = run(*quick(pictures)[:-8], pictures / name, "-o", pictures / "x.png")
    assert found.returncode != 0
    (line,) = found.stderr.splitlines()
    assert "\\udcff.png" in line


# ------------------------------------------------------------------------------------------ folders


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be removed there")
def test_a_working_folder_that_is_gone_is_one_line_or_no_trouble(pictures, monkeypatch, capsys):
    gone = pictures / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main([str(word) for word in quick(pictures)]) == 0
    for words in (("--version",), ("info",), ("models", "list"), ("models", "verify")):
        assert cli.main(words) == 0
    capsys.readouterr()
    for words in (
        ("stylize", "a.jpg", "b.jpg", "-o", "c.png"),
        ("batch", "a.jpg", "--style", "b.jpg", "-o", "c"),
        ("models", "path", "./pack"),
        ("bench", "--from", "x.json"),
    ):
        assert cli.main(words) != 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be removed there")
def test_a_batch_in_a_folder_that_is_gone_is_one_line(pictures, monkeypatch):
    """Paths are absolute, but its worker processes cannot start there."""
    gone = pictures / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    words = [pictures / "photo.png", "--style", pictures / "paint.png", "-o", pictures / "out"]
    words += ["--size", 32, "--steps", 1, "--workers", 1]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "nst_fast", "batch", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    told, error = done.stderr.splitlines()
    assert told == "pictures: 1 to make, 0 done before"
    assert error == "error: the working folder is gone; change to another and run again"
    assert done.returncode == 1
    assert not list((pictures / "out").glob("*.png"))


@pytest.mark.parametrize("answer", [RuntimeError("no home"), "~/.cache/nst-fast"])
def test_a_user_without_a_home_has_no_cache(monkeypatch, answer):
    def user_cache_dir(name: str) -> str:
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.delenv(encoders.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_dir", user_cache_dir)
    assert encoders.catalogue()[0].state == "shipped"
    with pytest.raises(EncoderError, match=r"cannot write mine .* set NST_FAST_CACHE"):
        encoders.install_pack(lambda folder: None, "mine")


# ------------------------------------------------------------------------------------------- tables


def table() -> Table:
    made = Table("task", "", "note")
    made.add_row("a long task in words", "1.5 ms", "x" * 150)
    made.add_row("b", "", "")
    return made


@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "30"}, {"FORCE_COLOR": "1"}])
def test_where_no_terminal_is_every_row_is_a_line(variables, monkeypatch, capsys):
    for name in ("COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    print_table(table())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + 2 + 1
    assert "a long task in words" in lines[3]
    assert "x" * 150 in lines[3]


def test_a_narrow_terminal_loses_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    print_table(table())
    found = capsys.readouterr().out
    assert found.count("x") == 150
    assert "…" not in found


def test_lists_in_a_pipe_are_whole():
    found = run("models", "list", env={"COLUMNS": "40"})
    entries = {entry.name: entry for entry in encoders.catalogue()}
    lines = found.stdout.splitlines()
    assert len(lines) == 1 + len(entries)
    for line in lines[1:]:
        entry = entries[line.split()[0]]
        assert entry.description in line
        assert entry.licence in line
