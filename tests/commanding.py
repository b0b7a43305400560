"""The command in this process, pictures for it, and what its errors must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst_fast import cli

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch) -> Path:
    """A folder, made the current one, with a content and two style pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(3)
    for name, width, height in (("photo", 80, 56), ("paint", 64, 64), ("other", 50, 70)):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(f"{name}.jpg")
    return folder


@pytest.fixture
def command(capsys) -> Command:
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def assert_fails(command: Command, words: list[object], code: int, message: str) -> None:
    """One line on stderr, naming the trouble; the folder as it was."""
    before = snapshot(Path.cwd())
    found, out, err = command(*words)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert message in err
    assert found == code
    assert out == ""
    assert snapshot(Path.cwd()) == before


QUICK = ["--size", "48", "--steps", "3"]
STYLIZE = ["stylize", "photo.jpg", "paint.jpg", "-o", "out.png", *QUICK]
