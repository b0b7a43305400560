"""The pictures and tables of docs/guide.md, and docs/img/demo.jpg: ``make guide``.

    python tools/guide.py [NAME ...] [--text]

Each sheet shows one setting at several values, on a pair of pictures from ``examples/``, everything
else at its default; the default itself is always among the values. A NAME makes that sheet alone.
``--text`` draws nothing and only writes the generated blocks of the guide: what stands between
``<!-- guide: NAME -->`` and ``<!-- /guide -->``. ``tests/test_docs.py`` fails where they are stale.
"""

from __future__ import annotations

import argparse
import io
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from nst_fast import EngineOptions, OutputOptions, StyleSettings, Stylizer
from nst_fast.cli.options import PANELS, descriptions, typed
from nst_fast.config import PRESETS

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide.md"
PICTURES = ROOT / "docs" / "img" / "guide"
EXAMPLES = ROOT / "examples"
MAX_BYTES = 120_000  # of a sheet
DEMO_BYTES = 210_000
TILE = 400  # pixels: the width of a picture on a sheet
SMALL_TILE = 320  # of a sheet with details, which has two rows
GAP = 6
LINE = 24  # pixels: the height of a label
BLOCK = re.compile(r"(<!-- guide: (\w+) -->\n).*?(<!-- /guide -->)", re.DOTALL)

TABLES = {"settings": StyleSettings, "engine": EngineOptions, "output": OutputOptions}
DEFAULTS = StyleSettings()
Region = tuple[float, float, float, float]  # left, top, width, height: shares of a picture


@dataclass(frozen=True)
class Sheet:
    """One setting at several values.

    Attributes:
        setting: a field of ``StyleSettings``, or "preset".
        values: besides the default, which takes its place among numbers, and comes first elsewhere.
        pair: content and style pictures; several styles are blended.
        detail: what is shown enlarged, below the pictures or, unless ``whole``, in their place.
        whole: show the whole pictures.
        labels: names for values too long to show, in the order of ``values``.
        also: other settings that are not at their defaults.
        most: bytes of the file.
    """

    setting: str
    values: tuple[Any, ...]
    pair: tuple[str, ...]
    detail: Region | None = None
    whole: bool = True
    labels: tuple[str, ...] = ()
    also: Mapping[str, Any] = field(default_factory=dict)
    most: int = MAX_BYTES

    def cases(self) -> list[tuple[str, StyleSettings]]:
        """The values with their labels, the default among them."""
        if self.setting == "preset":
            return [
                (name if changes else f"{name} (default)", StyleSettings.preset(name))
                for name, changes in PRESETS.items()
            ]
        default = getattr(DEFAULTS, self.setting)
        names = dict(zip(map(repr, self.values), self.labels, strict=False))
        values = [default, *(value for value in self.values if value != default)]
        if isinstance(default, int | float):
            values.sort()
        return [
            (
                names.get(repr(value), typed(value) if value or value == 0 else "none")
                if value != default
                else f"{self.default} (default)",
                StyleSettings(**{**self.also, self.setting: value}),
            )
            for value in values
        ]

    @property
    def tile(self) -> int:
        """The width of its pictures in pixels."""
        small = (self.whole and self.detail) or self.most < MAX_BYTES
        return SMALL_TILE if small else TILE

    @property
    def default(self) -> str:
        """As it is typed, or in words where it is long."""
        words = {"style_layers": "all five", "style_blend": "equal shares", "style_mask": "none"}
        return words.get(self.setting) or typed(getattr(DEFAULTS, self.setting))

    @property
    def option(self) -> str:
        """As it is typed."""
        return f"--{self.setting.replace('_', '-')}"


LAKE, CANAL, STILL_LIFE = "content_lake.jpg", "content_canal.jpg", "content_still_life.jpg"
DUSK = "content_dusk.jpg"
SWIRLS, GLASS = "style_swirls.jpg", "style_glass.jpg"
WOODCUT, MOSAIC = "style_woodcut.jpg", "style_mosaic.jpg"
LAND, WATER, ISLAND = "mask_land.png", "mask_water.png", "mask_island.png"
MIDDLE: Region = (0.35, 0.35, 0.3, 0.3)

