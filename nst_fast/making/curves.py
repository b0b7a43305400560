"""The losses of a run over its steps, drawn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from nst_fast import plotting
from nst_fast.errors import ImageError, one_line
from nst_fast.files import write_atomically
from nst_fast.making.formats import PLOTS, check_file
from nst_fast.result import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST = 1e-5  # of the largest loss: what is below it is not shown


def plot_losses(reports: Sequence[Report], path: str | PathLike[str]) -> None:
    """Draw the loss and its parts against the steps, each size apart: those do not compare.

    Args:
        reports: of all steps; ``Run.reports`` or ``Result.reports``.
        path: of the file, which is replaced: SVG, PNG or PDF, by its ending.

    Raises:
        ImageError: the file cannot be written, or matplotlib is not installed.
    """
    check_file("plot", path)
    drawn = draw_losses(reports, path)
    try:
        write_atomically(Path(path).resolve(), drawn)
    except OSError as error:
        raise ImageError(
            f"output {path} cannot be written ({one_line(error)}); choose another folder"
        ) from None


def draw_losses(reports: Sequence[Report], path: str | PathLike[str]) -> bytes:
    """The bytes of what :func:`plot_losses` writes to a file, or of an object, of that name."""
    form = PLOTS[Path(path).suffix.lower()]
    # Without the time: the same run gives the same file.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    return plotting.draw(lambda axes: _fill(axes, reports), form, metadata)


def _fill(axes: Axes, reports: Sequence[Report]) -> None:
    groups = [name for name in reports[0].terms if "/" not in name] if reports else []
    sizes = [list(each) for _, each in itertools.groupby(reports, key=lambda report: report.size)]
    curves = {"loss": [[report.loss for report in each] for each in sizes]}
    for name in groups:
        curves[name] = [[report.terms[name] for report in each] for each in sizes]
    for index, (name, parts) in enumerate(curves.items()):
        colour = plotting.INK if index == 0 else plotting.COLOURS[index - 1]
        label: str | None = name
        for same, values in zip(sizes, parts, strict=True):
            points = [(report.step, v) for report, v in zip(same, values, strict=True) if v > 0]
            if points:  # a logarithm has no place for a term that is 0
                axes.plot(*zip(*points, strict=True), color=colour, label=label)
                label = None
    for same in sizes[1:]:
        axes.axvline(same[0].step - 0.5, color=plotting.INK, linestyle=":", linewidth=1)
    names = " → ".join("{}×{}".format(*same[0].size) for same in sizes)
    axes.set(yscale="log", xlabel="step", ylabel="weighted loss", title=names)
    most = max((report.loss for report in reports), default=1.0)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], SMALLEST * most))
