"""What a run leaves besides its picture: a recording, curves of the loss, a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from nst_fast import images
from nst_fast.errors import SettingsError
from nst_fast.making import Recorder, check_plot, check_record, compare, plot_losses
from nst_fast.result import Report, Result
from nst_fast.run import Run

PANEL = "Long runs, and how they went"
RECORD_EVERY = 2  # steps: 48 frames of the default, four seconds

SaveEvery = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        min=1,
        help="Save the run's state after every so many steps, beside the result, to go on from.",
        rich_help_panel=PANEL,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Go on from a saved state: repeat the command, with this.",
        rich_help_panel=PANEL,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Draw the losses of all steps: .svg, .png or .pdf.",
        rich_help_panel=PANEL,
    ),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write content, style and result side by side.",
        rich_help_panel=PANEL,
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Film the picture as it is made: an animated .webp, .png or .apng, or .mp4.",
        rich_help_panel=PANEL,
    ),
]
RecordEvery = Annotated[
    int,
    typer.Option(metavar="STEPS", min=1, help="Steps from frame to frame.", rich_help_panel=PANEL),
]


@dataclass(frozen=True)
class Extras:
    """Files besides the picture; None for none."""

    plot: Path | None
    compare: Path | None
    record: Path | None

    def check(self, output: Path, inputs: Sequence[Path]) -> None:
        """Refuse, before any work is done, what could not be written.

        Raises:
            ImageError: a file cannot be written, or needs a package that is not installed.
            SettingsError: two of the files are one.
        """
        checks = {"plot": check_plot, "compare": images.check_output, "record": check_record}
        taken = {output.resolve(): "output"}
        for name, check in checks.items():
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            check(path, inputs)
            other = taken.setdefault(path.resolve(), name)
            if other != name:
                raise SettingsError(f"--{name}: {path} is the file of --{other}; name another")

    def write(self, content: Path, styles: Sequence[Path], result: Result) -> None:
        """Draw the curves and the comparison; raises ImageError where one cannot be written."""
        if self.plot is not None:
            plot_losses(result.reports, self.plot)
        if self.compare is not None:
            compare([content, *styles, result.picture], self.compare)


class Recording:
    """Frames of a run: its start, one every so many steps, and its end; none without a path."""

    def __init__(self, run: Run, path: Path | None, every: int) -> None:
        """Begin with the picture that the run starts from; errors as for ``Recorder``."""
        self._run, self._every = run, every
        self._recorder = None if path is None else Recorder(path)
        self._step = len(run.reports)
        self._add()

    def see(self, report: Report) -> None:
        """Add a frame if it is time; a GPU is ahead of its reports, all of which show the same."""
        step = len(self._run.reports)
        if report.step == step and step - self._step >= self._every:
            self._step = step
            self._add()

    def _add(self) -> None:
        if self._recorder is not None:
            self._recorder.add(self._run.picture())

    def __enter__(self) -> Recording:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the file; none after an error."""
        if self._recorder is None:
            return
        if kind is None and self._step != len(self._run.reports):
            self._add()
        self._recorder.__exit__(kind, error, traceback)
