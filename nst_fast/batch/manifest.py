"""Manifests: tables of pictures as CSV, JSON lines or Parquet.

Columns are ``content``, ``style`` (several: a list, or separated by ``|``), ``output``, and any
setting of StyleSettings. All but ``content`` may be left out or empty. Relative paths, that of
``init`` too, start at the manifest's folder, outputs at the batch's.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from nst_fast.batch import storage
from nst_fast.batch.jobs import setting_names
from nst_fast.config import InitName, shown
from nst_fast.errors import BatchError, NstError

SEPARATOR = "|"


@dataclass(frozen=True)
class Entry:
    """One picture that was found or listed.

    Attributes:
        content: path or URL.
        folder: its folder within the input, for names.
        styles: paths or URLs; empty: those of the batch.
        output: path or URL; empty: by the naming template.
        settings: that differ from the batch's.
        origin: where it is listed, for messages.
    """

    content: str
    folder: str = ""
    styles: tuple[str, ...] = ()
    output: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""


def read(url: str) -> Iterator[Entry]:
    """The entries of a manifest, in its order.

    Raises:
        BatchError: it cannot be read, or a row has no content or a column without meaning; the
            message names file and row.
    """
    readers = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
    reader = next((r for ending, r in readers.items() if url.lower().endswith(ending)), None)
    if reader is None:
        raise BatchError(f"manifest {url} must end in one of {', '.join(readers)}")
    try:
        data = storage.read(url)
    except NstError as error:
        raise BatchError(f"manifest {error}") from None
    folder = storage.parent(url)
    for number, row in enumerate(reader(data, url), start=1):
        yield _entry(row, folder, f"manifest {url}, row {number}")


def _entry(row: Mapping[str, Any], folder: str, origin: str) -> Entry:
    given = {name: value for name, value in row.items() if value not in ("", None)}
    unknown = given.keys() - setting_names() - {"content", "style", "output"}
    if unknown:
        raise BatchError(
            f"{origin}: there is no column {shown(min(map(str, unknown)))}; see docs/batch.md"
        )
    content, output = given.pop("content", ""), given.pop("output", "")
    if not (content and isinstance(content, str) and isinstance(output, str)):
        raise BatchError(f"{origin}: content must be a path or URL, and output one or empty")
    init = given.get("init")
    if isinstance(init, str) and init not in get_args(InitName):
        given["init"] = storage.join(folder, init)
    styles = given.pop("style", ())
    styles = styles.split(SEPARATOR) if isinstance(styles, str) else styles
    if not isinstance(styles, list | tuple) or not all(s and isinstance(s, str) for s in styles):
        raise BatchError(f"{origin}: style must be paths or URLs, separated by {SEPARATOR}")
    return Entry(
        content=storage.join(folder, content),
        styles=tuple(storage.join(folder, style) for style in styles),
        output=output,
        settings={name: None if value == "none" else value for name, value in given.items()},
        origin=origin,
    )


def _csv(data: bytes, url: str) -> Iterator[Mapping[str, Any]]:
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        for row in rows:
            if None in row:
                raise BatchError(f"manifest {url}, line {rows.line_num}: more cells than columns")
            yield {
                k: v if k in ("content", "style", "output") else _cell(v) for k, v in row.items()
            }
    except (csv.Error, UnicodeDecodeError) as error:
        raise BatchError(f"manifest {url} is no CSV in UTF-8 ({error}); export it again") from None


def _cell(text: str | None) -> Any:
    """A setting in a cell: a number, a list or an object as in JSON, or else plain text."""
    if text is None or not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json_lines(data: bytes, url: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BatchError(f"manifest {url}, line {number} is no JSON ({error})") from None
        if not isinstance(row, dict):
            raise BatchError(f"manifest {url}, line {number} must be an object")
        yield row


def _parquet(data: bytes, url: str) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BatchError(
            f'manifest {url} needs pyarrow; run: pip install "nst-fast[parquet]"'
        ) from None
    try:
        table = parquet.ParquetFile(io.BytesIO(data))
        for batch in table.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # the last: text in no UTF-8
        reason = str(error).splitlines()[0]
        raise BatchError(f"manifest {url} is no Parquet file ({reason})") from None
