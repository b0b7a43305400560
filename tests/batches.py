"""Small batches: pictures, jobs, running and watching them, and what they must leave behind."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from stylizing import SHALLOW, quick

from nst_fast import EngineOptions
from nst_fast.batch import BatchOptions, BatchRunner, Job, Row, Summary

ENGINE = EngineOptions(provider="cpu", threads=1)
SIZES = ((40, 32), (32, 40), (36, 36))


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """Smooth noise, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(seed, *SIZES[seed % 3]).save(buffer, kind)
    return buffer.getvalue()


def write_pictures(folder: Path, count: int) -> list[Path]:
    """``count`` contents of three shapes, and a style beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"p{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(number))
    (folder.parent / "style.png").write_bytes(encoded(1000))
    return paths


def make_jobs(folder: Path, count: int, **settings) -> list[Job]:
    """Jobs of ``write_pictures``, into ``out`` beside the folder."""
    paths, out = write_pictures(folder, count), folder.parent / "out"
    style = (str(folder.parent / "style.png"),)
    chosen = quick(**(SHALLOW | {"steps": 2, "size": 32} | settings))
    return [Job(str(path), style, str(out / path.name), chosen) for path in paths]


def journal_rows(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("journal*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def outputs(folder: Path) -> dict[str, str]:
    """Hash of each picture; nothing else may lie there than journals, their locks and reports."""
    for path in folder.iterdir():
        assert path.suffix == ".png" or path.name.startswith(("journal", "report")), path
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.png")}


class Watcher:
    """An observer that keeps what it is told, and can act when a picture starts."""

    def __init__(self, act: Callable[[str, str], None] = lambda worker, content: None) -> None:
        self.told: list[tuple] = []
        self._act = act

    def begin(self, todo: int, done: int) -> None:
        self.told.append(("begin", todo, done))

    def started(self, worker: str, content: str) -> None:
        self.told.append(("started", worker, content))
        self._act(worker, content)

    def ended(self, row: Row) -> None:
        self.told.append(("ended", row.output, row.status))


def run(jobs, folder: Path, *, workers=1, observers=(), **changes) -> Summary:
    options = BatchOptions(workers=workers, **changes)
    return BatchRunner(jobs, folder, engine=ENGINE, options=options).run(observers)


def counts(summary: Summary) -> tuple[int, int, int, int]:
    return summary.done, summary.failed, summary.skipped, summary.left
