"""Encoder packs: find, verify, list, download and install them.

Packs ship in ``nst_fast/data``, or lie in the cache, or in any folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nst_fast.config import DEFAULT_ENCODER
from nst_fast.encoders import cache
from nst_fast.encoders.cache import CACHE_VARIABLE, cache_dir
from nst_fast.encoders.checkpoints import CHECKPOINTS, Checkpoint, download_checkpoint
from nst_fast.encoders.manifest import NAME_RULE, Decoder, Encoder, Pooling, Tap, is_name, read_pack
from nst_fast.encoders.writing import write_decoders, write_manifest, write_style_space
from nst_fast.errors import EncoderError

__all__ = [
    "CACHE_VARIABLE",
    "CHECKPOINTS",
    "Checkpoint",
    "Decoder",
    "Encoder",
    "Entry",
    "Pooling",
    "State",
    "Tap",
    "cache_dir",
    "catalogue",
    "download_checkpoint",
    "install_pack",
    "load",
    "verify",
    "write_decoders",
    "write_manifest",
    "write_style_space",
]

State = Literal["shipped", "cached", "available", "damaged"]


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue; the description of a damaged pack is what is wrong with it."""

    name: str
    state: State
    path: Path | None
    description: str
    licence: str


def load(name_or_path: str | os.PathLike[str]) -> Encoder:
    """Find a pack and verify every file of it.

    Args:
        name_or_path: the name of a shipped or cached encoder, or the folder of a pack. A plain
            name is never taken for a folder: write ``./name``, or pass a ``Path``.

    Raises:
        EncoderError: the encoder is unknown, not here, or damaged; the message names the pack,
            the file and the remedy.
    """
    return _open(name_or_path)[0]


def verify(name_or_path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Verify a pack as ``load`` does and return its files with their SHA-256 in hex."""
    return _open(name_or_path)[1]


def catalogue() -> list[Entry]:
    """Every encoder known by name: shipped ones, those that can be had, others in the cache.

    All packs at hand are verified, which reads them in full.
    """
    names = [DEFAULT_ENCODER, *_subfolders(_shipped()), *CHECKPOINTS, *_subfolders(_packs())]
    return [_entry(name) for name in dict.fromkeys(names)]


def _shipped() -> Path:
    # Not importlib.resources: in an editable install it spans two folders and gives no path, and
    # the runtime reads a graph's weights by path.
    return Path(__file__).parent.parent / "data"


def _packs() -> Path:
    return cache_dir() / "encoders"


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and is_name(p.name))
    except OSError:  # not there, or not ours to read
        return []


def _entry(name: str) -> Entry:
    folder, state, _ = _place(name)
    checkpoint = CHECKPOINTS.get(name)
    if checkpoint and not os.path.isdir(folder):
        return Entry(name, "available", None, checkpoint.description, checkpoint.licence)
    try:
        encoder = load(name)
    except EncoderError as error:
        licence = checkpoint.licence if checkpoint else "unknown"
        return Entry(name, "damaged", folder, str(error), licence)
    return Entry(name, state, folder, encoder.source, encoder.licence)


def _place(name: str) -> tuple[Path, State, str]:
    """Where a pack of this name lies or would lie, and how to get it anew."""
    shipped = _shipped() / name
    if name == DEFAULT_ENCODER or os.path.isdir(shipped):
        return shipped, "shipped", "reinstall nst-fast"
    again = f"run: nst-fast models get {name}" if name in CHECKPOINTS else "build it again"
    return _packs() / name, "cached", again


def _open(name_or_path: str | os.PathLike[str]) -> tuple[Encoder, Mapping[str, str]]:
    if isinstance(name_or_path, str) and is_name(name_or_path):
        return _open_named(name_or_path)
    folder = Path(name_or_path).absolute()
    if not os.fspath(name_or_path) or not os.path.isdir(folder):
        raise EncoderError(
            f"no encoder pack at {str(name_or_path)!r}: give the folder of a pack,"
            f" or a name of {_known()}"
        )
    return read_pack(folder, "build the pack again")


def _open_named(name: str) -> tuple[Encoder, Mapping[str, str]]:
    folder, state, again = _place(name)
    if os.path.isdir(folder):
        return read_pack(folder, again, name)
    if state == "shipped":
        raise EncoderError(f"encoder {name} is missing from this installation: {again}")
    if name in CHECKPOINTS:
        raise EncoderError(f"encoder {name} is not on this machine; {again}")
    raise EncoderError(
        f"unknown encoder {name!r}: known are {_known()}; for those not here run: nst-fast models"
        f" get NAME; for a folder write .{os.sep}{name}"
    )


def _known() -> str:
    names = {DEFAULT_ENCODER, *_subfolders(_shipped()), *CHECKPOINTS, *_subfolders(_packs())}
    return ", ".join(sorted(names))


def install_pack(build: Callable[[Path], object], name: str) -> Path:
    """Put a pack into the cache: built aside, verified, then renamed into place.

    Args:
        build: fills the empty folder that it is given, ``write_manifest`` last.
        name: of the encoder; a cached pack of this name is replaced.

    Returns:
        The folder of the pack.

    Raises:
        EncoderError: the name cannot be used, the pack fails verification, or the cache cannot
            be written. After any error the cache holds what it held before.
    """
    if not is_name(name):
        raise EncoderError(f"the name of an encoder must be {NAME_RULE}, not {name!r}")
    target, state, _ = _place(name)
    if state == "shipped":
        raise EncoderError(f"encoder {name} ships with nst-fast: choose another name")
    fresh = target.with_name(f".{name}.new")
    with cache.writing(target.parent, name):  # encoders.writing is a module
        shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
        fresh.mkdir()
        try:
            build(fresh)
            read_pack(fresh, "nothing was installed", name)
            _replace_folder(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


def _replace_folder(fresh: Path, target: Path) -> None:
    """Rename ``fresh`` to ``target``; the old one comes back if that fails."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
