"""``nst-fast stylize``: one picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nst_fast import images
from nst_fast.cli.console import INTERRUPTED, interruptible, notes, stop_request
from nst_fast.cli.making import Compare, Extras, Plot, Record, RecordEvery, Resume, SaveEvery
from nst_fast.cli.options import Preset, SettingsFile, read_all, with_options
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.making import Recording
from nst_fast.making_options import RECORD_EVERY
from nst_fast.output_options import OutputOptions
from nst_fast.result import Report, Result
from nst_fast.run import Run
from nst_fast.settings_file import check_target, write
from nst_fast.stylizer import Stylizer

EXAMPLES = """Examples:

nst-fast stylize photo.jpg painting.jpg -o stylised.png

nst-fast stylize photo.jpg painting.jpg -o draft.png --preset draft

nst-fast stylize photo.jpg painting.jpg -o faithful.png --content-weight 0.3

nst-fast stylize photo.jpg painting.jpg -o large.png --size 1024 --scales 3 --style-scale 0.7

nst-fast stylize photo.jpg night.jpg waves.jpg -o blend.png --style-blend 0.7,0.3

nst-fast stylize photo.jpg night.jpg waves.jpg -o o.png --style-mask sky.png --style-mask sea.png

nst-fast stylize photo.jpg painting.jpg -o long.png --steps 1000 --save-every 50

nst-fast stylize photo.jpg painting.jpg -o print.tif --bits 16 --profile keep"""


@with_options(StyleSettings, EngineOptions, OutputOptions)
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
    preset: Preset = "standard",
    settings: SettingsFile = None,
    save_settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file to write these settings to."),
    ] = None,
    progress: Annotated[
        bool,
        typer.Option("--progress/--quiet", help="Show progress and a line at the end, or nothing."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary of the run as JSON.")
    ] = False,
    save_every: SaveEvery = None,
    resume: Resume = None,
    plot: Plot = None,
    compare: Compare = None,
    record: Record = None,
    record_every: RecordEvery = RECORD_EVERY,
    **options: Any,
) -> None:
    """Repaint CONTENT in the style of one or several STYLE pictures.

    Ctrl-C stops after the step at hand and saves the best picture so far, with --save-every the
    state to go on from as well; a second one stops at once and saves nothing.
    """
    chosen, engine, saving = read_all(options, preset, settings)
    inputs = [content, *style, *filter(None, [chosen.init_path]), *map(Path, chosen.mask_paths)]
    images.check_output(output, inputs)
    images.check_options(output, saving)
    extras = Extras(plot, compare, record)
    extras.check(output, inputs)
    if save_settings is not None:
        check_target(save_settings)
    state = None if save_every is None else output.with_name(f"{output.name}.state")
    with interruptible(state), notes(progress, all_of_them=engine.max_memory is not None):
        stylizer = Stylizer(engine)
        with stylizer.start(
            content, style, chosen, save=state, save_every=save_every or 1, resume=resume
        ) as run:
            with Recording(run, extras.recorder(), record_every) as recording:
                finished = optimise(run, progress, see=recording.see)
            if not finished:
                run.stop()
            left, result = run.steps_left, run.result()
            result.save(output, saving)
        if save_settings is not None:
            write(save_settings, [chosen, engine, saving])
        extras.write(content, style, result)
        further = "" if state is None else _further(state, left)
    end(
        output,
        result,
        finished=finished,
        progress=progress,
        as_json=as_json,
        further=further,
    )


def _further(state: Path, left: int) -> str:
    """How to go on where steps are ``left``; else the state of the run is not needed any more."""
    if not left:
        state.unlink(missing_ok=True)
    return f"; to go on, repeat the command with --resume {state}" if state.exists() else ""


def end(
    output: Path,
    result: Result,
    *,
    finished: bool,
    progress: bool,
    as_json: bool,
    further: str = "",
) -> None:
    """Tell of a picture that is saved, and how to go ``further`` where steps are left.

    Raises ``typer.Exit`` where Ctrl-C ended it.
    """
    if as_json:
        summary = {"output": str(output), "finished": finished} | result.summary()
        typer.echo(json.dumps(summary, indent=2))
    elif progress:
        typer.echo(_line(output, result))
    for note in result.notes:
        typer.echo(note, err=True)
    done = f"step {len(result.reports)} of {result.settings.steps}"
    if not finished:
        typer.echo(f"interrupted after {done}; saved the best picture so far{further}", err=True)
        raise typer.Exit(INTERRUPTED)
    if further:
        typer.echo(f"the time was over after {done}{further}", err=True)


def optimise(
    run: Run,
    show: bool,
    steps: int | None = None,
    see: Callable[[Report], object] = lambda report: None,
) -> bool:
    """Take every step, or so many; False where Ctrl-C ended it before the last.

    Each report goes to ``see``, too.
    """
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
            see(report)
            if report.step == steps:
                return True
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
