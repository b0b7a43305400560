"""The commands together, and how each of them ends.

Results go to stdout; progress and errors to stderr. Every error that nst-fast raises on purpose is
one line that starts with ``error:``. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 a
batch of which some pictures failed, 130 interrupted.
"""

from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

import nst_fast
from nst_fast.cli import batch, bench, info, models, replay, stylize, video
from nst_fast.cli.console import FAILED, INTERRUPTED, MISUSED, fail, lasting_streams
from nst_fast.cli.options import as_option
from nst_fast.errors import NstError, SettingsError

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(command: Callable[..., None], epilog: str | None = None) -> None:
    """Take a command in; its docstring is its help, each paragraph as wide as the terminal."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(help=text, epilog=epilog)(command)


_add(stylize.stylize, stylize.EXAMPLES)
_add(replay.replay, replay.EXAMPLES)
_add(batch.batch, batch.EXAMPLES)
_add(video.video, video.EXAMPLES)
_add(info.info)
_add(bench.bench, bench.EXAMPLES)
app.add_typer(models.models, name="models")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nst-fast {nst_fast.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Fast neural style transfer by optimisation."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: words after ``nst-fast``; None takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with lasting_streams() as trouble:
        code = _run(words)
        error = trouble()
        if error is None:
            return code
        if error.errno == errno.EPIPE:  # the reader of our output has left
            return FAILED
        return fail(f"the output cannot be written ({error.strerror})", code or FAILED)


def _run(words: list[str]) -> int:
    try:
        return app(words, prog_name="nst-fast", standalone_mode=False) or 0
    except (NstError, TyperException, MemoryError, OSError) as error:
        return fail(*_told(error))
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)


def _told(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, SettingsError):
        return as_option(str(error)), MISUSED
    if isinstance(error, TyperException):
        return getattr(error, "format_message", error.__str__)(), MISUSED
    if isinstance(error, MemoryError):
        return "not enough memory; choose a smaller --size", FAILED
    return (_reason(error) if isinstance(error, OSError) else str(error)), FAILED


def _reason(error: OSError) -> str:
    """What the system says, and of which file."""
    try:
        os.getcwd()
    except OSError:
        return "the working folder is gone; change to another and run again"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
