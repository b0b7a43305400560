"""Look at pictures: a list of pairs made with the defaults, a sheet to see and a table to read.

    python bench/pictures.py [PAIRS] --teacher teacher.safetensors --out DIR
        [--pair CONTENT STYLE]... [--reference DIR] [--size 512] [-- OPTIONS of nst-fast stylize]

PAIRS names a content and a style picture a line, relative to its own folder, and may name the
middle of the crop, in shares of width and height: ``content_lake.jpg style_swirls.jpg 0.3,0.4``.
Every picture is made by ``nst-fast stylize`` in a process of its own. The sheet has a row for each
pair: content, style, reference, ours, and of the last two a crop enlarged three times, nearest
neighbour. The reference of a pair is DIR/CONTENT_STYLE.png, the names without ``content_``,
``style_`` and ending; where there is none, its place stays blank.

The table has what the teacher finds, as ``judge.Judge`` defines it: the style term at each of its
heads, their mean, and the content loss; besides, the seconds from the start of the process to the
written file, and the steps. The content is resized to the picture, the style to its longest side. A
number alone never passes a picture: look at the sheet, and at the files beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from judge import Judge, Network, Teacher
from nst_fast import images
from nst_fast.images import Picture

EXAMPLES = Path(__file__).parent.parent / "examples"
HEADINGS = ("content", "style", "reference", "ours", "reference, 3 times", "ours, 3 times")
ENLARGED = 3
MARGIN = 6  # pixels between the tiles of a sheet


@dataclass(frozen=True)
class Pair:
    """A content and a style picture, and the middle of the crop: x and y in [0, 1]."""

    content: Path
    style: Path
    middle: tuple[float, float] = (0.5, 0.5)

    @property
    def name(self) -> str:
        """Of its files."""
        content, style = self.content.stem, self.style.stem
        return f"{content.removeprefix('content_')}_{style.removeprefix('style_')}"


@dataclass(frozen=True)
class Verdict:
    """What the teacher finds in a picture.

    Attributes:
        pair: its name.
        picture: "ours" or "reference".
        style_terms: by tap.
        style: their mean.
        content: loss.
        seconds: that ours took.
        steps: that ours took.
    """

    pair: str
    picture: str
    style_terms: dict[str, float]
    style: float
    content: float
    seconds: float | None = None
    steps: int | None = None


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a list, one a line; ``#`` begins a remark.

    Raises:
        ValueError: a line is none; the message names it.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
            if words:
                found.append(_pair(path.parent, *words))
        except (TypeError, ValueError) as error:
            form = "CONTENT STYLE [X,Y]"
            raise ValueError(f"{path}, line {number}: give {form}, not {line!r}") from error
    return found


def _pair(folder: Path, content: str, style: str, middle: str = "0.5,0.5") -> Pair:
    x, y = map(float, middle.split(","))
    return Pair(folder / content, folder / style, (x, y))


def stylize(pair: Pair, output: Path, options: Sequence[str]) -> tuple[float, int]:
    """Make a picture by the command; seconds from its start to its end, and its steps."""
    command = [sys.executable, "-m", "nst_fast", "stylize", str(pair.content), str(pair.style)]
    command += ["--output", str(output), "--quiet", "--json", *options]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, int(json.loads(done.stdout)["steps"])


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture at width and height ``size``."""
    return picture if picture.size == size else images.resize(picture, *size)


def crop(picture: Picture, middle: tuple[float, float], tile: int) -> Picture:
    """What fills a tile once enlarged, around ``middle``, moved inside where it sticks out."""
    width, height = picture.size
    columns, rows = min(width, tile // ENLARGED), min(height, tile * 3 // 4 // ENLARGED)
    left = min(max(round(middle[0] * width - columns / 2), 0), width - columns)
    top = min(max(round(middle[1] * height - rows / 2), 0), height - rows)
    pixels = picture.pixels[top : top + rows, left : left + columns]
    return Picture(pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1))


def sheet(
    rows: Sequence[tuple[str, Sequence[Picture | None]]], headings: Sequence[str], tile: int = 314
) -> Image.Image:
    """A contact sheet: a row for every name, a column for every heading that has a picture.

    Pictures are shrunk to ``tile`` pixels a side where they are larger, never enlarged; None leaves
    a blank.
    """
    columns = [i for i in range(len(headings)) if any(pictures[i] for _, pictures in rows)]
    line, width = 24, tile + MARGIN
    strips = []
    for name, pictures in rows:
        tiles = [(picture := pictures[i]) and images.to_pillow(picture) for i in columns]
        for picture in filter(None, tiles):
            picture.thumbnail((tile, tile), Image.Resampling.LANCZOS)
        strips.append((name, tiles, max(picture.height for picture in filter(None, tiles))))
    height = line + sum(line + rise + MARGIN for _, _, rise in strips)
    paper = Image.new("RGB", (width * len(columns), height), "white")
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(15)
    for column, i in enumerate(columns):
        pen.text((column * width + MARGIN, 3), headings[i], "black", font)
    top = line
    for name, tiles, rise in strips:
        pen.text((MARGIN, top + 3), name.replace("×", "and"), "black", font)  # not in that font
        for column, picture in enumerate(tiles):
            if picture is not None:
                paper.paste(picture, (column * width, top + line))
        top += line + rise + MARGIN
    return paper


