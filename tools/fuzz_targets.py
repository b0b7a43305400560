"""What to feed, besides pictures: settings, manifests and packs.

A target takes a generator of random numbers and makes one input of it. It returns where the input
was used or refused in one line, and raises where anything else came of it.

    python tools/fuzz_targets.py settings --inputs 50000 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from nst_fast import encoders
from nst_fast.batch import manifest as manifests
from nst_fast.cli import main
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.encoders.cache import sha256
from nst_fast.errors import NstError
from nst_fast.graph.forms import FORMS, fused_graph, statistics_graph
from nst_fast.losses import Objective

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 16, 512, 10**9, 2**63, 10**400, -(10**400)),
    *(0.5, 1.0, 512.0, -0.0, 1e-320, 1e308, math.inf, -math.inf, math.nan),
    *("", " ", "none", "nan", "-1", "512", "1e3", "auto", "content", "noise", "cuda:1", "cuda:-1"),
    *("\0", "\n", "a\nb", "\x1b[31m", "é", "\ud800", "日本", "x" * 5000, "../..", "=", ",", "=,=,"),
    *([], [1], [[]], (0.0, 0.0), {}, {"relu1_1": 1}, {"relu1_1": math.nan}, {1: 2}, b"x", object),
)
SHAPE = (1, 32, 48)


def refused_well(error: NstError) -> None:
    """A message is one line of words, and no longer than a screen holds."""
    message = str(error)
    assert message, "an error without words"
    assert len(message.splitlines()) == 1, f"more than one line: {message!r}"
    assert len(message) < 2000, f"{len(message)} characters"


def settings(rng: random.Random) -> None:
    """``StyleSettings``, ``EngineOptions``, and a command line of such values."""
    kind = rng.choice((StyleSettings, EngineOptions))
    names = [item.name for item in fields(kind)]
    chosen = {n: _value(rng) for n in rng.sample(names, rng.randint(1, 3))}
    try:
        made = kind(**chosen)
        hash(made)
        assert made == kind(**chosen), "another each time"
        if isinstance(made, StyleSettings):
            json.dumps(made.as_dict())
            assert StyleSettings(**made.as_dict()) == made, "it cannot be made again"
    except NstError as error:
        refused_well(error)
    if rng.random() < 0.1:
        _command_line(rng)


def _value(rng: random.Random) -> Any:
    draw = rng.random()
    if draw < 0.6:
        return rng.choice(ODD)
    if draw < 0.8:
        return rng.choice((rng.gauss(0, 100), rng.randint(-20, 20000), rng.random()))
    return "".join(chr(rng.choice((rng.randint(0, 127), rng.randint(0, 0x10FFFF)))) for _ in "abcd")


def _command_line(rng: random.Random) -> None:
    """Refused before a picture is looked for: there is none."""
    words = [rng.choice(("stylize", "stylize", "batch")), "/no/such/a.png", "/no/such/b.png"]
    options = [item.name for kind in (StyleSettings, EngineOptions) for item in fields(kind)]
    for name in rng.sample(options, rng.randint(1, 3)):
        words += [f"--{name.replace('_', '-')}", str(_value(rng))]
    words += ["-o", "/no/such/out"]
    if words[0] == "batch":
        words += ["--style", "/no/such/style.png"]
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    assert code in (1, 2), f"exit code {code} of {words}"
    lines = told.getvalue().splitlines()
    assert len(lines) == 1, f"{lines} of {words}"
    assert lines[0].startswith("error: "), f"{lines} of {words}"


# ----------------------------------------------------------------------------------------- manifest


@functools.cache
def _manifests() -> dict[str, bytes]:
    rows: list[dict[str, Any]] = [
        {"content": "a.png", "style": "b.png|c.png", "output": "x.png", "size": 64, "steps": 2},
        {"content": "s3://b/a.png", "style": "", "output": "", "size": None, "seed": 7},
        {"content": "ü.png", "style_layers": {"relu1_1": 1.0}, "style_blend": [0.5, 0.5]},
    ]
    names = sorted({name for row in rows for name in row})
    table = [names] + [
        [value if isinstance(value, str) else json.dumps(value) for value in map(row.get, names)]
        for row in rows
    ]
    quoted = ("\n".join(",".join('"' + c.replace('"', '""') + '"' for c in line)) for line in table)
    found = {
        "csv": "\n".join(line.replace('"\n,\n"', '","') for line in quoted).encode(),
        "jsonl": "\n".join(map(json.dumps, rows)).encode(),
    }
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        stream = io.BytesIO()
        columns = {name: [None if c == "null" else c for c in column] for name, *column in
                   zip(*table, strict=True)}  # fmt: skip
        parquet.write_table(pyarrow.table(columns), stream)
        found["parquet"] = stream.getvalue()
    return found


def manifest(rng: random.Random) -> None:
    """Manifests with changed bytes, columns and cells."""
    ending, data = rng.choice([*_manifests().items()])
    if ending == "jsonl" and rng.random() < 0.5:
        data = json.dumps({rng.choice(("content", "style", "size", "x")): _cell(rng)}).encode()
    elif ending == "csv" and rng.random() < 0.3:
        data += b"\n" + ",".join(str(_cell(rng)) for _ in range(rng.randint(1, 9))).encode(
            rng.choice(("utf-8", "utf-16")), "replace"
        )
    else:
        data = _mutated(rng, data)
    path = _folder() / f"manifest.{ending}"
    path.write_bytes(data)
    try:
        for entry in manifests.read(str(path)):
            with contextlib.suppress(TypeError):  # a setting that only the batch names as unknown
                StyleSettings(**entry.settings)
    except NstError as error:
        refused_well(error)


def _cell(rng: random.Random) -> Any:
    while True:
        value = _value(rng)
        if isinstance(value, str | int | float | list | dict | None) and value != {1: 2}:
            return value


def _mutated(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        how = rng.randrange(5)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            changed[at:at] = rng.choice(
                (b",", b'"', b"\n", b"\0", b"{", b"[" * 2000, b"\xff", b"9")
            )
        elif how == 2:
            del changed[at : at + rng.randint(1, 40)]
        elif how == 3:
            changed[at : at + 4] = rng.choice((0, 1, 2**31, 2**32 - 1)).to_bytes(4, "little")
        else:
            other = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[other : other + rng.randint(1, 60)]
    return bytes(changed)


# --------------------------------------------------------------------------------------------- pack


def pack(rng: random.Random) -> None:
    """Packs with a damaged file; mostly with hashes that are right all the same."""
    folder = _folder() / "pack"
    if not folder.exists():
        shutil.copytree(encoders.load("vgg19-lite").path, folder)
    name = rng.choice(sorted(file.name for file in folder.iterdir()))
    whole = {file: (folder / file).read_bytes() for file in {name, "manifest.json"}}
    try:
        (folder / name).write_bytes(_mutated(rng, whole[name]))
        if name != "manifest.json" and rng.random() < 0.95:
            stored = json.loads(whole["manifest.json"])
            stored["files"][name] = sha256(folder / name)
            (folder / "manifest.json").write_text(json.dumps(stored))
        _use(encoders.load(folder))
    except NstError as error:
        refused_well(error)
    finally:
        for file, data in whole.items():
            (folder / file).write_bytes(data)


def _use(encoder: encoders.Encoder) -> None:
    """Everything that a picture reads of a pack."""
    assert isinstance(encoder.decoders, tuple)
    objective = Objective.from_settings(StyleSettings(), encoder)
    form = FORMS["openvino", "fp32"]
    fused_graph(encoder, objective, SHAPE, form, weighted=True).to_model()
    statistics_graph(encoder, objective, SHAPE, form).to_model()


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="nst-fast-fuzz-"))


TARGETS: dict[str, Callable[[random.Random], None]] = {
    "settings": settings,
    "manifest": manifest,
    "pack": pack,
}


def findings(target: str, seed: int, numbers: range) -> Iterator[tuple[int, Exception]]:
    """Feed a target; yields the number of each input that was not taken well, and its error."""
    for number in numbers:
        try:
            TARGETS[target](random.Random(f"{seed}/{number}"))
        except Exception as error:
            yield number, error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one of them again")
    asked = parser.parse_args()
    only = asked.only
    todo = range(asked.inputs) if only is None else range(only, only + 1)
    count = 0
    for found, trouble in findings(asked.target, asked.seed, todo):
        count += 1
        print(f"{asked.target} {found}:", file=sys.stderr)
        traceback.print_exception(trouble)
    shutil.rmtree(_folder())
    print(f"{asked.target}: {len(todo)} inputs, {count} findings")
    sys.exit(count > 0)
