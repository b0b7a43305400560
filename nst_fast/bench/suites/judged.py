"""Time to quality: every preset, and the classic script, before one judge.

A judge, who is none of those that optimise, finds a style loss and a content loss in a picture. The
goal is what the classic script ends with, and the time is that of the quickest preset that is no
worse in either. Times are of whole processes, from the start to the file, with warm caches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import get_args

from nst_fast import images
from nst_fast.bench.child import call
from nst_fast.bench.findings import Curve, Measurement
from nst_fast.bench.machine import bf16_features
from nst_fast.bench.problem import label
from nst_fast.bench.session import Bench
from nst_fast.bench.suites.picture import arguments
from nst_fast.config import PRESETS, PresetName
from nst_fast.encoders import Encoder

PAIR = ("content_lake.jpg", "style_swirls.jpg")  # of the examples beside the folder of the peers
SIZE = 512  # pixels a side
STEPS = 500  # of the classic script
KEPT = (5, 10, 20, 35, 60, 100, 150, 200, 300, 400)  # of those, also judged
TIMES = 3  # that each preset is run
EAGER, COMPILED = 1 / 8, 1 / 5  # targets


@dataclass(frozen=True)
class _Point:
    """A picture: seconds until it was there, and what the judge finds."""

    seconds: float
    style: float
    content: float

    def meets(self, goal: _Point) -> bool:
        """Whether it is no worse than another."""
        return self.style <= goal.style and self.content <= goal.content


def run(bench: Bench) -> None:
    """Race to quality, on pictures that only a checkout has."""
    examples = bench.peers_parent.parent / "examples"
    if bench.peers is None or not (examples / PAIR[0]).is_file():
        bench.note("no time to quality: its pictures, and the judge, come with a checkout")
        return
    encoder = bench.encoder("vgg19-lite")
    assert encoder is not None
    size = (bench.options.sizes or (SIZE,))[0]
    _Race(bench, encoder, _squares(examples, bench.folder, size), size).run()


def _squares(examples: Path, folder: Path, size: int) -> tuple[Path, Path]:
    """The pair as squares: the classic script knows no other shape."""
    found = []
    for name in PAIR:
        path = folder / f"{Path(name).stem}{size}.png"
        images.save(images.resize(images.load(examples / name), size, size), path)
        found.append(path)
    return found[0], found[1]


class _Race:
    """Of the presets and the classic script on one pair."""

    def __init__(
        self, bench: Bench, encoder: Encoder, pictures: tuple[Path, Path], size: int
    ) -> None:
        self._bench, self._encoder, self._pictures = bench, encoder, pictures
        self._size, self._group = size, bench.new_group()
        pair = " × ".join(Path(name).stem.partition("_")[2] for name in PAIR)
        self._task = f"judged style, {encoder.name} {size}², {pair}"

    def run(self) -> None:
        """Run everybody, then say who came where."""
        names: tuple[PresetName, ...] = get_args(PresetName)
        ours = {name: self._preset(name) for name in names}
        points = sorted(ours.values(), key=lambda point: point.seconds)
        self._draw(f"nst-fast {label(self._bench.best)}, presets", points)
        assert self._bench.peers is not None
        for name, (precision, options) in self._bench.peers.CLASSICS.items():
            if precision == "bf16" and not bf16_features():
                continue
            with self._bench.attempt("quality", f"{self._task}, {name}"):
                points = self._classic(options)
                self._draw(f"classic script, {name}", points)
                target = COMPILED if "--compile" in options else EAGER
                self._compare(ours, name, points[-1], target)

    def _preset(self, name: PresetName) -> _Point:
        """``nst-fast stylize`` with a preset; its picture is judged at the size of the pair."""
        bench, output = self._bench, f"{name}.png"
        words = arguments(bench, self._encoder, self._pictures, bench.best, output)
        size = PRESETS[name].get("size", SIZE) * self._size // SIZE
        words += ["--preset", name, "--size", str(size)]
        took = [
            call("nst_fast", words, bench.options.threads, bench.peers_parent).seconds
            for _ in range(TIMES)
        ]
        ((style, content),) = self._judge([bench.folder / output])
        return self._told(f"--preset {name}", _Point(median(took), style, content))

    def _classic(self, options: tuple[str, ...]) -> list[_Point]:
        """What the script has after ``KEPT`` and all of its steps."""
        bench, path = self._bench, self._bench.folder / "classic.png"
        assert bench.peers is not None
        words = [*map(str, self._pictures), str(path), "--encoder", str(self._encoder.path)]
        words += ["--size", str(self._size), "--threads", str(bench.options.threads), *options]
        if "--compile" in options:  # what is compiled is kept on disk, as ours is
            warm = [*words, "--steps", "1"]
            call(bench.peers.CLASSIC, warm, bench.options.threads, bench.peers_parent)
        words += ["--steps", str(STEPS), "--keep", *map(str, KEPT)]
        done = call(bench.peers.CLASSIC, words, bench.options.threads, bench.peers_parent)
        told = json.loads(done.output)
        each: list[float] = told["seconds"]
        around = done.seconds - told["writing"] - sum(each)
        at = [kept for kept in KEPT if kept < len(each)]
        ends = list(accumulate(each, initial=around))
        seconds = [ends[kept] for kept in at] + [ends[-1]]
        paths = [path.with_stem(f"{path.stem}_{kept}") for kept in at] + [path]
        judged = self._judge(paths)
        points = [_Point(s, *found) for s, found in zip(seconds, judged, strict=True)]
        self._told(f"classic script{''.join(f' {word}' for word in options)}", points[-1])
        return points

    def _judge(self, paths: list[Path]) -> list[tuple[float, float]]:
        bench = self._bench
        assert bench.peers is not None
        words = [*map(str, (*self._pictures, *paths)), "--encoder", str(self._encoder.path)]
        words += ["--size", str(self._size), "--threads", str(bench.options.threads)]
        if bench.options.judge is not None:
            words += ["--teacher", str(bench.options.judge)]
        done = call(bench.peers.JUDGED, words, bench.options.threads, bench.peers_parent)
        return [(style, content) for style, content in json.loads(done.output)]

    def _told(self, name: str, point: _Point) -> _Point:
        self._bench.say(
            f"{self._task}: {name}: {point.seconds:.1f} s, style {point.style:.4f}, "
            f"content {point.content:.3f}"
        )
        return point

    def _draw(self, route: str, points: list[_Point]) -> None:
        """Keep a curve: the least style loss so far."""
        seconds = [point.seconds for point in points]
        least = list(accumulate((point.style for point in points), min))
        self._bench.findings.curves.append(Curve(self._task, route, seconds, least))

    def _compare(
        self, ours: dict[PresetName, _Point], name: str, goal: _Point, target: float
    ) -> None:
        """The quickest of ours that meets a goal, against who set it."""
        bench = self._bench
        there = {preset: point for preset, point in ours.items() if point.meets(goal)}
        found = f"style {goal.style:.3f} at content {goal.content:.3f}"
        if not there:
            bench.note(f"no preset reaches what the classic script, {name}, ends with: {found}")
            return
        preset = min(there, key=lambda one: there[one].seconds)
        task = f"{self._task}: time to {goal.style:.3f}, content ≤ {goal.content:.3f}"
        mine, theirs = (
            bench.keep(
                Measurement(
                    "quality", task, route, [seconds], ours=own, facts={"size": self._size},
                    precision=bench.best.precision, group=self._group,
                )
            )
            for route, seconds, own in (
                (f"--preset {preset}, {label(bench.best)}", there[preset].seconds, True),
                (f"classic script, {STEPS} steps, {name}", goal.seconds, False),
            )
        )  # fmt: skip
        bench.row(mine, theirs, target if self._size == SIZE else None)
