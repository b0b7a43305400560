"""``nst-fast stylize``: one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nst_fast import images
from nst_fast.cli.console import INTERRUPTED, interruptible, notes, stop_request
from nst_fast.cli.options import read, with_options
from nst_fast.config import PRESETS, EngineOptions, PresetName, StyleSettings
from nst_fast.result import Result
from nst_fast.run import Run
from nst_fast.stylizer import Stylizer

EXAMPLES = """Examples:

nst-fast stylize photo.jpg painting.jpg -o stylised.png

nst-fast stylize photo.jpg painting.jpg -o draft.png --preset draft

nst-fast stylize photo.jpg painting.jpg -o faithful.png --content-weight 0.3

nst-fast stylize photo.jpg painting.jpg -o large.png --size 1024 --scales 3 --style-scale 0.7

nst-fast stylize photo.jpg night.jpg waves.jpg -o blend.png --style-blend 0.7,0.3"""


@with_options(StyleSettings, EngineOptions)
def stylize(
    content: Annotated[Path, typer.Argument(metavar="CONTENT", help="The picture to repaint.")],
    style: Annotated[
        list[Path],
        typer.Argument(metavar="STYLE…", help="The picture to paint like, or several to blend."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file of the result.")
    ],
    *,
    preset: Annotated[
        PresetName,
        typer.Option(help="Draft to choose a style by, fine for print; options given win."),
    ] = "standard",
    progress: Annotated[
        bool,
        typer.Option("--progress/--quiet", help="Show progress and a line at the end, or nothing."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary of the run as JSON.")
    ] = False,
    **options: Any,
) -> None:
    """Repaint CONTENT in the style of one or several STYLE pictures.

    Ctrl-C stops after the step at hand and saves the best picture so far; a second one stops at
    once and saves nothing.
    """
    chosen = read(StyleSettings, options, PRESETS[preset])
    images.check_output(output, [content, *style, *filter(None, [chosen.init_path])])
    engine = read(EngineOptions, options)
    with interruptible(), notes(progress, all_of_them=engine.max_memory is not None):
        stylizer = Stylizer(engine)
        with stylizer.start(content, style, chosen) as run:
            finished = _optimise(run, progress)
            run.stop()
            result = run.result()
        result.save(output)
    if as_json:
        summary = {"output": str(output), "finished": finished} | result.summary()
        typer.echo(json.dumps(summary, indent=2))
    elif progress:
        typer.echo(_line(output, result))
    if not finished:
        done = f"step {len(result.reports)} of {chosen.steps}"
        typer.echo(f"interrupted after {done}; saved the best picture so far", err=True)
        raise typer.Exit(INTERRUPTED)


def _optimise(run: Run, show: bool) -> bool:
    """Take every step; False where Ctrl-C ended it before the last."""
    console = Console(stderr=True)
    columns = TextColumn("step {task.fields[step]}"), BarColumn(), TimeRemainingColumn()
    losses = TextColumn("loss {task.fields[loss]}")
    progress = Progress(
        *columns, losses, console=console, disable=not show or not console.is_terminal
    )
    with progress as bar, stop_request() as stop:
        task = bar.add_task("", total=1.0, step=f"0/{run.settings.steps}", loss="")
        for report in run:
            bar.update(
                task,
                completed=report.progress,
                step=f"{report.step}/{report.steps}",
                loss=_losses(report.loss, report.terms),
            )
            if stop():
                break
    return run.finished


def _losses(loss: float, terms: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.4g}" for name, value in terms.items() if "/" not in name)
    return f"{loss:.4g} ({parts})"


def _line(output: Path, result: Result) -> str:
    width, height = result.picture.size
    engine = "{provider} {precision}".format_map(result.environment)
    seconds, steps = result.timings["total"], len(result.reports)
    losses = _losses(result.loss, result.terms)
    return (
        f"{output}: {width}×{height}, {steps} steps in {seconds:.1f} s on {engine}, loss {losses}"
    )
