"""The ``nst-fast`` command: the only module that prints.

Results go to stdout; progress and errors to stderr. Every error that nst-fast raises on purpose is
one line that starts with ``error:``. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130
interrupted.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.exceptions import TyperException

import nst_fast
from nst_fast import encoders, images, kernels, runtime
from nst_fast.config import (
    DEFAULT_ENCODER,
    PlanName,
    PrecisionName,
    ProviderName,
    StyleSettings,
)
from nst_fast.device import cpu_features, usable_cores
from nst_fast.engine import Result, Run, Stylizer
from nst_fast.errors import EncoderError, NstError, SettingsError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
DEFAULTS = StyleSettings()

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fast neural style transfer by optimisation.",
)
models = typer.Typer(help="List, build, find and verify encoders.", rich_markup_mode=None)
app.add_typer(models, name="models")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: words after ``nst-fast``; None takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return app(words, prog_name="nst-fast", standalone_mode=False) or 0
    except SettingsError as error:
        return _fail(_as_option(str(error)), MISUSED)
    except NstError as error:
        return _fail(str(error), FAILED)
    except TyperException as error:
        return _fail(getattr(error, "format_message", error.__str__)(), MISUSED)
    except MemoryError:
        return _fail("not enough memory; choose a smaller --size", FAILED)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED


def _fail(message: str, code: int) -> int:
    typer.echo(f"error: {' '.join(message.splitlines())}", err=True)
    return code


def _as_option(message: str) -> str:
    """Name a setting at the start of a message as its option is spelled."""
    name = re.match(r"\w*", message)
    assert name is not None
    known = {item.name for item in fields(StyleSettings)} | {"threads"}
    return f"--{name[0].replace('_', '-')}{message[name.end() :]}" if name[0] in known else message


# ---------------------------------------------------------------------------------------- stylize


def _descriptions() -> dict[str, str]:
    """What the docstring of StyleSettings says about each setting."""
    section = (inspect.getdoc(StyleSettings) or "").partition("Attributes:")[2]
    entries = re.split(r"\n    (?=\w+: )", section.partition("\n\n")[0])
    pairs = (entry.split(": ", 1) for entry in entries[1:])
    return {name: " ".join(text.replace("``", "").split()) for name, text in pairs}


_METAVARS = {
    "size": "PIXELS|none",
    "style_layers": "TAP=WEIGHT,…",
    "content_layers": "TAP=WEIGHT,…",
    "style_blend": "SHARE,…",
    "init": "content|noise|IMAGE",
}


def _with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Replace ``**settings`` in a command's signature by one option for each of StyleSettings.

    Types, defaults and descriptions are read from there, so that a setting is written once.
    """
    descriptions, hints = _descriptions(), get_type_hints(StyleSettings)
    signature = inspect.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for name in (item.name for item in fields(StyleSettings)):
        metavar, default = _METAVARS.get(name), getattr(DEFAULTS, name)
        option = typer.Option(help=descriptions.get(name), metavar=metavar)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_text(default) if metavar else default,
                annotation=Annotated[str if metavar else hints[name], option],
            )
        )
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def _text(value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, Mapping):
        return ",".join(f"{tap}={weight:g}" for tap, weight in value.items())
    if isinstance(value, tuple):
        return ",".join(f"{share:g}" for share in value)
    return str(value).lower()


def _parse_layers(name: str, text: str) -> dict[str, float]:
    """Read "relu1_1=1,relu3_1=0.5"; a tap without a weight counts 1; empty text names none."""
    weights: dict[str, float] = {}
    for item in text.split(",") if text else []:
        tap, _, weight = item.strip().partition("=")
        if tap in weights:
            raise SettingsError(f"{name} names {tap} twice")
        weights[tap] = _parse_number(name, weight or "1", "TAP=WEIGHT,TAP=WEIGHT")
    return weights