SHEETS = (
    Sheet("preset", (), (CANAL, GLASS), detail=MIDDLE),
    Sheet("content_weight", (0.01, 0.5, 2.0), (LAKE, SWIRLS)),
    Sheet("style_scale", (0.5, 2.0), (STILL_LIFE, MOSAIC)),
    Sheet("size", (256, 1024), (CANAL, WOODCUT), detail=MIDDLE),
    Sheet("steps", (8, 24, 384), (STILL_LIFE, GLASS)),
    Sheet("scales", (1, 3), (LAKE, WOODCUT)),
    Sheet("smoothing", (0.0, 0.05), (LAKE, SWIRLS), detail=(0.5, 0.3, 0.25, 0.25)),
    Sheet("tv_weight", (0.0, 0.1), (STILL_LIFE, GLASS), detail=(0.15, 0.5, 0.3, 0.3)),
    Sheet("style_loss", ("whitened", "wasserstein"), (CANAL, MOSAIC)),
    Sheet("shift", (0.0, 2.0), (STILL_LIFE, GLASS)),
    Sheet("style_space", ("encoder",), (LAKE, SWIRLS), detail=(0.5, 0.3, 0.25, 0.25)),
    Sheet(
        "style_layers",
        ({"relu1_1": 1, "relu2_1": 1}, {"relu3_1": 1}, {"relu4_1": 1, "relu5_1": 1}),
        (STILL_LIFE, SWIRLS),
        labels=("relu1_1, relu2_1", "relu3_1", "relu4_1, relu5_1"),
    ),
    Sheet(
        "content_layers",
        ({"relu2_2": 1}, {"relu5_1": 1}),
        (CANAL, SWIRLS),
        labels=("relu2_2", "relu5_1"),
    ),
    Sheet(
        "init",
        ("transfer", "noise", str(EXAMPLES / SWIRLS)),
        (LAKE, SWIRLS),
        labels=("transfer", "noise", SWIRLS),
    ),
    Sheet("init_noise", (0.0, 0.1), (DUSK, SWIRLS)),
    Sheet("style_blend", ((3, 1), (1, 3)), (CANAL, SWIRLS, WOODCUT)),
    Sheet(
        "style_mask",
        ((str(EXAMPLES / LAND), str(EXAMPLES / WATER)),),
        (LAKE, SWIRLS, MOSAIC),
        labels=(f"{LAND}, {WATER}",),
        most=42_000,
    ),
    Sheet(
        "content_mask",
        (str(EXAMPLES / ISLAND),),
        (LAKE, WOODCUT),
        labels=(ISLAND,),
        most=36_000,
    ),
    Sheet("colour", ("linear", "luminance", "content"), (STILL_LIFE, SWIRLS)),
    Sheet("margin", (0, 64), (STILL_LIFE, GLASS), detail=(0.8, 0.0, 0.2, 0.2), whole=False),
    Sheet("optimizer", ("adam",), (LAKE, WOODCUT)),
)
DEMO = ((LAKE, SWIRLS), (CANAL, MOSAIC), (STILL_LIFE, GLASS))


class Studio:
    """Makes each picture once."""

    def __init__(self) -> None:
        self._stylizer = Stylizer()
        self._make = cache(self._stylize)
        self.environment = self._stylizer.environment

    def picture(self, pair: tuple[str, ...], settings: StyleSettings) -> Image.Image:
        return self._make(pair, settings)

    def _stylize(self, pair: tuple[str, ...], settings: StyleSettings) -> Image.Image:
        content, *styles = (EXAMPLES / name for name in pair)
        return self._stylizer.stylize(content, styles, settings).image


def scaled(image: Image.Image, width: int) -> Image.Image:
    """At this width: shrunk smoothly, or enlarged by repeating pixels."""
    smaller = width < image.width
    method = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
    return image.resize((width, round(image.height * width / image.width)), method)


def cut(image: Image.Image, region: Region) -> Image.Image:
    """The part of a picture that a region covers."""
    left, top, width, height = (
        round(share * side) for share, side in zip(region, image.size * 2, strict=True)
    )
    return image.crop((left, top, left + width, top + height))


