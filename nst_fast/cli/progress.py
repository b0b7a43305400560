"""What a batch shows while it runs: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from nst_fast.batch import Row

LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Lines:
    """An Observer that prints each failure, and now and then how far it is."""

    def __init__(self) -> None:
        """Start with nothing done."""
        self._todo = self._ended = self._failed = 0
        self._began = self._last = time.monotonic()

    def begin(self, todo: int, done: int) -> None:
        """Say what there is to do."""
        self._todo = todo
        self._began = self._last = time.monotonic()
        self.say(f"pictures: {todo} to make, {done} done before")

    def started(self, worker: str, content: str) -> None:
        """Nothing to say."""

    def ended(self, row: Row) -> None:
        """Say what failed, and how far it is."""
        self._ended += 1
        if row.status == "failed":
            self._failed += 1
            of = "" if row.content in row.error else f"{row.content}: "
            self.say(f"failed: {of}{row.error}")
        now = time.monotonic()
        if now - self._last >= LINE_EVERY:
            self._last = now
            self.say(f"{self._ended} of {self._todo}: {self.figures()}")

    def figures(self) -> str:
        """Speed, time left and failures."""
        rate = self._ended / max(1e-9, time.monotonic() - self._began)
        left = duration((self._todo - self._ended) / rate) if self._ended else "–"
        return f"{rate * 60:.1f} pictures a minute, {left} left, {self._failed} failed"

    def say(self, text: str) -> None:
        """Print a line on stderr."""
        typer.echo(text, err=True)

    def __enter__(self) -> Lines:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to close."""


class Bars(Lines):
    """An Observer that shows a bar, and what each worker is at, on a terminal."""

    def __init__(self, console: Console) -> None:
        """Draw on this console."""
        super().__init__()
        self._progress = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=console
        )
        self._all = self._progress.add_task("")
        self._workers: dict[str, TaskID] = {}

    def begin(self, todo: int, done: int) -> None:
        """Set the length of the bar."""
        super().begin(todo, done)
        self._progress.update(self._all, total=todo)

    def started(self, worker: str, content: str) -> None:
        """Show it with the worker."""
        if worker not in self._workers:
            self._workers[worker] = self._progress.add_task("", total=None)
        name = escape(content.rpartition("/")[2])
        self._progress.update(self._workers[worker], description=f"{worker}: {name}")

    def ended(self, row: Row) -> None:
        """Move the bars on."""
        super().ended(row)
        self._progress.advance(self._all)
        self._progress.update(self._all, description=self.figures())
        if row.worker in self._workers:
            self._progress.advance(self._workers[row.worker])

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Bars:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
