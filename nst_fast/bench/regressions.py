"""Two runs against each other: what became slower beyond the noise that they measured.

Between two runs, and for seconds within one, the machine itself may be half as fast. Whatever was
timed in the same rounds was slowed alike, so each of our times is divided by the geometric mean of
those of the peers in its round, which nst-fast does not change; the median over the rounds of these
ratios is what two runs are compared by. Minima are no remedy: a slow spell outlasts all rounds of a
task. Where no peer shared the rounds, the median change of all peers and peaks stands in, and their
scatter is part of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, median

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
        ratio: new over old, the machine's own change taken out; above 1: slower, or more memory.
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


@dataclass(frozen=True)
class _Pair:
    """Ours in both runs, and the logarithms of its times over those of its peers, by round."""

    new: Measurement
    controlled: bool
    old_logs: list[float]
    new_logs: list[float]

    @property
    def change(self) -> float:
        """Logarithm of new over old."""
        return median(self.new_logs) - median(self.old_logs)

    @property
    def variance(self) -> float:
        """Of ``change``, by the scatter of the rounds."""
        return _variance(self.old_logs) + _variance(self.new_logs)


def same_machine(old: Findings, new: Findings) -> None:
    """Refuse to compare runs of different machines; raises BenchError."""
    for fact in ("cpu", "kernels", "bf16", "threads"):
        if old.machine[fact] != new.machine[fact]:
            raise BenchError(
                f"--compare: measured with {fact} {old.machine[fact]}, now {new.machine[fact]}; "
                "compare runs of one machine"
            )


def changes(old: Findings, new: Findings) -> list[Change]:
    """Compare what both runs measured of ours.

    Raises:
        BenchError: they have nothing in common, or are of different machines.
    """
    same_machine(old, new)
    before = {_key(one): one for one in old.measurements}
    both = [(before[_key(one)], one) for one in new.measurements if _key(one) in before]
    pairs = [_pair(a, b, both) for a, b in both if b.ours]
    if not pairs:
        raise BenchError("--compare: the two runs measured nothing in common; use the same options")
    drift, scatter = _drift(old, new, both)
    typical = median([pair.variance for pair in pairs if pair.new.unit == "s"] or [0.0])
    return [_change(pair, typical, drift, scatter) for pair in pairs]


def _key(one: Measurement) -> tuple[str, str, str, str]:
    return one.suite, one.task, one.route, one.unit


def _pair(a: Measurement, b: Measurement, both: Sequence[tuple[Measurement, Measurement]]) -> _Pair:
    peers = [
        (x, y)
        for x, y in both
        if not y.ours and (x.group, y.group) == (a.group, b.group) and a.group and b.group
    ]
    old_logs = _logs(a, [x for x, _ in peers])
    new_logs = _logs(b, [y for _, y in peers])
    return _Pair(b, bool(peers), old_logs, new_logs)


def _logs(one: Measurement, peers: Sequence[Measurement]) -> list[float]:
    """Logarithm of each round's value, over the geometric mean of the peers' in that round."""
    rounds = zip(one.values, *(peer.values for peer in peers), strict=True)
    return [log(value) - (fmean(map(log, others)) if others else 0.0) for value, *others in rounds]


def _drift(
    old: Findings, new: Findings, both: Sequence[tuple[Measurement, Measurement]]
) -> tuple[float, float]:
    """By how much the machine became slower, and the scatter of one measurement in it; logs."""
    found = [log(b.middle / a.middle) for a, b in both if not b.ours and b.unit == "s"]
    found += [log(old.peaks[name] / new.peaks[name]) for name in old.peaks if name in new.peaks]
    return (median(found), _deviation(found)) if found else (0.0, 0.0)


def _change(pair: _Pair, typical: float, drift: float, scatter: float) -> Change:
    """Few rounds may agree by luck, so the variance is half that of all measurements together."""
    change, variance = pair.change, (pair.variance + typical) / 2
    if pair.new.unit == "B":
        variance = pair.variance
    elif not pair.controlled:
        change, variance = change - drift, variance + scatter**2
    band = max(LEAST_BAND, exp(SIGMAS * sqrt(variance)) - 1)
    return Change(pair.new.task, pair.new.route, exp(change), band)


def _variance(logs: Sequence[float]) -> float:
    """Of the median."""
    return (1.2533 * _deviation(logs)) ** 2 / len(logs)


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation, from the median absolute deviation of a normal distribution."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values)
