"""Peak of resident memory of a whole process that makes a picture, ours and torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nst_fast.bench.child import call
from nst_fast.bench.findings import Measurement
from nst_fast.bench.problem import label
from nst_fast.bench.session import Bench
from nst_fast.bench.suites.picture import arguments, save_pictures
from nst_fast.encoders import Encoder
from nst_fast.errors import BenchError
from nst_fast.plan import Backend

SIZES = (512, 1024)  # pixels a side
TARGET_SIZE = 1024
STEPS = 3  # all of ours is allocated before the first; torch's L-BFGS grows for 100 more
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
            ours = [
                _ours(bench, encoder, size, chosen, (content, style))
                for chosen in bench.backends.values()
            ]
            peers = _peers(bench, encoder, size, (content, style))
            best = min(ours, key=lambda one: (one.precision != "bf16", one.middle))
            if encoder.name == "vgg19":
                classic = next((p for p in peers if p.route == CLASSIC), None)
            elif classic is not None:
                peers.append(classic)
            for peer in peers:
                target = TARGETS.get(encoder.name) if size == TARGET_SIZE else None
                words = f"{best.task} against {peer.task}" if peer.task != best.task else None
                bench.row(best, peer, target, words)


def _ours(
    bench: Bench, encoder: Encoder, size: int, chosen: Backend, pictures: tuple[Path, Path]
) -> Measurement:
    command = arguments(bench, encoder, pictures, chosen)
    command += ["--size", str(size), "--steps", str(STEPS), "--scales", "1"]
    done = call("nst_fast", command, bench.options.threads, bench.peers_parent)
    found = _blank(encoder, size, label(chosen), done.peak, precision=chosen.precision)
    return _keep(bench, found)


def _peers(
    bench: Bench, encoder: Encoder, size: int, pictures: tuple[Path, Path]
) -> list[Measurement]:
    if bench.peers is None:
        return []
    found = []
    for name, options in bench.peers.MEMORY.items():
        command = [*map(str, pictures), str(bench.folder / "peer.png")]
        command += ["--encoder", str(encoder.path), "--size", str(size), "--steps", str(STEPS)]
        command += ["--threads", str(bench.options.threads), *options]
        done = call(bench.peers.CLASSIC, command, bench.options.threads, bench.peers_parent)
        found.append(_keep(bench, _blank(encoder, size, name, done.peak, ours=False)))
    return found


def _keep(bench: Bench, found: Measurement) -> Measurement:
    bench.say(f"{found.task}: {found.route}: {found.middle / 2**20:.0f} MiB")
    return bench.keep(found)


def _blank(encoder: Encoder, size: int, route: str, peak: int, **options: Any) -> Measurement:
    task = f"{encoder.name} {size}², peak memory"
    facts = {"size": size}
    return Measurement("memory", task, route, [float(peak)], unit="B", facts=facts, **options)
