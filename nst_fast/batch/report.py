"""report.html: totals, the slowest, the failures with their reasons, thumbnails; one plain file."""

from __future__ import annotations

import base64
import heapq
import html
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from nst_fast import images
from nst_fast.batch import storage
from nst_fast.batch.jobs import Job
from nst_fast.batch.journal import Row, rows
from nst_fast.errors import NstError

SLOWEST, FAILURES, THUMBNAILS = 10, 1000, 24  # entries of each list
THUMBNAIL = 160  # pixels

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #8884 } td { overflow-wrap: anywhere }
figure { display: inline-block; margin: .4rem; vertical-align: top; width: 160px }
figcaption { font-size: 12px; overflow-wrap: anywhere }
"""


def write(path: Path, journals: Sequence[Path], jobs: Sequence[Job], left: int) -> None:
    """Write the report of a batch, whole or not at all.

    Args:
        path: of the report.
        journals: whose rows count, the last of each output.
        jobs: of the batch; rows of other pictures are left out.
        left: how many of them were not come to.

    Raises:
        StorageFullError: no space is left.
        StorageError: it cannot be written.
    """
    page = _page(_last(journals, {storage.canonical(job.output) for job in jobs}), left)
    # Names that are no text have bytes that UTF-8 lacks.
    data = page.encode(errors="backslashreplace")
    storage.write(str(path), data, storage.owner_tag(str(path)))


def _last(journals: Sequence[Path], outputs: set[str]) -> Iterable[Row]:
    """The last row of each output; read twice instead of kept, as there may be millions."""
    ends: dict[str, float] = {}
    for journal in journals:
        for row in rows(journal):
            if (output := storage.canonical(row.output)) in outputs:
                ends[output] = max(row.finished, ends.get(output, 0.0))
    for journal in journals:
        for row in rows(journal):
            if ends.get(storage.canonical(row.output)) == row.finished:
                yield row


def _page(ended: Iterable[Row], left: int) -> str:
    done: list[float] = []
    parts: Counter[str] = Counter()
    failures: list[Row] = []
    slowest: list[tuple[float, str, Row]] = []
    samples: list[Row] = []
    failed = 0
    for row in ended:
        if row.status == "failed":
            failed += 1
            failures += [row] if failed <= FAILURES else []
            continue
        seconds = sum(row.seconds.values())
        done.append(seconds)
        parts.update(row.seconds)
        samples += [row] if len(samples) < THUMBNAILS else []
        heapq.heappush(slowest, (seconds, row.output, row))
        if len(slowest) > SLOWEST:
            heapq.heappop(slowest)
    totals = [
        ("done", f"{len(done)}"),
        ("failed", f"{failed}"),
        ("not come to", f"{left}"),
        ("median of a picture", f"{statistics.median(done):.2f} s" if done else "–"),
        *((f"share of {part}", f"{took / sum(done):.1%}") for part, took in parts.items() if took),
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>nst-fast batch</title><style>{STYLE}</style></head><body><h1>Batch</h1>",
            _table((), totals),
            *_section("Failures", _table(("picture", "reason", "attempts"), _reasons(failures))),
            *([f"<p>… and {failed - FAILURES} more</p>"] if failed > FAILURES else []),
            *_section("Slowest", _table(("picture", "seconds"), _times(sorted(slowest)[::-1]))),
            *_section("Pictures", "".join(map(_figure, samples))),
            "</body></html>\n",
        ]
    )


def _section(title: str, content: str) -> list[str]:
    return [f"<h2>{title}</h2>", content] if content else []


def _reasons(failures: Sequence[Row]) -> list[tuple[str, ...]]:
    return [(row.content, row.error, str(row.attempts)) for row in failures]


def _times(slowest: Iterable[tuple[float, str, Row]]) -> list[tuple[str, ...]]:
    return [(output, f"{seconds:.2f}") for seconds, output, _ in slowest]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    top = "".join(f"<th>{name}</th>" for name in head)
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in (top, *cells) if line)}</table>"


def _figure(row: Row) -> str:
    try:
        with Image.open(io.BytesIO(storage.read(row.output)), formats=images.READABLE) as image:
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            small = io.BytesIO()
            image.convert("RGB").save(small, "JPEG", quality=80)
    except (NstError, OSError) as error:  # it was moved away; the report is of what was made
        return _captioned("", f"{row.output}: {error}")
    data = base64.b64encode(small.getvalue()).decode()
    caption = f"{row.output}, {sum(row.seconds.values()):.1f} s, loss {row.loss:.4g}"
    return _captioned(f'<img src="data:image/jpeg;base64,{data}" alt="">', caption)


def _captioned(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"
