"""How good is an encoder? Pictures made with it, judged by another network.

    python bench/encoder_quality.py --teacher teacher.safetensors --out DIR

On every pair of a content and a style picture that no training has seen, a picture is made
(a) against the judge itself, in torch, (b) with the encoder, by nst-fast, and (c) with the
encoder's architecture under random weights, at the same steps and settings. Each route compares
styles in the space that its network maps to: the teacher in that of its heads, by which it judges,
the encoder in that of its pack, and random weights, which have none, in their own channels. Weights
mean different things to different networks, so the content weight of (b) and (c) is tuned until the
judge finds the same content loss as in (a); then the judge's style losses are compared:

    gap closed = (S(content) - S(picture)) / (S(content) - S(a))

where S is the judge's style loss: the mean, over its layers, of the terms of ``judge.Judge``.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from judge import Judge, Network, PackNetwork, Score, Teacher, TorchWorkspace
from nst_fast import EngineOptions, encoders, images
from nst_fast.bench.problem import backend
from nst_fast.config import DEFAULT_ENCODER, StyleSettings
from nst_fast.host import usable_cores
from nst_fast.images import Picture
from nst_fast.stylizer import Result, Run, Stylizer
from peers.random_encoder import random_pack
from pictures import EXAMPLES, sheet

DETAILED = ("canal", "lake", "still_life")  # of our examples: as many as photographs
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")  # of scikit-image: public domain or CC0
TEXTURES = ("hubble_deep_field", "immunohistochemistry")  # likewise
TOLERANCE = 0.02  # relative difference of content losses that counts as equal
TRIES = 7
Make = Callable[[StyleSettings], Result]


@dataclass(frozen=True)
class Verdict:
    """A picture of one route for one pair.

    Attributes:
        pair: names of content and style.
        route: which network made it.
        content_weight: that gave the content loss.
        score: the judge's.
        gap_closed: share of the style gap between the content picture and the judge's own.
        seconds: that the picture took.
    """

    pair: str
    route: str
    content_weight: float
    score: Score
    gap_closed: float
    seconds: float


def at_content_loss(
    make: Make, judge: Judge, settings: StyleSettings, wanted: float
) -> tuple[Result, Score, float]:
    """Tune the content weight until the judge finds the content loss ``wanted``.

    Regula falsi on the logarithms: the content loss falls with its weight. Where no try comes
    within ``TOLERANCE``, the nearest one counts.
    """
    points: list[tuple[float, float]] = []
    nearest: tuple[float, tuple[Result, Score, float]] | None = None
    weight = settings.content_weight
    for _ in range(TRIES):
        result = make(replace(settings, content_weight=weight))
        score = judge.score(result.picture)
        error = math.log(score.content / wanted)
        if nearest is None or abs(error) < nearest[0]:
            nearest = abs(error), (result, score, weight)
        if abs(error) <= TOLERANCE:
            break
        points.append((math.log(weight), error))
        weight = math.exp(_next(points))
    assert nearest is not None
    return nearest[1]


def _next(points: Sequence[tuple[float, float]]) -> float:
    """Where the line through the nearest points on both sides of 0 meets it; else a step."""
    above = [p for p in points if p[1] > 0]
    below = [p for p in points if p[1] < 0]
    if not above or not below:
        x, error = points[-1]
        return x + 2.0 * error
    (x0, y0), (x1, y1) = min(above, key=lambda p: p[1]), max(below, key=lambda p: p[1])
    return x0 + (x1 - x0) * y0 / (y0 - y1)


def load_pictures(size: int) -> tuple[dict[str, Picture], dict[str, Picture]]:
    """Content and style pictures by name, longest side ``size``: examples/, and scikit-image's."""
    from skimage import data

    contents: dict[str, object] = {name: EXAMPLES / f"content_{name}.jpg" for name in DETAILED}
    styles: dict[str, object] = {
        path.stem.removeprefix("style_"): path for path in sorted(EXAMPLES.glob("style_*.jpg"))
    }
    contents |= {name: getattr(data, name)() for name in PHOTOGRAPHS}
    styles |= {name: getattr(data, name)() for name in TEXTURES}

    def load(source: object) -> Picture:
        picture = images.load(source)
        return images.resize(picture, *images.fit(picture.size, size))

    return ({k: load(v) for k, v in contents.items()}, {k: load(v) for k, v in styles.items()})


def pairs(contents: Sequence[str], styles: Sequence[str]) -> list[tuple[str, str]]:
    """Two styles for each content, every style used as often as the others."""
    count = len(styles)
    return [
        (content, styles[(i + shift) % count])
        for i, content in enumerate(contents)
        for shift in (0, 2)
    ]


