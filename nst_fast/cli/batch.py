"""``nst-fast batch``: many pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from nst_fast import images
from nst_fast.batch import (
    BatchRunner,
    Engine,
    Observer,
    Summary,
    inputs,
    local,
    manifest,
    storage,
)
from nst_fast.batch.estimate import seconds as estimated_seconds
from nst_fast.batch.machine import Layout, gpus_of
from nst_fast.batch.metrics import Metrics
from nst_fast.batch.ray_engine import cluster
from nst_fast.batch.runner import Execute
from nst_fast.cli.console import FAILED, INTERRUPTED, fail
from nst_fast.cli.options import read, with_options
from nst_fast.cli.progress import Bars, Lines, duration
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import BatchError

PARTIAL = 3

EXAMPLES = """Examples:

nst-fast batch photos/ --style painting.jpg -o results/

nst-fast batch 'shots/*.png' --style a.jpg --style b.jpg --style-blend 0.7,0.3 -o out/

nst-fast batch --manifest pictures.csv -o s3://bucket/out --journal journal/"""


@with_options(StyleSettings, EngineOptions)
def batch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUTS", help="Pictures, folders, globs or URLs."),
    ] = None,
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR|URL", help="Folder of the results.")
    ],
    style: Annotated[
        list[str] | None, typer.Option(metavar="FILE|URL", help="To paint like; several blend.")
    ] = None,
    manifest_file: Annotated[
        str | None,
        typer.Option("--manifest", metavar="FILE|URL", help="Pictures as CSV, JSONL or Parquet."),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="TEMPLATE", help="Of results: {folder} {stem} {name} {style}.")
    ] = inputs.DEFAULT_NAME,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names to take from folders.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names to leave out.")
    ] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Do the i-th of n parts.")] = "1/1",
    warm_start: Annotated[
        bool, typer.Option(help="Start each picture of a folder from the result before it.")
    ] = False,
    journal: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of journal and report; else the output.")
    ] = None,
    redo: Annotated[bool, typer.Option(help="Make again what has other settings.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="Of a picture, after passing faults.")] = 2,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Of a picture; then its worker is replaced."),
    ] = None,
    max_errors: Annotated[
        int | None, typer.Option(min=0, help="Stop once more pictures have failed.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what there is to do and how long.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; by default to suit.")] = None,
    where: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Processes here, or a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; by default one on this machine.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics on this port.")
    ] = None,
    together: Annotated[int, typer.Option(min=1, max=64, help="Pictures in a step, on a GPU.")] = 1,
    progress: Annotated[
        bool, typer.Option("--progress/--quiet", help="Report, or only fail.")
    ] = True,
    **options: Any,
) -> None:
    """Repaint many pictures; run the same command again to go on after a stop.

    Exit codes: 0 all done, 3 some pictures failed, 1 stopped or nothing done.
    """
    chosen = read(StyleSettings, options)
    filters = inputs.Filters(tuple(include or ()), tuple(exclude or ()))
    for url in style or ():
        images.decode(storage.read(url), name=url)
    jobs = inputs.to_jobs(
        _entries(sources or [], manifest_file, filters, output),
        styles=style or (),
        output=output,
        name=name,
        settings=chosen,
    )
    jobs = inputs.as_frames(jobs) if warm_start else jobs
    jobs = inputs.shard(jobs, shard, output=output, by_folder=warm_start)
    engine = replace(read(Engine, options), together=together)
    gpus = gpus_of(engine) if where == "local" else 0
    layout = Layout.choose(
        workers=workers, threads=engine.threads, settings=chosen, most=len(jobs), gpus=gpus
    )
    engine = replace(engine, threads=layout.threads)
    runner = BatchRunner(
        jobs,
        journal or _local_folder(output),
        engine=engine,
        execute=_execution(
            where, address, retries=retries, timeout=timeout, workers=workers, layout=layout
        ),
        max_errors=max_errors,
        redo=redo,
        name="" if shard == "1/1" else shard.replace("/", "-of-"),
    )
    if dry_run:
        _tell_plan(runner, engine, layout)
    else:
        _run(runner, progress, metrics_port)


def _execution(
    where: str,
    address: str | None,
    *,
    retries: int,
    timeout: float | None,
    workers: int | None,
    layout: Layout,
) -> Execute:
    if where == "ray":
        if timeout is not None:
            raise BatchError("--timeout is for --engine local, whose workers can be killed")
        return cluster(address, retries, workers)
    if address is not None:
        raise BatchError("--address is that of a Ray cluster: give --engine ray too")
    return local(layout.workers, retries, timeout)


def _entries(
    sources: list[str], manifest_file: str | None, filters: inputs.Filters, output: str
) -> Iterator[manifest.Entry]:
    if not sources and manifest_file is None:
        raise BatchError("give INPUTS to repaint, or a --manifest")
    listed = manifest.read(manifest_file) if manifest_file else ()
    return itertools.chain(inputs.entries(sources, filters, output), listed)


def _local_folder(output: str) -> str:
    storage.check_writable(output)
    if storage.is_remote(output):
        raise BatchError(
            f"--output {output} cannot hold the journal, which grows line by line: "
            "name a local folder for it with --journal"
        )
    return output


def _tell_plan(runner: BatchRunner, engine: Engine, layout: Layout) -> None:
    todo, done = runner.plan()
    typer.echo(f"pictures: {len(todo)} to make, {done} done before")
    typer.echo(f"{layout.workers} workers, threads of each: {layout.threads}")
    if todo:
        seconds = estimated_seconds(todo, engine, layout.workers)
        told = "unknown: none of the first pictures can be used"
        typer.echo(f"time: {told if seconds is None else f'about {duration(seconds)}'}")


def _run(runner: BatchRunner, progress: bool, metrics_port: int | None) -> None:
    console = Console(stderr=True)
    with ExitStack() as stack:
        observers: list[Observer] = []
        if metrics_port is not None:
            observers.append(stack.enter_context(Metrics(metrics_port)))
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
