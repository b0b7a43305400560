"""Peak of resident memory of a whole process that makes a picture, and of one that makes many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nst_fast.backend import Backend
from nst_fast.bench.child import call
from nst_fast.bench.findings import Measurement
from nst_fast.bench.problem import label
from nst_fast.bench.session import Bench
from nst_fast.bench.suites import many
from nst_fast.bench.suites.picture import arguments, save_pictures
from nst_fast.encoders import Encoder
from nst_fast.errors import BenchError

SIZES = (512, 1024)  # pixels a side
TARGET_SIZE = 1024
STEPS = 2  # all of ours is allocated before the first; torch's L-BFGS grows for 100 more
TARGETS = {"vgg19": 0.65, "vgg19-lite": 0.25}
CLASSIC = "torch fp32"


def run(bench: Bench) -> None:
    """Measure each encoder at each size; one process a route, as peaks hardly vary."""
    if not Path("/proc/self/status").exists():
        raise BenchError("memory: needs Linux's /proc; leave this suite out")
    for size in bench.options.sizes or SIZES:
        content, style = save_pictures(bench.folder, size)
        classic: Measurement | None = None
        for encoder in bench.encoders(("vgg19", "vgg19-lite")):
            found = [
                _ours(bench, encoder, size, chosen, (content, style))
                for chosen in bench.backends.values()
            ]
            ours = [one for one in found if one is not None]
            peers = _peers(bench, encoder, size, (content, style))
            if encoder.name == "vgg19":
                classic = next((p for p in peers if p.route == CLASSIC), None)
            elif classic is not None:
                peers.append(classic)
            if ours:
                best = min(ours, key=lambda one: (one.precision != "bf16", one.middle))
                _rows(bench, encoder, best, peers)
    for encoder in bench.encoders(("vgg19-lite",)):
        with bench.attempt("memory", f"{encoder.name}, many pictures"):
            many.run(bench, encoder)


def _rows(bench: Bench, encoder: Encoder, best: Measurement, peers: Sequence[Measurement]) -> None:
    target = TARGETS.get(encoder.name) if best.facts["size"] == TARGET_SIZE else None
    for peer in peers:
        words = f"{best.task} against {peer.task}" if peer.task != best.task else None
        bench.row(best, peer, target, words)


def _ours(
    bench: Bench, encoder: Encoder, size: int, chosen: Backend, pictures: tuple[Path, Path]
) -> Measurement | None:
    command = arguments(bench, encoder, pictures, chosen)
    command += ["--size", str(size), "--steps", str(STEPS), "--scales", "1"]
    blank = _blank(encoder, size, label(chosen), precision=chosen.precision)
    return _peak(bench, blank, "nst_fast", command)


def _peers(
    bench: Bench, encoder: Encoder, size: int, pictures: tuple[Path, Path]
) -> list[Measurement]:
    if bench.peers is None:
        return []
    found: list[Measurement | None] = []
    for name, options in bench.peers.MEMORY.items():
        command = [*map(str, pictures), str(bench.folder / "peer.png")]
        command += ["--encoder", str(encoder.path), "--size", str(size), "--steps", str(STEPS)]
        command += ["--threads", str(bench.options.threads), *options]
        blank = _blank(encoder, size, name, ours=False)
        found.append(_peak(bench, blank, bench.peers.CLASSIC, command))
    return [one for one in found if one is not None]


def _peak(bench: Bench, blank: Measurement, module: str, command: list[str]) -> Measurement | None:
    """Run a program for its peak; None where it fails, for instance for want of memory."""
    with bench.attempt("memory", f"{blank.task}, {blank.route}"):
        done = call(module, command, bench.options.threads, bench.peers_parent)
        bench.say(f"{blank.task}: {blank.route}: {done.peak / 2**20:.0f} MiB")
        return bench.keep(replace(blank, values=[float(done.peak)]))
    return None


def _blank(encoder: Encoder, size: int, route: str, **options: Any) -> Measurement:
    task = f"{encoder.name} {size}², peak memory"
    return Measurement("memory", task, route, [], unit="B", facts={"size": size}, **options)
