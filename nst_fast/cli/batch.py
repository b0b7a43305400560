"""``nst-fast batch``: many pictures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nst_fast.batch_options import BatchOptions
from nst_fast.cli.console import FAILED, INTERRUPTED, fail
from nst_fast.cli.options import Preset, SettingsFile, read, read_all, with_options
from nst_fast.cli.progress import Bars, Lines, duration
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import BatchError
from nst_fast.making_options import MakingOptions
from nst_fast.output_options import OutputOptions

if TYPE_CHECKING:
    from nst_fast.batch import BatchRunner, Observer, Summary

PARTIAL = 3

EXAMPLES = """Examples:

nst-fast batch photos/ --style painting.jpg -o results/

nst-fast batch 'shots/*.png' --style a.jpg --style b.jpg --style-blend 0.7,0.3 -o out/

nst-fast batch photos/ --style painting.jpg -o out/ --compare jpg --steps 1000 --save-every 100

nst-fast batch --manifest pictures.csv -o s3://bucket/out --journal journal/"""


@with_options(StyleSettings, EngineOptions, OutputOptions, MakingOptions, BatchOptions)
def batch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUTS", help="The pictures, folders, globs or URLs to repaint."),
    ] = None,
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR|URL", help="The folder of the results.")
    ],
    style: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|URL", help="The picture to paint like; given several times, they blend."
        ),
    ] = None,
    preset: Preset = "standard",
    settings: SettingsFile = None,
    manifest: Annotated[
        str | None,
        typer.Option(metavar="FILE|URL", help="A table of pictures as CSV, JSON lines or Parquet."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The local folder of journal and report; by default the output's."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do and how long it takes.")
    ] = False,
    progress: Annotated[
        bool,
        typer.Option("--progress/--quiet", help="Show progress and a line at the end, or nothing."),
    ] = True,
    **chosen: Any,
) -> None:
    """Repaint many pictures; run the same command again to go on after a stop.

    Exit codes: 0 all done, 3 some pictures failed, 1 stopped or nothing done.
    """
    from nst_fast import images
    from nst_fast.batch import BatchRunner, find_jobs, finding, storage

    options = read(BatchOptions, chosen)
    style_settings, engine, saving = read_all(chosen, preset, settings)
    for url in (*(style or ()), *style_settings.mask_paths):
        images.decode(storage.read(url), name=url)
    found = find_jobs(
        sources or [],
        output=output,
        styles=style or (),
        manifest_url=manifest,
        settings=style_settings,
        options=options,
        saving=saving,
        making=read(MakingOptions, chosen),
    )
    if progress and found.left_out:
        typer.echo(finding.told(found.left_out), err=True)
    folder = journal or _local_folder(output)
    runner = BatchRunner(found.jobs, folder, engine=engine, options=options)
    if dry_run:
        _tell_plan(runner)
    else:
        _run(runner, options, progress)


def _local_folder(output: str) -> str:
    from nst_fast.batch import storage

    storage.check_writable(output)
    if storage.is_remote(output):
        raise BatchError(
            f"--output {output} cannot hold the journal, which grows line by line: "
            "name a local folder for it with --journal"
        )
    return output


def _tell_plan(runner: BatchRunner) -> None:
    todo, done = runner.plan()
    typer.echo(f"pictures: {len(todo)} to make, {done} done before")
    if todo:
        layout, seconds = runner.layout(todo), runner.estimate(todo)
        typer.echo(f"{layout.workers} workers, threads of each: {layout.threads}")
        told = "unknown: none of the first pictures can be used"
        typer.echo(f"time: {told if seconds is None else f'about {duration(seconds)}'}")


def _run(runner: BatchRunner, options: BatchOptions, progress: bool) -> None:
    from nst_fast.batch.metrics import Metrics

    console = Console(stderr=True)
    with ExitStack() as stack:
        observers: list[Observer] = []
        if options.metrics_port is not None:
            observers.append(
                stack.enter_context(Metrics(options.metrics_port, options.metrics_host))
            )
        if progress:
            shown = Bars(console) if console.is_terminal else Lines()
            observers.append(stack.enter_context(shown))
        try:
            summary = runner.run(observers)
        except KeyboardInterrupt:
            told = "interrupted; run the same command again to go on"
            raise typer.Exit(fail(told, INTERRUPTED)) from None
    if progress:
        typer.echo(_line(summary, runner.report))
    raise typer.Exit(_code(summary))


def _line(summary: Summary, report: Path) -> str:
    counts: Mapping[str, int] = {
        "done": summary.done,
        "done before": summary.skipped,
        "failed": summary.failed,
        "not come to": summary.left,
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no pictures"
    return f"{told}, in {duration(summary.seconds)}: {report}"


def _code(summary: Summary) -> int:
    if summary.left or (summary.failed and not summary.done + summary.skipped):
        return FAILED
    return PARTIAL if summary.failed else 0
