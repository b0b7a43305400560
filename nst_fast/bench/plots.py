"""Plots of findings, as SVG without a background: readable on light and on dark pages.

Each file carries the hash of the findings that it was drawn from.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from nst_fast import plotting
from nst_fast.bench.findings import Curve, Findings, Measurement, write
from nst_fast.errors import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def digest(findings: Findings) -> str:
    """Hash of the findings, as the plots carry it."""
    return hashlib.sha256(findings.to_json().encode()).hexdigest()


def available(findings: Findings) -> list[str]:
    """Names of the plots that these findings have the data for."""
    return [name for name, (has, _) in _PLOTS.items() if has(findings)]


def draw(findings: Findings, folder: Path) -> list[Path]:
    """Draw what there is into ``folder`` as ``MACHINE-PLOT.svg``; return the files.

    Raises:
        BenchError: matplotlib is missing, or a file cannot be written.
    """
    files = []
    for name in available(findings):
        path = folder / f"{findings.name}-{name}.svg"
        fill = functools.partial(_PLOTS[name][1], findings)
        metadata = {"Date": None, "Description": digest(findings)}
        try:
            drawn = plotting.draw(fill, "svg", metadata)
        except ImportError:
            raise BenchError(
                '--plot needs matplotlib; run: pip install "nst-fast[bench]"'
            ) from None
        write(path, drawn.decode())
        files.append(path)
    return files


def _steps(findings: Findings) -> list[Measurement]:
    """Steps of one picture on all threads; those of the scaling suite are the sweep over sizes."""
    return [
        m
        for m in findings.measurements
        if m.suite == "scaling" and m.facts.get("batch") == 1 and ":" not in m.route
    ]


def _draw_steps(findings: Findings, axes: Axes) -> None:
    axes.set(xscale="log", yscale="log")
    _lines(axes, _steps(findings), "size", lambda m: m.middle)
    axes.set(xlabel="pixels a side", ylabel="seconds a step")
    axes.set_title(f"Loss and gradient on {findings.machine['cpu']}")


def _lines(
    axes: Axes, measured: Iterable[Measurement], fact: str, value: Callable[[Measurement], float]
) -> None:
    """One line a network and route, against a fact; ours solid, others dashed."""

    measured = list(measured)

    def line(m: Measurement) -> tuple[str, str, bool]:
        return m.task.split(" ")[0], m.route, m.ours

    for (network, route, ours), group in groupby(sorted(measured, key=line), key=line):
        points = sorted((m.facts[fact], value(m)) for m in group)
        x, y = zip(*points, strict=True)
        name = f"nst-fast {route}" if ours else route
        axes.plot(x, y, "o-" if ours else "s--", label=f"{name}, {network}")
    ticks = sorted({m.facts[fact] for m in measured})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def _kernels(findings: Findings) -> list[Measurement]:
    return [
        m for m in findings.measurements if m.suite == "kernels" and m.floor and m.flops and m.ours
    ]


def _draw_roofline(findings: Findings, axes: Axes) -> None:
    peak, copy = findings.peaks["fp32"], findings.peaks["copy"]
    measured = _kernels(findings)
    intensities = [m.flops / m.moved for m in measured]
    low, high = min(intensities) / 2, max(intensities) * 2
    roof = [low, peak / copy, high]
    reached = [min(peak, copy * x) / 1e9 for x in roof]
    axes.plot(roof, reached, color=plotting.INK, label="measured roof")
    passes: dict[str, list[tuple[float, float]]] = {}
    for m, intensity in zip(measured, intensities, strict=True):
        name = m.task.replace(",", " ").split()[0]
        passes.setdefault(name, []).append((intensity, m.flops / m.middle / 1e9))
    for name, points in passes.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="flops a byte", ylabel="GFLOP/s")
    axes.set_title("Our kernels under the roof of this machine, float32")


def _draw_loss(findings: Findings, axes: Axes) -> None:
    _descents([curve for curve in findings.curves if not _is_judged(curve)], axes)
    axes.set_ylabel("best loss so far")


def _draw_quality(findings: Findings, axes: Axes) -> None:
    _descents([curve for curve in findings.curves if _is_judged(curve)], axes)
    axes.set_ylabel("style loss, as judged")


def _descents(curves: list[Curve], axes: Axes) -> None:
    for curve in curves:
        style = "o-" if curve.route.startswith("nst-fast") else "--"
        axes.plot(curve.seconds, curve.losses, style, markersize=3, label=curve.route)
    axes.set(xscale="log", yscale="log", xlabel="seconds")
    axes.set_title(curves[0].task)


def _draw_memory(findings: Findings, axes: Axes) -> None:
    measured = [m for m in findings.measurements if _is_peak(m)]
    _lines(axes, measured, "size", lambda m: m.middle / 2**30)
    axes.set(yscale="log", xlabel="pixels a side", ylabel="GiB at the peak")
    axes.set_title("Peak memory of a whole process")


def _draw_throughput(findings: Findings, axes: Axes) -> None:
    measured = [m for m in findings.measurements if _shares_cores(m)]
    for task, group in groupby(measured, key=lambda m: m.task):
        points = [(m.facts["workers"], 60 / m.middle) for m in group]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o-", label=task)
    axes.set_xticks(sorted({m.facts["workers"] for m in measured}))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="workers, with the cores shared out", ylabel="pictures a minute")


def _is_judged(curve: Curve) -> bool:
    return curve.task.startswith("judged")


def _is_peak(m: Measurement) -> bool:
    return m.suite == "memory" and "pictures" not in m.facts


def _shares_cores(m: Measurement) -> bool:
    return m.suite == "throughput" and "workers" in m.facts


def _has(wanted: Callable[[Measurement], bool]) -> Callable[[Findings], bool]:
    return lambda findings: any(map(wanted, findings.measurements))


_PLOTS: dict[str, tuple[Callable[[Findings], bool], Callable[[Findings, Axes], None]]] = {
    "step": (lambda findings: bool(_steps(findings)), _draw_steps),
    "roofline": (lambda findings: bool(_kernels(findings)), _draw_roofline),
    "loss": (lambda found: not all(map(_is_judged, found.curves)), _draw_loss),
    "quality": (lambda found: any(map(_is_judged, found.curves)), _draw_quality),
    "memory": (_has(_is_peak), _draw_memory),
    "throughput": (_has(_shares_cores), _draw_throughput),
}
