"""report.html: whole HTML whatever the names, with the pictures in it."""

from __future__ import annotations

import base64
import io
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from batches import picture
from PIL import Image

from nst_fast.batch import Job, Row, report
from nst_fast.batch.journal import Journal

VOID = {"meta", "img"}
EVIL = "<img src=x onerror=alert(1)>&amp;\"'</td></table>"


class Page(HTMLParser):
    """Checks that tags nest, and keeps their names, the texts and the pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[Image.Image] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "img":
            assert dict(attrs).keys() == {"src", "alt"}
            start, _, data = dict(attrs)["src"].partition(",")
            assert start == "data:image/jpeg;base64"
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def write(folder: Path, rows: list[Row], left: int = 0) -> Page:
    journal = folder / "journal.jsonl"
    with Journal(journal) as opened:
        for row in rows:
            opened.append(row)
    jobs = [Job(row.content, row.styles, row.output) for row in rows]
    report.write(folder / "report.html", [journal], jobs, left)
    return Page((folder / "report.html").read_text("utf-8"))


def done(path: Path, seconds: float = 1.0) -> Row:
    picture(1, 400, 320).save(path)
    return Row(str(path), "c.png", ("s",), "done", seconds={"read": 0.5, "optimise": seconds})


def failed(number: int, content: str) -> Row:
    return Row(f"{number}.png", content, ("s",), "failed", error=f"{content} is bad", attempts=3)


def test_totals_failures_slowest_and_pictures(tmp_path):
    rows = [done(tmp_path / f"{n}.png", seconds=n + 0.5) for n in range(30)]
    page = write(tmp_path, [*rows, failed(99, "in/bad.png")], left=7)
    text = "|".join(page.texts)
    assert "|done|30|failed|1|not come to|7|median of a picture|15.50 s|" in text
    assert "|picture|reason|attempts|in/bad.png|in/bad.png is bad|3|" in text
    assert f"|picture|seconds|{tmp_path / '29.png'}|30.00|{tmp_path / '28.png'}|29.00|" in text
    assert {image.size for image in page.pictures} == {(160, 128)}
    assert len(page.pictures) == page.tags.count("figcaption") == report.THUMBNAILS


@pytest.mark.parametrize("name", [EVIL, os.fsdecode(b"\xff\xe9"), "\u202ename\u200b"])
def test_names_are_text_and_never_markup(tmp_path, name):
    output = tmp_path / f"{name.replace('/', '-')}.png"
    page = write(tmp_path, [done(output), failed(0, name)])
    shown = name.encode(errors="backslashreplace").decode()
    assert f"{shown} is bad" in page.texts
    assert len(page.pictures) == 1
    assert sum(str(output).encode(errors="backslashreplace").decode() in t for t in page.texts) == 2


def test_a_picture_that_was_moved_away_is_said_to_be(tmp_path):
    row = done(tmp_path / "a.png")
    Path(row.output).unlink()
    page = write(tmp_path, [row])
    assert not page.pictures
    assert any("no such file" in text for text in page.texts)


def test_more_failures_than_are_listed_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FAILURES", 3)
    page = write(tmp_path, [failed(n, f"in/{n}.png") for n in range(5)])
    assert "… and 2 more" in page.texts
    assert page.tags.count("tr") == 4 + 1 + 3
    assert "figure" not in page.tags


def test_an_empty_batch_has_a_page(tmp_path):
    page = write(tmp_path, [])
    assert page.tags[:2] == ["html", "head"]
    assert "table" in page.tags
