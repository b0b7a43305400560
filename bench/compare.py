"""nst-fast against torch and numpy: ``python bench/compare.py [--size 512] [--rounds 7]``.

One run prints, on the same weights and the same number of threads:

a  the C++ Gram kernel and its gradient against numpy's BLAS and torch, at the taps of VGG-19;
b  loss and gradient on VGG-19: float32 and the best precision against eager torch;
c  a whole step on vgg19-lite, L-BFGS included, against loss and gradient by torch;
d  what of a vgg19-lite step is spent outside the provider.

Agreement is printed before anything is timed. bench/README.md tells how it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from gram import TAPS, tap_routes
from harness import Row, Times, bf16_features, compare, interleave, machine, use_threads
from peers import PEERS
from problem import HISTORY, OurStep, Step, backend, make_problem, smooth_picture, vgg19, with_lbfgs
from rich.console import Console
from rich.table import Table

from nst_fast import encoders
from nst_fast.config import StyleSettings
from nst_fast.device import usable_cores
from nst_fast.encoders import Encoder
from nst_fast.engine import Stylizer
from nst_fast.plan import Backend
from nst_fast.runtime import Session

FULL_SIZE = 512  # pixels, of the picture whose taps gram.TAPS gives
FLOAT32, CHANNELS_LAST, BFLOAT16 = PEERS
BUSY = 0.25  # load per core from which the machine counts as busy
CAVEAT = (
    "with two threads and more these ratios flatter us, because torch's OpenMP barriers wait for "
    "the slowest thread; measure on a quiet machine, or with --threads 1."
)


@dataclass(frozen=True)
class Agreement:
    """How far a route's loss and gradient are from a peer's, before anything is timed."""

    section: str
    ours: str
    peer: str
    loss: float
    gradient: float
    cosine: float


@dataclass
class Bench:
    """Options and findings of one run."""

    size: int
    rounds: int
    threads: int
    folder: Path
    console: Console
    rows: list[Row] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _vgg19: Encoder | None = None

    def vgg19(self) -> Encoder:
        """Load VGG-19 once, and note where its weights are from."""
        if self._vgg19 is None:
            self.console.print("[dim]loading or building VGG-19")
            self._vgg19, source = vgg19(self.folder)
            self.note(f"VGG-19 weights: {source}.")
        return self._vgg19

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.console.print(text)

    def check(self, section: str, ours: tuple[str, Step], peer: tuple[str, Step]) -> None:
        """Compare loss and gradient of both, and print it."""
        found = agreement(section, ours, peer)
        self.agreements.append(found)
        self.console.print(
            f"{section}  {found.ours} | {found.peer}: loss differs by {found.loss:.1e}, gradient "
            f"by {found.gradient:.1e} (relative), cosine {found.cosine:.6f}"
        )

    def time(self, routes: dict[str, Step | Callable[[], object]]) -> Times:
        """Time steps, or functions."""
        calls = {k: v if callable(v) else v.step for k, v in routes.items()}
        return interleave(calls, self.rounds)


def agreement(section: str, ours: tuple[str, Step], peer: tuple[str, Step]) -> Agreement:
    """Evaluate both at the same picture."""
    losses, gradients = [], []
    for _, side in (ours, peer):
        losses.append(side.step())
        gradients.append(side.gradient.astype(np.float64).ravel())
    found, expected = gradients
    norm = float(np.linalg.norm(expected))
    return Agreement(
        section,
        ours[0],
        peer[0],
        loss=abs(losses[0] - losses[1]) / abs(losses[1]),
        gradient=float(np.linalg.norm(found - expected)) / norm,
        cosine=float(found @ expected) / (norm * float(np.linalg.norm(found))),
    )


def label(chosen: Backend) -> str:
    """Name our route after its precision and provider."""
    return f"{chosen.precision} {chosen.provider}"


def by_amx(with_amx: float, without: float) -> float:
    """Pick the target of this CPU."""
    return with_amx if "amx_bf16" in bf16_features() else without


def section_a(bench: Bench) -> None:
    """Time the Gram kernel and its gradient; gram.tap_routes checks that the routes agree."""
    total: Times = {}
    for tap, (channels, pixels) in TAPS.items():
        scaled = pixels * bench.size**2 // FULL_SIZE**2
        both = tap_routes(channels, scaled, bench.threads)
        for name, routes in zip(("Gram", "gradient"), both, strict=True):
            times = interleave(routes, bench.rounds)
            for route, values in times.items():
                sums = total.setdefault(route, [0.0] * bench.rounds)
                total[route] = [a + b for a, b in zip(sums, values, strict=True)]
            _rows_a(bench, f"{name} {tap}, {channels} × {scaled}", times)
    bench.note("a: the routes agree within 1e-5.")
    _rows_a(bench, "Gram and gradient, total", total, goal=1.0)


def _rows_a(bench: Bench, task: str, times: Times, goal: float | None = None) -> None:
    bench.rows += [compare("a", task, times, ("ours", peer), goal) for peer in ("numpy", "torch")]


def section_b(bench: Bench) -> None:
    """Time loss and gradient on VGG-19."""
    problem = make_problem(bench.vgg19(), bench.size, bench.threads)
    chosen = [backend(kind, bench.threads) for kind in ("fp32", "auto")]
    ours = {label(one): OurStep(problem, one) for one in chosen}
    peers = {name: make(problem) for name, make in PEERS.items()}
    single, best = map(label, chosen)  # the same one where there is no bfloat16
    targets: dict[tuple[str, str], float | None] = {
        (best, FLOAT32): None,
        (best, BFLOAT16): by_amx(0.4, 0.95),
        (single, CHANNELS_LAST): None,
        (single, FLOAT32): 0.65,
    }
    for mine, other in targets:
        bench.check("b", (mine, ours[mine]), (other, peers[other]))
    times = bench.time({**ours, **peers})
    task = f"VGG-19 {bench.size}², loss + gradient"
    bench.rows += [compare("b", task, times, pair, target) for pair, target in targets.items()]


def section_c(bench: Bench) -> None:
    """Time a whole step on vgg19-lite against loss and gradient by torch on both networks."""
    problem = make_problem(encoders.load("vgg19-lite"), bench.size, bench.threads)
    chosen = backend("auto", bench.threads)
    ours = OurStep(problem, chosen)
    peers = {f"{name}, lite": make(problem) for name, make in PEERS.items()}
    for name, peer in peers.items():
        bench.check("c", (label(chosen), ours), (name, peer))
    large = f"{FLOAT32}, VGG-19"
    peers[large] = PEERS[FLOAT32](make_problem(bench.vgg19(), bench.size, bench.threads))
    mine = f"{label(chosen)} + L-BFGS"
    times = bench.time({mine: with_lbfgs(ours, chosen), **peers})
    task = f"vgg19-lite {bench.size}², whole step"
    targets = {large: by_amx(0.02, 0.03)}
    bench.rows += [
        compare("c", task, times, (mine, name), targets.get(name)) for name in reversed(peers)
    ]


def section_d(bench: Bench) -> None:
    """Time the provider's calls inside the real loop, total variation and L-BFGS included."""
    first = HISTORY + 2  # steps until the history is full
    settings = StyleSettings(
        size=bench.size, scales=1, history=HISTORY, steps=first + 6 * bench.rounds
    )
    stylizer = Stylizer(threads=bench.threads)
    content, style = (smooth_picture(bench.size, seed) for seed in (1, 2))
    seconds, provider = [], []
    with stylizer.start(content, style, settings) as run, timed_sessions() as calls:
        for report in run:
            seconds.append(report.seconds)
            provider.append(sum(calls))
    whole = np.diff(seconds)[first - 1 :]
    outside = whole - np.diff(provider)[first - 1 :]
    times = {"outside the provider": list(outside), "whole step": list(whole)}
    task = f"vgg19-lite {bench.size}², {label(stylizer.backend)}, share of a step"
    bench.rows.append(compare("d", task, times, ("outside the provider", "whole step"), 0.2))


