"""What a run of ``stylize`` leaves besides its picture: its options, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nst_fast.cli.options import MAKING
from nst_fast.errors import SettingsError
from nst_fast.making import Recorder, check_file, compare, plot_losses
from nst_fast.making_options import Kind
from nst_fast.result import Result

SaveEvery = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        min=1,
        help="Save the run's state after every so many steps, beside the result, to go on from.",
        rich_help_panel=MAKING,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Go on from a saved state: repeat the command, with this.",
        rich_help_panel=MAKING,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Draw the losses of all steps: .svg, .png or .pdf.",
        rich_help_panel=MAKING,
    ),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write content, style and result side by side.",
        rich_help_panel=MAKING,
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Film the picture as it is made: an animated .webp, .png or .apng, or .mp4.",
        rich_help_panel=MAKING,
    ),
]
RecordEvery = Annotated[
    int,
    typer.Option(metavar="STEPS", min=1, help="Steps from frame to frame.", rich_help_panel=MAKING),
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
        given: dict[Kind, Path | None]
        given = {"plot": self.plot, "compare": self.compare, "record": self.record}
        taken = {output.resolve(): "output"}
        for name, path in given.items():
            if path is None:
                continue
            check_file(name, path, inputs)
            other = taken.setdefault(path.resolve(), name)
            if other != name:
                raise SettingsError(f"--{name}: {path} is the file of --{other}; name another")

    def write(self, content: Path, styles: Sequence[Path], result: Result) -> None:
        """Draw the curves and the comparison; raises ImageError where one cannot be written."""
        if self.plot is not None:
            plot_losses(result.reports, self.plot)
        if self.compare is not None:
            compare([content, *styles, result.picture], self.compare)

    def recorder(self) -> Recorder | None:
        """What writes the recording; errors as for ``Recorder``."""
        return None if self.record is None else Recorder(self.record)
