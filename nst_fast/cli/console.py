"""Exit codes, error lines and interruption: what every command does alike."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from nst_fast.errors import one_line

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def fail(message: str, code: int) -> int:
    """Print one line of error and return the code."""
    typer.echo(f"error: {one_line(message)}", err=True)
    return code


@contextmanager
def interruptible() -> Iterator[None]:
    """End a command with one line when Ctrl-C stops what is inside."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(fail("interrupted; nothing was saved", INTERRUPTED)) from None


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C inside into a question to ask between steps: is it time to stop?

    An exception could come between any two lines of a step. The second Ctrl-C raises
    KeyboardInterrupt at once.
    """
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
