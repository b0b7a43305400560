"""Exit codes, error lines, tables, streams and interruption: what every command does alike."""

from __future__ import annotations

import codecs
import errno
import io
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from nst_fast.errors import one_line

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
SPELLED = {
    **{"≥": ">=", "≤": "<=", "×": "x", "…": "...", "–": "-", "—": "-", "µ": "u", "²": "^2"},
    **{"±": "+-", "∝": "~", "→": "->", "‖": "|", "’": "'"},
}


def fail(message: str, code: int) -> int:
    """Print one line of error and return the code."""
    typer.echo(f"error: {one_line(message)}", err=True)
    return code


def print_table(table: Table) -> None:
    """Print a table with every cell whole: a row is a line where no terminal is to hold it.

    A terminal that is too narrow breaks cells into lines and leaves nothing out.
    """
    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    if not sys.stdout.isatty():  # rich would take 80 columns, or what COLUMNS says
        widest = Console(width=sys.maxsize).measure(table).maximum
        console = Console(width=widest)
    console.print(table)


class _Lasting(io.FileIO):
    """The raw end of a stream: a write that fails is remembered, and ends nothing.

    Attributes:
        error: of the first write that failed.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or behave as if."""
        try:
            return super().write(data) or 0
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes


@contextmanager
def lasting_streams() -> Iterator[Callable[[], OSError | None]]:
    """Let a command write to stdout and stderr whatever they are: full, closed, in any encoding.

    What has been said must not decide what has been done. Characters that an encoding lacks are
    spelled in ASCII. Yields a function that flushes stdout and returns what went wrong with it.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_lasting, before)

    def trouble() -> OSError | None:
        sys.stdout.flush()
        raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
        return raw.error if isinstance(raw, _Lasting) else None

    try:
        yield trouble
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream not in before:
                stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed before the process began
        return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace")
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # unbuffered where Python is told so
    if type(raw) is not io.FileIO:
        return stream
    _flush(stream)
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(raw.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=_spell.__name__,
        line_buffering=True,
    )


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs: signs in ASCII, other characters by their numbers."""
    if isinstance(error, UnicodeEncodeError):
        text = error.object[error.start : error.end]
        spelled = (SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
        return "".join(spelled), error.end
    raise error


codecs.register_error(_spell.__name__, _spell)


class _Echo(logging.Handler):
    """Prints what is logged, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message alone."""
        typer.echo(one_line(record.getMessage()), err=True)


@contextmanager
def notes(shown: bool, *, all_of_them: bool) -> Iterator[None]:
    """Print what the library tells on the way: what it warns of, or all of it; or nothing."""
    library, echo = logging.getLogger("nst_fast"), _Echo()
    before = library.level, library.propagate
    library.propagate = False
    library.addHandler(echo if shown else logging.NullHandler())
    library.setLevel(logging.INFO if all_of_them else logging.WARNING)
    try:
        yield
    finally:
        library.handlers.pop()
        library.level, library.propagate = before


@contextmanager
def interruptible(state: Path | None = None) -> Iterator[None]:
    """End a command with one line when Ctrl-C stops what is inside; ``state``: of its run."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "nothing was saved"
        if state is not None and state.exists():
            kept = f"to go on from the last state, repeat the command with --resume {state}"
        raise typer.Exit(fail(f"interrupted; {kept}", INTERRUPTED)) from None


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
