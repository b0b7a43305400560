"""Findings as markdown, and the blocks of a document that are generated from them.

A block stands between ``<!-- bench: TABLE from FILE.json -->`` and ``<!-- /bench -->``; FILE is
relative to the document. TABLE is "headline", "losses", "machine", "numbers", "plots", or the name
of a suite.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nst_fast.bench import plots
from nst_fast.bench.findings import SUITES, Device, Findings, Row, Unit, read, write
from nst_fast.errors import BenchError

COLUMNS = ("task", "ours", "", "peer", "", "ours / peer", "band", "of the floor", "target")
NOTHING = "Not measured yet."
NO_LOSSES = "Nowhere in these findings."
# What a reader sees first: of each suite the first row with a target whose task has these words.
NUMBERS: dict[Device, tuple[tuple[str, str], ...]] = {
    "cpu": (
        ("quality", ""),
        ("throughput", ""),
        ("step", "best torch setting"),
        ("memory", "vgg19-lite 1024²"),
    ),
    "cuda": (
        ("step", "vgg19 512², loss + gradient"),
        ("step", "vgg19 512² × 8, loss + gradient"),
        ("throughput", ""),
        ("memory", "vgg19 512²"),
    ),
}
_BLOCK = re.compile(r"(<!-- bench: (\w+) from (\S+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def amount(value: float, unit: Unit) -> str:
    """Three digits with a unit: seconds, or bytes."""
    if unit == "B":
        return f"{value / 2**20:.0f} MiB"
    if value >= 1:
        return f"{float(f'{value:.3g}'):g} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"


def cells(row: Row) -> list[str]:
    """Format a row, in the order of ``COLUMNS``."""
    target = "" if row.target is None else f"≤ {row.target:.3g}"
    return [
        row.task,
        row.ours,
        amount(row.ours_value, row.unit),
        row.peer,
        amount(row.peer_value, row.unit),
        f"**{row.ratio:.3g}**",
        f"{row.low:.3g} – {row.high:.3g}",
        "" if row.share is None else f"{row.share:.0%}",
        target if row.met is not False else f"{target}, missed",
    ]


def table(rows: Sequence[Row]) -> str:
    """A markdown table, and the notes of its rows below it."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, rows)]
    notes = dict.fromkeys(row.note for row in rows if row.note)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([text, *notes])


def losses(findings: Findings) -> list[Row]:
    """Rows in which a peer, not another route of ours, is better, or a target is missed."""
    peers = {(m.suite, m.route) for m in findings.measurements if not m.ours}
    return [
        row
        for row in findings.rows
        if row.met is False or (row.ratio > 1 and (row.suite, row.peer) in peers)
    ]


def numbers(findings: Findings) -> str:
    """The few rows of ``NUMBERS`` and the machine in one line."""
    goals = [row for row in findings.rows if row.target is not None]
    found = [
        next((row for row in goals if row.suite == suite and words in row.task), None)
        for suite, words in NUMBERS["cuda" if "gpu" in findings.machine else "cpu"]
    ]
    rows = [row for row in found if row is not None]
    if not rows:
        return NOTHING
    lines = ["| task | nst-fast | peer | ours / peer |", "| --- | --- | --- | --- |"]
    for row in rows:
        ours, peer = amount(row.ours_value, row.unit), amount(row.peer_value, row.unit)
        lines.append(
            f"| {row.task} | {ours}: {row.ours} | {peer}: {row.peer} | **{row.ratio:.3g}** |"
        )
    where = findings.machine
    command, on = "make bench", _cpu(where)
    if "gpu" in where:
        command, on = "nst-fast bench --device cuda", where["gpu"]
    told = f"`{command}` on {on}, {where['threads']} threads."
    return "\n".join([*lines, "", told])


def machine_line(findings: Findings) -> str:
    """On what this was measured, and how."""
    where = findings.machine
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    gpu = (
        f"{where['gpu']}, CUDA {where['cuda']}, cuDNN {where['cudnn']}; " if "gpu" in where else ""
    )
    parts = [
        f"{gpu}{_cpu(where)}, {where['threads']} threads on {where['cores']} cores, "
        f"load {where['load'][0]} before and {where['load_after'][0]} after; {versions}"
    ]
    if where.get("revision"):
        parts.append(f"revision {where['revision']}")
    if findings.peaks:
        rates = {k: f"{v / 1e9:.0f} G{'B' if k == 'copy' else 'FLOP'}/s"
                 for k, v in findings.peaks.items()}  # fmt: skip
        parts.append("measured peaks: " + ", ".join(f"{k} {v}" for k, v in rates.items()))
    if findings.seconds:
        spent = ", ".join(f"{suite} {took:.0f} s" for suite, took in findings.seconds.items())
        parts.append(f"it took {spent}")
    return f"Medians of {findings.rounds} interleaved rounds on {'; '.join(parts)}."


def _cpu(where: Mapping[str, Any]) -> str:
    return f"{where['cpu']} ({', '.join(where['bf16']) or 'no bfloat16'})"


def block(name: str, findings: Findings, images: str) -> str:
    """Text of a generated block.

    Args:
        name: of the table.
        findings: to make it from.
        images: folder of the plots, as the document links to it.

    Raises:
        BenchError: no such table.
    """
    if name == "numbers":
        return numbers(findings)
    if name == "losses":
        lost = losses(findings)
        return table(lost) if lost else NO_LOSSES
    if name == "machine":
        return "\n\n".join([machine_line(findings), *findings.notes])
    if name == "plots":
        drawn = plots.available(findings)
        links = [f"![{plot}]({images}/{findings.name}-{plot}.svg)" for plot in drawn]
        return "\n\n".join(links) or NOTHING
    return rows_of(name, findings)


def rows_of(name: str, findings: Findings) -> str:
    """The rows of a suite, or those that have a target, "headline"; errors as for ``block``."""
    failed = [one.line for one in findings.failures if name in ("headline", one.suite)]
    if name == "headline":
        goals = [row for row in findings.rows if row.target is not None]
        return "\n\n".join([table(goals), *failed])
    if name not in SUITES:
        known = ("headline", "losses", "machine", "numbers", "plots", *SUITES)
        raise BenchError(f"no table {name!r}: {', '.join(known)}")
    rows = [row for row in findings.rows if row.suite == name]
    if not rows:
        return "\n\n".join(failed) or NOTHING
    text = table(rows)
    fits = [
        f"{fit.task}: seconds ∝ {fit.variable}^{fit.exponent:.2f} ± {fit.error:.2f}."
        for fit in (findings.fits if name == "scaling" else [])
    ]
    return "\n\n".join([text, *fits, *failed])


def filled(document: Path, images: Path) -> str:
    """A document's text with every block made anew from the findings that it names.

    Raises:
        BenchError: no such document, no such findings, no block, or no such table.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{document}: {error.strerror}; name a markdown file") from None

    def make(found: re.Match[str]) -> str:
        opening, name, source, closing = found.groups()
        folder = Path(os.path.relpath(images, document.parent)).as_posix()
        return f"{opening}{block(name, read(document.parent / source), folder)}\n{closing}"

    text, count = _BLOCK.subn(make, text)
    if not count:
        raise BenchError(f"{document}: no block <!-- bench: TABLE from FILE.json --> to fill")
    return text


def fill(document: Path, images: Path) -> None:
    """Write the document anew; see :func:`filled`."""
    write(document, filled(document, images))