@contextmanager
def timed_sessions() -> Iterator[list[float]]:
    """Record the seconds of every provider call while the context is open."""
    calls: list[float] = []
    run = Session.run

    def timed(session: Session) -> None:
        start = time.perf_counter()
        run(session)
        calls.append(time.perf_counter() - start)

    with patch.object(Session, "run", timed):
        yield calls


SECTIONS = {"a": section_a, "b": section_b, "c": section_c, "d": section_d}
COLUMNS = ("", "task", "ours", "ms", "peer", "ms", "ours / peer", "band", "target", "met")


def milliseconds(seconds: float) -> str:
    """Give three digits, or all before the point."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def cells(row: Row) -> list[str]:
    """Format a row for either table, in the order of ``COLUMNS``."""
    target = "" if row.target is None else f"≤ {row.target:g}"
    met = {None: "", True: "yes", False: "no"}[row.met]
    return [
        row.section,
        row.task,
        row.ours,
        milliseconds(row.ours_seconds),
        row.peer,
        milliseconds(row.peer_seconds),
        f"{row.ratio:.3g}",
        f"{row.low:.3g} – {row.high:.3g}",
        target,
        met,
    ]


def machine_line(found: dict[str, Any]) -> str:
    """Say on what this was measured."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    bf16 = ", ".join(found["bf16"]) or "no bfloat16"
    threads = f"threads: {found['threads']} on {found['cores']} cores"
    return f"{found['cpu']} ({bf16}), {threads}, load {found['load'][0]}; {versions}"