def _parse_number(name: str, text: str, form: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{name}: {text!r} is not a number; write {form}") from None


def _parse(name: str, value: Any) -> Any:
    """An option's value as StyleSettings takes it."""
    if name in ("style_layers", "content_layers"):
        return _parse_layers(name, value)
    if name == "style_blend":
        return tuple(_parse_number(name, s, "SHARE,SHARE") for s in value.split(",") if value)
    if name == "size":
        if value.lower() == "none":
            return None
        if not re.fullmatch(r"[+-]?\d{1,9}", value):
            raise SettingsError(f"size must be a whole number of pixels, or none, not {value!r}")
        return int(value)
    return value


@app.command()
@_with_settings
def stylize(
    content: Annotated[Path, typer.Argument(metavar="CONTENT", help="The picture to repaint.")],
    style: Annotated[
        list[Path], typer.Argument(metavar="STYLE", help="One or several to paint like.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the result goes.")
    ],
    *,
    encoder: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="See: nst-fast models list.")
    ] = DEFAULT_ENCODER,
    provider: Annotated[ProviderName, typer.Option(help="What runs the encoder.")] = "auto",
    precision: Annotated[PrecisionName, typer.Option(help="Of the encoder.")] = "auto",
    plan: Annotated[PlanName, typer.Option(help="One graph for a step, or two.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="By default every usable core.")] = None,
    progress: Annotated[
        bool, typer.Option("--progress/--quiet", help="Report, or only fail.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    **settings: Any,
) -> None:
    """Repaint CONTENT in the style of one or several STYLE pictures.

    Ctrl-C stops early and saves the best picture so far.
    """
    chosen = StyleSettings(**{name: _parse(name, value) for name, value in settings.items()})
    images.check_output(output, [content, *style, *filter(None, [chosen.init_path])])
    with _interruptible():
        stylizer = Stylizer(
            encoder, provider=provider, precision=precision, plan=plan, threads=threads
        )
        with stylizer.start(content, style, chosen) as run:
            finished = _optimise(run, progress)
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


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(_fail("interrupted; nothing was saved", INTERRUPTED)) from None


def _optimise(run: Run, show: bool) -> bool:
    """Take every step; False where Ctrl-C ended it after the first."""
    console = Console(stderr=True)
    columns = TextColumn("step {task.fields[step]}"), BarColumn(), TimeRemainingColumn()
    losses = TextColumn("loss {task.fields[loss]}")
    with Progress(
        *columns, losses, console=console, disable=not show or not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=1.0, step=f"0/{run.settings.steps}", loss="")
        try:
            for report in run:
                bar.update(
                    task,
                    completed=report.progress,
                    step=f"{report.step}/{report.steps}",
                    loss=_losses(report.loss, report.terms),
                )
        except KeyboardInterrupt:
            if not run.reports:
                raise
            return False
    return True


def _losses(loss: float, terms: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.4g}" for name, value in terms.items() if "/" not in name)
    return f"{loss:.4g} ({parts})"


def _line(output: Path, result: Result) -> str:
    width, height = result.picture.size
    seconds, steps = result.timings["total"], len(result.reports)
    losses = _losses(result.loss, result.terms)
    return f"{output}: {width}×{height}, {steps} steps in {seconds:.1f} s, loss {losses}"


# ------------------------------------------------------------------------------------------- info


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show versions, providers, this CPU and the encoders at hand."""
    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for heading, content in facts.items():
        typer.echo(f"{heading}:")
        for name, value in content.items():
            typer.echo(f"  {name}: {', '.join(value) if isinstance(value, list) else value}")


def _facts() -> dict[str, dict[str, Any]]:
    kernels.cpu_kernels(1)  # says what to do where the compiled module is missing
    from nst_fast import _core

    versions = {"nst-fast": nst_fast.__version__, "python": platform.python_version()}
    return {
        "versions": versions | {"numpy": np.__version__} | runtime.versions(),
        "providers": {p.name: p.problem or list(p.precisions) for p in runtime.providers()},
        "cpu": {
            "model": _cpu_model(),
            "cores": usable_cores(),
            "features": sorted(cpu_features()),
            "kernels": _core.path(),
        },
        "encoders": {e.name: f"{e.state}: {e.path or e.description}" for e in encoders.catalogue()},
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


# ----------------------------------------------------------------------------------------- models

EncoderName = Annotated[str, typer.Argument(metavar="NAME", help="Of an encoder, or its folder.")]


@models.command("list")
def list_encoders() -> None:
    """List the encoders known by name."""
    table = Table("name", "state", "description", "licence", box=None)
    for entry in encoders.catalogue():
        table.add_row(entry.name, entry.state, entry.description, entry.licence)
    Console().print(table)


@models.command("get")
def get_encoder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One that can be downloaded.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A file instead of a download.")] = None,
    pooling: Annotated[encoders.Pooling, typer.Option(help="Of the encoder.")] = "average",
) -> None:
    """Build an encoder from published weights and keep it in the cache."""
    known = encoders.CHECKPOINTS.get(name)
    if known is None:
        choices = ", ".join(encoders.CHECKPOINTS)
        raise EncoderError(f"{name!r} is not an encoder to get; choose from {choices}")
    try:
        from nst_fast.export import build_pack
    except ImportError as error:
        raise EncoderError(
            f'building an encoder needs {error.name}; run: pip install "nst-fast[export]"'
        ) from None
    runtime.choose("cpu", "fp32")  # the pack is checked on it: better missed before the download
    with _interruptible():
        file, source = checkpoint or _download(name), checkpoint.name if checkpoint else known.url

        def build(folder: Path) -> None:
            build_pack(
                folder,
                file,
                name=name,
                architecture=name,
                pooling=pooling,
                source=source,
                licence=known.licence,
            )

        typer.echo(encoders.install_pack(build, name))


def _download(name: str) -> Path:
    """Fetch a checkpoint, showing how far it is."""
    console = Console(stderr=True)
    columns = TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        return encoders.download_checkpoint(name, progress=show)


@models.command("path")
def encoder_path(name: EncoderName) -> None:
    """Print the folder of an encoder."""
    typer.echo(encoders.load(name).path)


@models.command("verify")
def verify_encoders(
    name: Annotated[str | None, typer.Argument(help="By default every encoder at hand.")] = None,
) -> None:
    """Check every file of an encoder against its hash."""
    at_hand = [entry.name for entry in encoders.catalogue() if entry.state != "available"]
    for each in [name] if name else at_hand:
        files = encoders.verify(each)
        typer.echo(f"{each}: {len(files)} files as they should be")
