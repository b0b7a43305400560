"""The folder on disk where packs and checkpoints are kept, and how it is written.

One process at a time writes a pack or a checkpoint: it holds a lock file, which the system frees
even if the process dies, and a second process is told so at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from nst_fast.errors import EncoderError, one_line
from nst_fast.files import lock

CACHE_VARIABLE = "NST_FAST_CACHE"
NOWHERE = Path(os.devnull) / "nst-fast"


def cache_dir() -> Path:
    """The folder of packs and checkpoints: ``NST_FAST_CACHE``, or the user's cache folder.

    A user without a home has none: then it is one that can neither be read nor made, and whoever
    writes there is told of the variable.
    """
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override).absolute()
    try:
        found = Path(platformdirs.user_cache_dir("nst-fast"))
    except RuntimeError:
        found = NOWHERE
    return found if found.is_absolute() else NOWHERE


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Make ``folder`` and be its only writer of ``name``; file errors become EncoderError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / f".{name}.lock")
        try:
            yield
        finally:
            if held is not None:
                held.release()
    except BlockingIOError as error:
        raise EncoderError(
            f"another process is writing {folder / name}: run again when it has ended"
        ) from error
    except OSError as error:
        raise EncoderError(
            f"cannot write {name} to {folder} ({one_line(error)}): make room or set"
            f" {CACHE_VARIABLE} to another folder"
        ) from error