def markdown(bench: Bench, where: dict[str, Any]) -> str:
    """Write the table for a README, with the machine and the notes below it."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, bench.rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = [f"Medians of {bench.rounds} interleaved rounds.", f"{machine_line(where)}."]
    return "\n".join([table, "", *notes, *bench.notes])


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*cells(row), end_section=row is rows[-1])
    console.print(table)


def write_json(path: Path, bench: Bench, where: dict[str, Any], sections: Sequence[str]) -> None:
    """Write everything that was found, under its name only when it is complete."""
    found = {
        "sections": list(sections),
        "size": bench.size,
        "rounds": bench.rounds,
        "machine": where,
        "notes": bench.notes,
        "agreement": [asdict(item) for item in bench.agreements],
        "rows": [asdict(row) for row in bench.rows],
    }
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=FULL_SIZE, help="pixels a side (512)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (7)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="for all (every core)")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, as in a,c")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there")
    parser.add_argument("--markdown", action="store_true", help="print the README's table, too")
    options = parser.parse_args()
    options.sections = options.sections.split(",")
    for section in options.sections:
        if section not in SECTIONS:
            parser.error(f"--sections: no section {section!r}; there are {', '.join(SECTIONS)}")
    if options.size < 32 or options.size % 16:
        parser.error(f"--size: must be a multiple of 16, 32 or more, not {options.size}")
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: must be 1 or more, not {getattr(options, name)}")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    return options


def main() -> None:
    """Parse, measure section by section, print."""
    options = parse()
    use_threads(options.threads)
    console = Console(width=None if os.isatty(1) else 160, highlight=False)
    where = machine(options.threads)
    console.print(machine_line(where), soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.size, options.rounds, options.threads, Path(folder), console)
        if where["load"][0] > BUSY * where["cores"]:
            bench.note(f"Other programs are running (load {where['load'][0]}): {CAVEAT}")
        for section in options.sections:
            before = len(bench.rows)
            SECTIONS[section](bench)
            show(console, bench.rows[before:])
    where["load_after"] = machine(options.threads)["load"]
    console.print(f"load {where['load'][0]} before, {where['load_after'][0]} after")
    if options.json:
        write_json(options.json, bench, where, options.sections)
    if options.markdown:
        print(markdown(bench, where))


if __name__ == "__main__":
    main()
