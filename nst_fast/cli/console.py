"""Exit codes, error lines and interruption: what every command does alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def fail(message: str, code: int) -> int:
    """Print one line of error and return the code."""
    typer.echo(f"error: {' '.join(message.splitlines())}", err=True)
    return code


@contextmanager
def interruptible() -> Iterator[None]:
    """End a command with one line when Ctrl-C stops what is inside."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(fail("interrupted; nothing was saved", INTERRUPTED)) from None