def draw(sheet: Sheet, studio: Studio) -> Image.Image:
    """The pictures of a sheet in a row, each under its label, enlarged details below."""
    columns, tile = [], sheet.tile
    for label, settings in sheet.cases():
        made = studio.picture(sheet.pair, settings)
        views = [made] if sheet.whole else []
        views += [cut(made, sheet.detail)] if sheet.detail else []
        columns.append((label, [scaled(view, tile) for view in views]))
    rises = [max(view.height for view in row) for row in zip(*(c[1] for c in columns), strict=True)]
    height = LINE + sum(rises) + GAP * (len(rises) - 1)
    paper = Image.new("RGB", (len(columns) * (tile + GAP) - GAP, height), "white")
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(16)
    for column, (label, views) in enumerate(columns):
        left, top = column * (tile + GAP), LINE
        pen.text((left + 2, 2), label, "black", font)
        for view, rise in zip(views, rises, strict=True):
            paper.paste(view, (left, top))
            top += rise + GAP
    return paper


def demo(studio: Studio) -> Image.Image:
    """Content, style and result, three times; everything at its default."""
    width, height = 360, 270
    paper = Image.new("RGB", (3 * (width + GAP) - GAP, 3 * (height + GAP) - GAP), "white")
    for row, pair in enumerate(DEMO):
        content, style = (Image.open(EXAMPLES / name) for name in pair)
        for column, image in enumerate((content, style, studio.picture(pair, DEFAULTS))):
            shown = scaled(image, width)
            top = max(0, shown.height - height) // 4  # most of a tall style is in its upper part
            shown = shown.crop((0, top, width, top + height))
            paper.paste(shown, (column * (width + GAP), row * (height + GAP)))
    return paper


def save(image: Image.Image, path: Path, most: int = MAX_BYTES) -> None:
    """As a JPEG of the best quality that keeps to so many bytes."""
    for quality in range(90, 20, -2):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() <= most:
            break
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(buffer.getvalue())
    print(f"{path.relative_to(ROOT)}: {buffer.tell() / 1e3:.0f} kB, quality {quality}", flush=True)


def caption(sheet: Sheet) -> str:
    """A sheet in the guide: the picture, and what is in it."""
    labels = ", ".join(label for label, _ in sheet.cases())
    pair = " with ".join(f"`{name}`" for name in sheet.pair)
    also = "".join(f", `--{k.replace('_', '-')} {typed(v)}`" for k, v in sheet.also.items())
    return (
        f"![{sheet.option} {labels}](img/guide/{sheet.setting}.jpg)\n\n"
        f"*`{sheet.option}`: {labels}; {pair}{also}.*"
    )


def table(kind: type) -> Iterator[str]:
    """Every field of a settings class: option, default, description."""
    told = descriptions(kind)
    defaults = {item.name: item.default for item in fields(kind)}
    yield "| option | default | |\n| --- | --- | --- |"
    for name in (name for panel in PANELS.values() for name in panel if name in defaults):
        default, option = typed(defaults[name]).replace(",", ", "), name.replace("_", "-")
        yield f"| `--{option}` | {f'`{default}`' if default else ''} | {told[name]} |"


def presets() -> Iterator[str]:
    """What each preset changes."""
    yield "| preset | is |\n| --- | --- |"
    for name, changes in PRESETS.items():
        options = " ".join(f"--{key.replace('_', '-')} {typed(v)}" for key, v in changes.items())
        yield f"| `{name}` | {f'`{options}`' if options else 'the defaults'} |"


def block(name: str) -> str:
    """Text of a generated block."""
    if name == "presets":
        return "\n".join(presets())
    if name in TABLES:
        return "\n".join(table(TABLES[name]))
    return caption(next(sheet for sheet in SHEETS if sheet.setting == name))


def filled(text: str) -> str:
    """The guide with every block made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[3]}", text)


def main() -> None:
    """Draw the sheets, and write the blocks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = ["demo", *(sheet.setting for sheet in SHEETS)]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--text", action="store_true", help="draw nothing, write the blocks alone")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no sheet {', '.join(sorted(unknown))}")
    wanted = [] if options.text else options.names or names
    began = time.perf_counter()
    studio = Studio() if wanted else None
    if studio is not None and "demo" in wanted:
        save(demo(studio), PICTURES.parent / "demo.jpg", DEMO_BYTES)
    for sheet in SHEETS:
        if studio is not None and sheet.setting in wanted:
            save(draw(sheet, studio), PICTURES / f"{sheet.setting}.jpg", sheet.most)
    GUIDE.write_text(filled(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
    if studio is not None:
        print(f"{time.perf_counter() - began:.0f} s on {studio.environment}")


if __name__ == "__main__":
    main()
