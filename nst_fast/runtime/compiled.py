"""OpenVINO's compiled models on disk: what one process has compiled, the next one loads.

Loading takes less than half of the time of compiling, which a picture pays for several graphs. A
file is whole or is not used: it starts with the hash of the rest, and its name stands for all that
the compiled model depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nst_fast.encoders import cache_dir
from nst_fast.files import write_atomically
from nst_fast.host import cpu_features, cpu_model
from nst_fast.library import versions
from nst_fast.runtime import openvino

LARGEST = 16 << 20  # bytes of a model: larger ones take longer to write than they save
ROOM = 256 << 20  # bytes of all files; those used last are kept
DIGEST = hashlib.sha256().digest_size


def compile_model(model: bytes, options: Mapping[str, str]) -> Any:
    """The compiled model of a serialised graph on the CPU, with OpenVINO's own options."""
    core = openvino.core()
    path = _path(model, options) if len(model) <= LARGEST else None
    if path is not None:
        payload = _read(path)
        if payload is not None:
            # A file of another build under the same versions is no reason to fail.
            with contextlib.suppress(Exception):
                return core.import_model(io.BytesIO(payload), "CPU", dict(options))
    compiled = core.compile_model(core.read_model(model), "CPU", dict(options))
    if path is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written is no failure
            _write(path, compiled.export_model().getvalue())
    return compiled


def _path(model: bytes, options: Mapping[str, str]) -> Path:
    facts = repr((sorted(options.items()), versions(), cpu_model(), sorted(cpu_features())))
    key = hashlib.sha256(facts.encode() + b"\0" + model).hexdigest()
    return cache_dir() / "compiled" / f"{key}.bin"


def _read(path: Path) -> bytes | None:
    """What :func:`_write` has written; None where it is not there, or damaged."""
    try:
        data = path.read_bytes()
        os.utime(path)  # the files used last are kept
    except OSError:
        return None
    digest, payload = data[:DIGEST], data[DIGEST:]
    return payload if hashlib.sha256(payload).digest() == digest else None


def _write(path: Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(payload).digest() + payload, durable=False)
    _make_room(path.parent)


def _make_room(folder: Path) -> None:
    """Remove the files used longest ago until the rest fits into ``ROOM``."""
    found = []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process has just removed it
            status = file.stat()
            found.append((status.st_mtime_ns, status.st_size, file))
    room = ROOM
    for _, size, file in sorted(found, reverse=True):
        room -= size
        if room < 0:
            file.unlink(missing_ok=True)
