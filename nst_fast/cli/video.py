"""``nst-fast video``: a film."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from nst_fast.cli.console import INTERRUPTED, fail
from nst_fast.cli.options import Preset, read, with_options
from nst_fast.cli.progress import duration
from nst_fast.config import PRESETS, EngineOptions, StyleSettings
from nst_fast.stylizer import Stylizer
from nst_fast.video_options import VideoOptions

if TYPE_CHECKING:
    from nst_fast.video import Summary

EXAMPLES = """Examples:

nst-fast video clip.mp4 painting.jpg -o painted.mp4

nst-fast video clip.mp4 painting.jpg -o try.mp4 --frames 24 --preset draft

nst-fast video 'shots/*.png' painting.jpg -o frames/ --size none"""


@with_options(StyleSettings, EngineOptions, VideoOptions)
def video(
    source: Annotated[
        str, typer.Argument(metavar="FILM", help="The film, folder of frames or glob to repaint.")
    ],
    style: Annotated[
        list[Path],
        typer.Argument(metavar="STYLE…", help="The picture to paint like, or several to blend."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE|DIR", help="A film (.mp4, .mov, .mkv), or a folder."
        ),
    ],
    *,
    preset: Preset = "standard",
    progress: Annotated[
        bool,
        typer.Option("--progress/--quiet", help="Show progress and a line at the end, or nothing."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary of the run as JSON.")
    ] = False,
    **chosen: Any,
) -> None:
    """Repaint a film without flicker; run the same command again to go on after a stop."""
    from nst_fast.video import stylize_video

    options, settings = read(VideoOptions, chosen), read(StyleSettings, chosen, PRESETS[preset])
    stylizer = Stylizer(read(EngineOptions, chosen))
    console = Console(stderr=True)
    bars = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*bars, console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("", total=None)
        try:
            summary = stylize_video(
                stylizer,
                source,
                style,
                output,
                settings,
                options=options,
                observer=lambda _, number, total: bar.update(
                    task, completed=number, total=total or None
                ),
            )
        except KeyboardInterrupt:
            told = "interrupted; run the same command again to go on"
            raise typer.Exit(fail(told, INTERRUPTED)) from None
    if as_json:
        typer.echo(json.dumps({"output": str(output)} | asdict(summary), indent=2))
    elif progress:
        typer.echo(_line(output, summary))


def _line(output: Path, summary: Summary) -> str:
    if not summary.frames:
        return f"{output}: done before; --redo makes it again"
    before = summary.frames - summary.made
    told = f"{output}: {summary.frames} frames{f', {before} done before' if before else ''}"
    told += f", {summary.cuts} shot{'s' * (summary.cuts != 1)} in {duration(summary.seconds)}"
    if summary.flicker is not None:
        told += f", flicker {summary.flicker:.1f} levels"
    if summary.alone_flicker is not None:
        told += f" (frame by frame {summary.alone_flicker:.1f})"
    return told
