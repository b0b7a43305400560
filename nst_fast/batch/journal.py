"""The journal: what was made and how, one JSON line a picture, on the disk before it counts.

A killed run leaves whole lines and perhaps a part of the last one, which is dropped when the
journal is opened again: that picture is made once more, with the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from nst_fast.batch.storage import StorageFullError
from nst_fast.errors import BatchError, one_line
from nst_fast.files import FULL, lock, sync

Status = Literal["done", "failed"]
_TUPLES = ("styles", "size", "notes")


@dataclass(frozen=True)
class Row:
    """How one picture ended.

    Attributes:
        output: path or URL of the result.
        content: path or URL of what was repainted.
        styles: paths or URLs.
        status: "done", or "failed" after the last attempt.
        digest: of settings, encoder and styles; see ``jobs.Digests``.
        attempts: how often it was tried in this run.
        error: one line; empty where it is done.
        seconds: by part: "read", "prepare", "optimise", "finish", "write".
        sha256: of the bytes of "content" and "output".
        stamp: of the content, see ``storage.stamps``; "" where it has none.
        length: of the output in bytes.
        besides: bytes of what was written besides, by path or URL.
        size: width and height of the output in pixels.
        loss: at the end, in float32.
        notes: what could not be done as asked, see ``Result``.
        worker: which made it.
        finished: seconds since 1970.
    """

    output: str
    content: str
    styles: tuple[str, ...]
    status: Status
    digest: str = ""
    attempts: int = 1
    error: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    stamp: str = ""
    length: int = 0
    besides: Mapping[str, int] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    loss: float = 0.0
    notes: tuple[str, ...] = ()
    worker: str = ""
    finished: float = 0.0

    def to_json(self) -> str:
        """One line without its end; bytes of a name that are no text are escaped as JSON does."""
        line = json.dumps(asdict(self), ensure_ascii=False)
        return line.encode(errors="backslashreplace").decode()

    @classmethod
    def from_json(cls, line: str | bytes) -> Row:
        """Read what :meth:`to_json` wrote; fields that a later version added are left out.

        Raises:
            ValueError: the line is no row.
        """
        values: Any = json.loads(line)
        known = {item.name for item in fields(cls)}
        try:
            if values["status"] not in ("done", "failed") or not isinstance(values["output"], str):
                raise ValueError("no row of a journal")
            values = {name: value for name, value in values.items() if name in known}
            values |= {name: tuple(values[name]) for name in _TUPLES if name in values}
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no row of a journal: {error}") from None


def rows(path: Path) -> Iterator[Row]:
    """The rows of a journal in their order; a part of a line at the end is left out.

    Raises:
        BatchError: it cannot be read, or a line within is damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BatchError(
            f"{path} cannot be read ({one_line(error)}); make it readable, or move it away"
        ) from None
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield Row.from_json(line)
            except ValueError as error:
                raise BatchError(
                    f"{path}, line {number} is damaged ({error}); delete that line to have its "
                    "picture made again"
                ) from None


class Journal:
    """A journal opened to be appended to, by one run at a time where the file system has locks.

    Use it as a context manager.
    """

    def __init__(self, path: Path) -> None:
        """Open or create it, and drop a part of a line at its end.

        Raises:
            BatchError: another run has it open, or the folder cannot be written to.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not the journal itself: on Windows nobody else could read what is locked.
            self._lock = lock(path.with_name(f"{path.name}.lock"))
            self._file = path.open("a+b", buffering=0)
            self._drop_torn_line()
        except BlockingIOError:
            raise BatchError(
                f"{path} is in use by another run; wait for it, or give --journal another folder"
            ) from None
        except OSError as error:
            raise BatchError(
                f"{path} cannot be opened ({one_line(error)}); see --journal"
            ) from None

    def _drop_torn_line(self) -> None:
        size = end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            end = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if end < size:
            self._file.truncate(end)
            sync(self._file.fileno())

    def append(self, row: Row) -> None:
        """Add a row; it is on the disk when this returns.

        Raises:
            StorageFullError: no space is left; nothing was added.
        """
        start = self._file.seek(0, os.SEEK_END)
        line = memoryview(row.to_json().encode() + b"\n")
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
            sync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # a torn line is dropped by the next run
                self._file.truncate(start)
            if error.errno in FULL:
                raise StorageFullError(
                    f"{self.path}: no space left; free some and run the same command again"
                ) from None
            raise BatchError(
                f"{self.path} cannot be written ({one_line(error)}); see to its disk"
            ) from None

    def __enter__(self) -> Journal:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, and let other runs have it."""
        self._file.close()
        if self._lock is not None:
            self._lock.release()
