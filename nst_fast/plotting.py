"""The style of all plots: without a background, readable on light and on dark pages.

matplotlib is imported when one is drawn; its absence is an ImportError.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#7d8590"  # contrast of about 4 to white and to black
COLOURS = ("#e5534b", "#4184e4", "#46954a", "#ae7c14", "#986ee2", "#cc6b2c", "#2f9fa8", "#c96198")
STYLE: dict[str, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.figsize": (8.0, 4.5),
    "font.size": 10.0,
    "grid.alpha": 0.3,
    "grid.color": INK,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.markersize": 5.0,
    "savefig.transparent": True,
    "svg.hashsalt": "nst-fast",
}


def draw(
    fill: Callable[[Axes], None], form: str, metadata: Mapping[str, str | None] | None = None
) -> bytes:
    """The file of a figure with one pair of axes, a grid and a legend.

    Args:
        fill: draws into the axes.
        form: "svg", "png" or "pdf".
        metadata: of the file.
    """
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    style: Any = STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}
    drawn = io.BytesIO()
    with mpl.rc_context(style):
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        fill(axes)
        axes.grid(True)
        if axes.has_data():
            axes.legend()
        figure.savefig(drawn, format=form, dpi=150, metadata=dict(metadata or {}))
    return drawn.getvalue()