class Study:
    """The three routes, and their verdicts pair by pair."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._settings = StyleSettings(size=options.size, steps=options.steps)
        kernels = backend("auto", "fp32", options.threads)
        if options.teacher:
            self.network: Network = Teacher(options.teacher)
        else:
            self.network = PackNetwork(encoders.load(options.judge))
        self._workspace = TorchWorkspace(self.network, kernels)
        shipped = Stylizer(EngineOptions(options.encoder, threads=options.threads))
        random = random_pack(folder, "vgg19-lite")
        self.routes = {
            shipped.encoder.name: shipped,
            "random weights": Stylizer(EngineOptions(random, threads=options.threads)),
        }

    @property
    def judges_route(self) -> str:
        """Name of the route of the judge's own network, unlike those of the others."""
        name = self.network.name
        return f"{name} as judge" if name in self.routes else name

    def direct(self, content: Picture, style: Picture) -> Result:
        """The picture that the judge's own network leads to, in torch."""
        run = Run(self._workspace, [content], [style], self._settings)
        for _ in run:
            pass
        return run.result()

    def verdicts(
        self, pair: str, content: Picture, style: Picture
    ) -> tuple[list[Verdict], list[Picture]]:
        """Judge all three; the pictures in the order of the verdicts."""
        judge = Judge(self.network, content, style)
        result = self.direct(content, style)
        best, start = judge.score(result.picture), judge.score(content)
        weight = self._settings.content_weight
        found = [Verdict(pair, self.judges_route, weight, best, 1.0, result.timings["total"])]
        pictures = [result.picture]
        for route, stylizer in self.routes.items():

            def make(settings: StyleSettings, stylizer: Stylizer = stylizer) -> Result:
                return stylizer.stylize(content.pixels, style.pixels, settings)

            result, score, weight = at_content_loss(make, judge, self._settings, best.content)
            closed = (start.style - score.style) / (start.style - best.style)
            seconds = result.timings["total"]
            found.append(Verdict(pair, route, weight, score, closed, seconds))
            pictures.append(result.picture)
        return found, pictures


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The table for docs/encoders.md."""
    lines = ["| pair | made with | content weight | content loss | style loss | gap closed |"]
    lines.append("|---|---|---|---|---|---|")
    for v in verdicts:
        lines.append(
            f"| {v.pair} | {v.route} | {v.content_weight:.2g} | {v.score.content:.3f} "
            f"| {v.score.style:.4f} | {100 * v.gap_closed:.1f} % |"
        )
    for route in dict.fromkeys(v.route for v in verdicts):
        closed = [100 * v.gap_closed for v in verdicts if v.route == route]
        lines.append(
            f"| **all {len(closed)}** | {route} | | | "
            f"| mean **{np.mean(closed):.1f} %**, least {min(closed):.1f} % |"
        )
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    judge = parser.add_mutually_exclusive_group(required=True)
    judge.add_argument("--teacher", type=Path, help="teacher.safetensors as the judge")
    judge.add_argument("--judge", metavar="PACK", help="an encoder pack, such as vgg19")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="the pack that is judged")
    parser.add_argument("--out", type=Path, required=True, help="folder of table and pictures")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=StyleSettings().steps)
    parser.add_argument("--pairs", type=int, default=12, help="at most this many")
    parser.add_argument("--threads", type=int, default=usable_cores())
    return parser.parse_args()


def main() -> None:
    """Judge every pair; write verdicts.json, verdicts.md, sheet.jpg and every picture."""
    options = parse()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    contents, styles = load_pictures(options.size)
    verdicts: list[Verdict] = []
    rows: list[tuple[str, list[Picture]]] = []
    with tempfile.TemporaryDirectory() as folder:
        study = Study(options, Path(folder))
        for content, style in pairs(list(contents), list(styles))[: options.pairs]:
            name = f"{content} × {style}"
            found, pictures = study.verdicts(name, contents[content], styles[style])
            verdicts += found
            rows.append((name, [contents[content], styles[style], *pictures]))
            for verdict, picture in zip(found, pictures, strict=True):
                images.save(picture, options.out / f"{content}-{style}-{verdict.route}.png")
            print(*(f"{v.route} {100 * v.gap_closed:.2f} %," for v in found), name, flush=True)
    headings = ["content", "style", *dict.fromkeys(v.route for v in verdicts)]
    sheet(rows, headings).save(options.out / "sheet.jpg", quality=80)
    (options.out / "verdicts.md").write_text(markdown(verdicts), encoding="utf-8")
    facts = {"size": options.size, "steps": options.steps, "judge": study.network.name}
    facts["verdicts"] = [asdict(v) for v in verdicts]
    (options.out / "verdicts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
