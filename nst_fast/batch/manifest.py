"""Manifests: tables of pictures as CSV, JSON lines or Parquet.

Columns are ``content``, ``style`` (several: a list, or separated by ``|``), ``output``, and any
setting of StyleSettings, OutputOptions or MakingOptions; ``preset`` and ``settings``, a TOML file,
give several at once. All but ``content`` may be left out or empty, in every way in which
spreadsheets and pandas write that; so may whole rows. Relative paths, those of ``init`` and of
masks too, start at the manifest's folder, those of what is written at the batch's.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, get_args, get_type_hints

from nst_fast.batch import storage
from nst_fast.batch.jobs import making_names, saving_names, setting_names
from nst_fast.batch_options import BatchOptions
from nst_fast.config import PRESETS, EngineOptions, InitName, PresetName, StyleSettings, shown
from nst_fast.errors import BatchError, NstError, SettingsError, one_line
from nst_fast.making_options import MakingOptions
from nst_fast.output_options import OutputOptions

SEPARATOR = "|"
PATHS = (
    *("content", "style", "output", "settings"),
    *("init", "style_mask", "style_regions", "content_mask"),
)
# What pandas, R, SQL and spreadsheets write where there is no value, in lower case.
VALUELESS = frozenset(
    {"", "nan", "-nan", "null", "#null!", "na", "#na", "n/a", "#n/a", "#n/a n/a", "<na>", "nat"}
    | {"nil", r"\n", "1.#qnan", "-1.#qnan", "1.#ind", "-1.#ind"}
)
NOTHING = VALUELESS | {"none"}  # Python's own, but where it is a value
TAKES_NONE = {
    name
    for kind in (StyleSettings, OutputOptions, MakingOptions)
    for name, hint in get_type_hints(kind).items()
    if type(None) in get_args(hint) and name not in PATHS
}
TRUTH = {"true": True, "false": False}  # as pandas and spreadsheets write them
# Options of how the batch is carried out, which its rows cannot have of their own.
OF_ALL = frozenset(item.name for kind in (EngineOptions, BatchOptions) for item in fields(kind))
# The numbers of rows, which pandas writes along unless told not to.
INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")


@dataclass(frozen=True)
class Entry:
    """One picture that was found or listed.

    Attributes:
        content: path or URL.
        folder: its folder within the input, for names.
        styles: paths or URLs; empty: those of the batch.
        output: path or URL; empty: by the naming template.
        settings: that differ from the batch's, and so for options of the output and its making.
        origin: where it is listed, for messages.
        top: the folder that ``folder`` starts in.
    """

    content: str
    folder: str = ""
    styles: tuple[str, ...] = ()
    output: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    top: str = ""


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
        given = _given(row)
        if given:
            yield _entry(given, folder, f"manifest {url}, row {number}")


def _given(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """What a row gives: its columns that have a value."""
    found = {name: _value(name, cell) for name, cell in row.items()}
    found = {k: v for k, v in found.items() if v is not None and v != []}
    numbered = [name for name in found if isinstance(name, str) and INDEX.fullmatch(name)]
    return {k: v for k, v in found.items() if k not in numbered}


def _value(name: Any, cell: Any) -> Any:
    """A cell as its column takes it: text is read as JSON but for paths; None where it is empty."""
    if isinstance(cell, list | tuple):
        return [v for v in (_value(name, each) for each in cell) if v is not None]
    if isinstance(cell, Mapping):  # a column of objects in Parquet has the names of all rows
        return {k: v for k, v in ((k, _value(name, v)) for k, v in cell.items()) if v is not None}
    if isinstance(cell, str):
        return _of_text(name, cell)
    number = float(cell) if isinstance(cell, Decimal) else cell
    return None if isinstance(number, float) and math.isnan(number) else number


def _of_text(name: Any, text: str) -> Any:
    if text.strip().lower() in (VALUELESS if name in TAKES_NONE else NOTHING):
        return None
    if name in PATHS:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        word = text.strip()
        return TRUTH.get(word.lower(), word)


def _of_file(path: Any, folder: str, origin: str) -> dict[str, Any]:
    """What a file of settings gives; how to compute is the batch's."""
    if path is None:
        return {}
    if not isinstance(path, str) or storage.is_remote(path := storage.join(folder, path)):
        raise BatchError(f"{origin}: settings must be the path of a local file, not {shown(path)}")
    try:
        return StyleSettings.given(path) | OutputOptions.given(path)
    except SettingsError as error:
        raise BatchError(f"{origin}: {error}") from None


def _preset(name: Any, origin: str) -> dict[str, Any]:
    """The settings that a preset changes."""
    if name not in get_args(PresetName):
        choices = ", ".join(get_args(PresetName))
        raise BatchError(f"{origin}: preset must be one of {choices}, not {shown(name)}")
    return dict(PRESETS[name])


def _entry(given: dict[Any, Any], folder: str, origin: str) -> Entry:
    known = {"content", "style", "output", "preset", "settings"}
    known |= setting_names() | saving_names() | making_names()
    unknown = given.keys() - known
    if unknown:
        first = min(map(str, unknown))
        option = f"--{first.replace('_', '-')}"
        advice = f"{option} is of the whole batch" if first in OF_ALL else "see docs/batch.md"
        raise BatchError(f"{origin}: there is no column {shown(first)}; {advice}")
    content, output = given.pop("content", ""), given.pop("output", "")
    if not (content and isinstance(content, str) and isinstance(output, str)):
        raise BatchError(f"{origin}: content must be a path or URL, and output one or empty")
    of_file = _of_file(given.pop("settings", None), folder, origin)
    given = of_file | _preset(given.pop("preset", "standard"), origin) | given
    init = given.get("init")
    if isinstance(init, str) and init not in get_args(InitName):
        given["init"] = storage.join(folder, init)
    for name in ("style_regions", "content_mask"):
        if isinstance(given.get(name), str):
            given[name] = storage.join(folder, given[name])
    if "style_mask" in given:
        given["style_mask"] = _paths("style_mask", given["style_mask"], folder, origin)
    path = storage.join(folder, content)
    return Entry(
        content=path,
        styles=_paths("style", given.pop("style", ()), folder, origin),
        output=output,
        settings={name: None if _is_none(value) else value for name, value in given.items()},
        origin=origin,
        top=storage.parent(path),
    )


def _paths(name: str, cell: Any, folder: str, origin: str) -> tuple[str, ...]:
    """Of a cell that names several."""
    if isinstance(cell, str):
        cell = [path for path in cell.split(SEPARATOR) if path.strip().lower() not in NOTHING]
    if not isinstance(cell, list | tuple) or not all(p and isinstance(p, str) for p in cell):
        raise BatchError(f"{origin}: {name} must be paths or URLs, separated by {SEPARATOR}")
    return tuple(storage.join(folder, path) for path in cell)


def _is_none(value: Any) -> bool:
    return isinstance(value, str) and value.lower() == "none"


def _csv(data: bytes, url: str) -> Iterator[Mapping[str, Any]]:
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        for row in rows:
            # Spreadsheets end lines with the separators of columns that were used once.
            if any(cell.strip() for cell in row.pop(None, None) or ()):
                raise BatchError(f"manifest {url}, line {rows.line_num}: more cells than columns")
            yield row
    except (csv.Error, UnicodeDecodeError) as error:
        raise BatchError(f"manifest {url} is no CSV in UTF-8 ({error}); export it again") from None


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
    # The last: text in no UTF-8.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise BatchError(f"manifest {url} is no Parquet file ({one_line(error)})") from None
