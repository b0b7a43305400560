"""The losses of a run over its steps, drawn."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from nst_fast import images, plotting
from nst_fast.errors import ImageError, one_line
from nst_fast.files import write_atomically
from nst_fast.images import ImageLike
from nst_fast.result import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST = 1e-5  # of the largest loss: what is below it is not shown
FORMS = {".svg": "svg", ".png": "png", ".pdf": "pdf"}


def check_plot(path: str | PathLike[str], inputs: Collection[ImageLike] = ()) -> None:
    """Refuse, before any work is done, a plot that could not be drawn.

    Raises:
        ImageError: the file could not be written, or matplotlib is not installed.
    """
    images.check_output(path, inputs, endings=FORMS)
    if importlib.util.find_spec("matplotlib") is None:
        raise ImageError(f'{path}: a plot needs matplotlib; run: pip install "nst-fast[plot]"')


def plot_losses(reports: Sequence[Report], path: str | PathLike[str]) -> None:
    """Draw the loss and its parts against the steps, each size apart: those do not compare.

    Args:
        reports: of all steps; ``Run.reports`` or ``Result.reports``.
        path: of the file, which is replaced: SVG, PNG or PDF, by its ending.

    Raises:
        ImageError: the file cannot be written, or matplotlib is not installed.
    """
    check_plot(path)
    form = FORMS[Path(path).suffix.lower()]
    # Without the time: the same run gives the same file.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    drawn = plotting.draw(lambda axes: _fill(axes, reports), form, metadata)
    try:
        write_atomically(Path(path).resolve(), drawn)
    except OSError as error:
        raise ImageError(
            f"output {path} cannot be written ({one_line(error)}); choose another folder"
        ) from None


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
