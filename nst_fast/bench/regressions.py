"""Two runs against each other: what became slower beyond the noise that they measured.

Between two runs the machine itself may be faster or slower. What nst-fast does not change shows
by how much: the peaks and the peers. Their median is the drift that every change is divided by, and
their scatter is the noise between runs. With the scatter of the rounds it makes the band within
which nothing is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, sqrt
from statistics import median

from nst_fast.bench.findings import Findings, Measurement
from nst_fast.errors import BenchError

LEAST_BAND = 0.05  # of a change, below which no benchmark should speak
SIGMAS = 3.0


@dataclass(frozen=True)
class Change:
    """One of our measurements in both runs.

    Attributes:
        task: what was done.
        route: which of ours.
        ratio: new over old, drift taken out; above 1: slower, or more memory.
        band: relative noise; a change within it says nothing.
    """

    task: str
    route: str
    ratio: float
    band: float

    @property
    def worse(self) -> bool:
        """Slower beyond the noise."""
        return self.ratio > 1 + self.band

    @property
    def better(self) -> bool:
        """Faster beyond the noise."""
        return self.ratio < 1 / (1 + self.band)


def changes(old: Findings, new: Findings) -> list[Change]:
    """Compare what both runs measured of ours.

    Raises:
        BenchError: they have nothing in common, or are of different machines.
    """
    for fact in ("cpu", "threads"):
        if old.machine[fact] != new.machine[fact]:
            raise BenchError(
                f"--compare: measured with {fact} {old.machine[fact]}, now {new.machine[fact]}; "
                "compare runs of one machine"
            )
    before = {_key(one): one for one in old.measurements}
    pairs = [(before[_key(one)], one) for one in new.measurements if _key(one) in before]
    if not any(one.ours for _, one in pairs):
        raise BenchError("--compare: the two runs measured nothing in common; use the same options")
    drift, scatter = _drift(old, new, pairs)
    return [_change(a, b, drift, scatter) for a, b in pairs if b.ours]


def _key(one: Measurement) -> tuple[str, str, str, str]:
    return one.suite, one.task, one.route, one.unit


def _drift(
    old: Findings, new: Findings, pairs: list[tuple[Measurement, Measurement]]
) -> tuple[float, float]:
    """Factor by which the machine became slower, and the noise of one measurement in it."""
    ratios = [b.middle / a.middle for a, b in pairs if not b.ours and b.unit == "s"]
    ratios += [old.peaks[name] / new.peaks[name] for name in old.peaks if name in new.peaks]
    if not ratios:
        return 1.0, 0.0
    return median(ratios), _scatter(ratios)


def _change(a: Measurement, b: Measurement, drift: float, scatter: float) -> Change:
    timed = b.unit == "s"
    noise = hypot(_error(a.values), _error(b.values), scatter if timed else 0.0)
    ratio = b.middle / a.middle / (drift if timed else 1.0)
    return Change(b.task, b.route, ratio, max(LEAST_BAND, SIGMAS * noise))


def _scatter(values: list[float]) -> float:
    """Relative standard deviation, from the median absolute deviation of a normal distribution."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values) / middle


def _error(values: list[float]) -> float:
    """Relative standard error of the median."""
    return 1.2533 * _scatter(values) / sqrt(len(values))
