"""The ``nst-fast`` command: the only room that prints.

Results go to stdout; progress and errors to stderr. Every error that nst-fast raises on purpose is
one line that starts with ``error:``. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 a
batch of which some pictures failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

import nst_fast
from nst_fast.cli.batch import batch
from nst_fast.cli.bench import bench
from nst_fast.cli.console import FAILED, MISUSED, fail
from nst_fast.cli.info import info
from nst_fast.cli.models import models
from nst_fast.cli.settings import as_option
from nst_fast.cli.stylize import stylize
from nst_fast.errors import NstError, SettingsError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(stylize)
app.command()(batch)
app.command()(info)
app.command()(bench)
app.add_typer(models, name="models")


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
    try:
        return app(words, prog_name="nst-fast", standalone_mode=False) or 0
    except SettingsError as error:
        return fail(as_option(str(error)), MISUSED)
    except NstError as error:
        return fail(str(error), FAILED)
    except TyperException as error:
        return fail(getattr(error, "format_message", error.__str__)(), MISUSED)
    except MemoryError:
        return fail("not enough memory; choose a smaller --size", FAILED)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