class Study:
    """The pairs, one after the other: their pictures, verdicts and rows of the sheet."""

    def __init__(self, network: Network, options: argparse.Namespace) -> None:
        self._network, self._options = network, options
        self.verdicts: list[Verdict] = []
        self.rows: list[tuple[str, list[Picture | None]]] = []

    def add(self, pair: Pair) -> None:
        """Make the picture of a pair, judge it and its reference, and lay out its row."""
        chosen = self._options
        path = chosen.out / f"{pair.name}.png"
        words = ["--size", str(chosen.size), *chosen.stylize]
        seconds, steps = stylize(pair, path, words)
        ours = images.load(path)
        content = resized(images.load(pair.content), ours.size)
        style = images.load(pair.style)
        style = resized(style, images.fit(style.size, max(ours.size)))
        reference = None
        if chosen.reference is not None and (file := chosen.reference / path.name).exists():
            reference = resized(images.load(file), ours.size)
        judge = Judge(self._network, content, style)
        if reference is not None:
            self.verdicts.append(verdict(judge, pair.name, "reference", reference))
        found = verdict(judge, pair.name, "ours", ours)
        self.verdicts.append(replace(found, seconds=seconds, steps=steps))
        crops = [p and crop(p, pair.middle, chosen.tile) for p in (reference, ours)]
        title = f"{pair.name}: style {found.style:.4f}, content {found.content:.3f}"
        self.rows.append((title, [content, style, reference, ours, *crops]))


def verdict(judge: Judge, pair: str, name: str, picture: Picture) -> Verdict:
    """What a judge finds in one picture of a pair."""
    terms, content = judge.losses(picture)
    return Verdict(pair, name, terms, float(np.mean(list(terms.values()))), content)


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The table, and under it what became of the reference's losses."""
    taps = list(verdicts[0].style_terms)
    lines = ["| " + " | ".join(["pair", "picture", *taps, "style", "content", "s", "steps"]) + " |"]
    lines.append("|" + "---|" * (len(taps) + 6))
    for v in verdicts:
        terms = " | ".join(f"{v.style_terms[tap]:.4f}" for tap in taps)
        cost = "| |" if v.seconds is None else f"| {v.seconds:.1f} | {v.steps} |"
        lines.append(f"| {v.pair} | {v.picture} | {terms} | {v.style:.4f} | {v.content:.3f} {cost}")
    ours = {v.pair: v for v in verdicts if v.picture == "ours"}
    references = {v.pair: v for v in verdicts if v.picture == "reference"}
    for what in ("style", "content") if references else ():
        ratios = [getattr(ours[p], what) / getattr(r, what) for p, r in references.items()]
        lines += [
            "",
            f"{what}, ours / reference: mean {np.mean(ratios):.3f}, most {max(ratios):.3f}",
        ]
    return "\n".join(lines) + "\n"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line; what comes after ``--`` is for ``nst-fast stylize``."""
    own, more = list(words), []
    if "--" in own:
        cut = own.index("--")
        own, more = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, nargs="?", help="by default examples/pairs.txt")
    parser.add_argument("--pair", type=Path, nargs=2, action="append", default=[])
    parser.add_argument("--teacher", type=Path, required=True, help="teacher.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything written")
    parser.add_argument("--reference", type=Path, help="folder of pictures to compare with")
    parser.add_argument("--size", type=int, default=512, help="longest side of a picture")
    parser.add_argument("--tile", type=int, default=312, help="longest side of one on the sheet")
    parser.add_argument("--threads", type=int, default=1, help="of the judge")
    options = parser.parse_args(own)
    options.stylize = more
    return options


def main() -> None:
    """Make and judge every pair; write the pictures, sheet.jpg, verdicts.md and verdicts.json."""
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    pairs = [Pair(content, style) for content, style in options.pair]
    if options.pairs or not pairs:
        pairs += read_pairs(options.pairs or EXAMPLES / "pairs.txt")
    options.out.mkdir(parents=True, exist_ok=True)
    study = Study(Teacher(options.teacher), options)
    for pair in pairs:
        study.add(pair)
        print(pair.name, file=sys.stderr, flush=True)
    table = markdown(study.verdicts)
    sheet(study.rows, HEADINGS, options.tile).save(options.out / "sheet.jpg", quality=88)
    (options.out / "verdicts.md").write_text(table, encoding="utf-8")
    facts = {"size": options.size, "options": options.stylize}
    facts["verdicts"] = [asdict(v) for v in study.verdicts]
    (options.out / "verdicts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
