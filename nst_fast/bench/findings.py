"""What a run found: measurements, comparisons and the machine, as one JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from nst_fast.errors import BenchError
from nst_fast.files import write_atomically

FORMAT = 2
Device = Literal["cpu", "cuda"]
Unit = Literal["s", "B"]  # seconds of a call, bytes at the peak
SUITES = ("kernels", "step", "quality", "throughput", "memory", "scaling")
SUITES_ON: dict[Device, tuple[str, ...]] = {
    "cpu": SUITES,
    "cuda": ("kernels", "step", "throughput", "memory"),
}


@dataclass(frozen=True)
class Measurement:
    """One route through one task.

    Attributes:
        suite: that measured it.
        task: what was done, with encoder and size.
        route: who did it.
        values: one a round, outliers kept.
        unit: of the values.
        ours: whether the route is nst-fast's.
        facts: numbers to plot against: "size" (pixels a side), "batch", "threads", "workers".
        precision: of its products; chooses the peak that its floor divides by.
        flops: that the task needs; 0: not counted.
        moved: bytes that it must move; 0: not counted.
        floor: least seconds that this machine could take; 0: not counted.
        note: what a reader must know, for instance of an extrapolation.
        group: number of the rounds that it shares with others of this run; 0: with none.
    """

    suite: str
    task: str
    route: str
    values: list[float]
    unit: Unit = "s"
    ours: bool = True
    facts: Mapping[str, int] = field(default_factory=dict)
    precision: str = "fp32"
    flops: float = 0.0
    moved: float = 0.0
    floor: float = 0.0
    note: str = ""
    group: int = 0

    @property
    def middle(self) -> float:
        """Median of the values."""
        return median(self.values)

    @property
    def share_of_floor(self) -> float | None:
        """Floor over median, at best 1; None where no floor is known."""
        return self.floor / self.middle if self.floor else None


@dataclass(frozen=True)
class Row:
    """One comparison of two measurements.

    Attributes:
        suite: that made it.
        task: what both do.
        ours: name of our route.
        peer: name of the other.
        ours_value: median of ours.
        peer_value: median of the other's.
        ratio: median over rounds of ours / peer, below 1 where ours is better.
        low: least ratio of a round.
        high: greatest ratio of a round.
        unit: of the two medians.
        target: that the ratio should not exceed; None: no target.
        share: floor over our median; None: no floor is known.
        note: what a reader must know, for instance of an extrapolation.
    """

    suite: str
    task: str
    ours: str
    peer: str
    ours_value: float
    peer_value: float
    ratio: float
    low: float
    high: float
    unit: Unit = "s"
    target: float | None = None
    share: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return None if self.target is None else self.ratio <= self.target


@dataclass(frozen=True)
class Agreement:
    """How far a route's loss and gradient are from ours, before anything is timed.

    Attributes:
        task: the problem.
        ours: name of our route.
        peer: name of the other.
        loss: relative difference.
        gradient: relative L2 difference.
        cosine: between the gradients.
    """

    task: str
    ours: str
    peer: str
    loss: float
    gradient: float
    cosine: float


@dataclass(frozen=True)
class Curve:
    """Best loss so far against wall time: ``losses[i]`` was reached after ``seconds[i]``."""

    task: str
    route: str
    seconds: list[float]
    losses: list[float]


@dataclass(frozen=True)
class Fit:
    """Time of a route as ``variable`` to a power, fitted in logarithms; error is one sigma."""

    task: str
    variable: str
    exponent: float
    error: float


@dataclass(frozen=True)
class Failure:
    """What could not be measured, and why in one line; no ``task``: the suite, or its rest."""

    suite: str
    task: str
    reason: str

    @property
    def line(self) -> str:
        """For tables and the terminal."""
        return f"Not measured: {', '.join(filter(None, (self.suite, self.task)))}: {self.reason}"


@dataclass
class Findings:
    """Everything that one run found.

    ``peaks`` are the highest flops/s of the run by precision, and "copy" in bytes/s; a floor takes
    those of the measurement's own rounds. ``seconds`` says how long each suite took.
    """

    machine: dict[str, Any]
    command: str = ""
    rounds: int = 0
    peaks: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Text of the file, with whether each target was met written out."""
        content = {"format": FORMAT} | asdict(self)
        for row, entry in zip(self.rows, content["rows"], strict=True):
            entry["met"] = row.met
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @property
    def name(self) -> str:
        """Of the device, for file names: the GPU, or the CPU, what it computes with, its cores.

        Virtual machines give very different CPUs one model name.
        """
        where = self.machine
        best = where["bf16"][-1] if where["bf16"] else where["kernels"]
        device = where.get("gpu", f"{where['cpu']} {best} {where['cores']}cores")
        words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", device.lower()))
        return words.strip("-")


_PARTS: dict[str, type[Any]] = {
    "agreements": Agreement,
    "measurements": Measurement,
    "rows": Row,
    "curves": Curve,
    "fits": Fit,
    "failures": Failure,
}


def read(path: Path) -> Findings:
    """Read findings.

    Raises:
        BenchError: no such file, or none that ``nst-fast bench --json`` wrote.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise BenchError(f"{path}: another format; measure again with nst-fast bench --json")
        for row in content["rows"]:
            del row["met"]
        parts = {k: [kind(**entry) for entry in content[k]] for k, kind in _PARTS.items()}
        return Findings(**content | parts)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror or error}; name a file of findings") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BenchError(f"{path}: not a file that nst-fast bench --json wrote") from None


def write(path: Path, text: str) -> None:
    """Write a file under its name only when it is complete.

    Raises:
        BenchError: it cannot be written there.
    """
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror or error}; choose another folder") from None
