"""What each suite of benchmarks measures, and what becomes of a part that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import benching
import numpy as np
import pytest
from benching import ON_CPU, PEERS

from nst_fast import encoders
from nst_fast.bench import machine, peers, suites
from nst_fast.bench.child import Done, call
from nst_fast.bench.findings import Failure, Findings, Measurement
from nst_fast.bench.floor import Probe
from nst_fast.bench.problem import label, make_problem
from nst_fast.bench.session import Bench, Options, opened
from nst_fast.bench.suites import kernels, quality, scaling, step
from nst_fast.errors import BenchError

quick = benching.quick
bench = benching.bench


def test_peaks_are_measured_for_every_precision(bench: Bench) -> None:
    assert set(bench.findings.peaks) >= {"fp32", "copy"}
    assert all(peak > 0 for peak in bench.findings.peaks.values())
    assert ("bf16" in bench.findings.peaks) == bool(machine.bf16_features())


def test_a_floor_takes_the_peaks_of_its_own_rounds(bench: Bench) -> None:
    """A machine that was slow before, or is slow now, was so for the peak too."""
    calls: list[str] = []
    bench.probes = {
        kind: Probe(partial(calls.append, kind), 1e6) for kind in ("fp32", "bf16", "copy")
    }
    bench.findings.peaks = {"fp32": 1.0, "copy": 1e30}
    blank = Measurement("kernels", "task", "route", [], flops=3.0, moved=1.0)
    found = bench.time({"mine": (partial(calls.append, "mine"), blank)})["mine"]
    assert set(calls) == {"mine", "fp32", "copy"}
    assert 0 < found.floor < 1.0
    assert bench.findings.peaks["fp32"] > 1.0
    assert bench.findings.peaks["copy"] == 1e30
    calls.clear()
    bench.time({"mine": (partial(calls.append, "mine"), replace(blank, flops=0.0, moved=0.0))})
    assert set(calls) == {"mine"}


def test_kernels_cover_every_tap_and_the_total(bench: Bench) -> None:
    kernels.run(bench)
    found = bench.findings
    assert len(found.rows) == 2 * (2 * len(kernels.TAPS) + 1)
    assert [row.target for row in found.rows] == [None] * 20 + [1.0, 1.0]
    mine = [m for m in found.measurements if m.ours]
    parts = sum(m.middle for m in mine[: 2 * len(kernels.TAPS)])
    assert found.rows[-1].ours_value == pytest.approx(parts)
    assert all(m.floor > 0 for m in mine if "five" not in m.task)


def test_kernels_that_disagree_are_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TOLERANCES", {"fp32": 0.0})
    kernels.run(bench)
    failed = [f.reason for f in bench.findings.failures]
    assert len(failed) == 1
    assert "disagree" in failed[0]
    assert not bench.findings.rows


def eager_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: peer for name, peer in ON_CPU.items() if not peer.compiled}
    monkeypatch.setattr(bench.peers, "STEPS", {"cpu": kept})


def test_step_has_every_target_and_checks_agreement_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller network takes the larger one's place: targets go by name."""
    eager_only(bench, monkeypatch)
    monkeypatch.setattr(step, "SIZE", 32)
    bench._encoders["vgg19"] = replace(encoders.load("vgg19-lite"), name="vgg19")
    for encoder in ("vgg19", "vgg19-lite"):
        bench.options = replace(bench.options, encoders=(encoder,))
        step.run(bench)
    targets = {row.target for row in bench.findings.rows} - {None}
    assert targets >= {0.65, 0.85, 0.35, 0.2, machine.by_amx(0.02, 0.03)}
    if machine.bf16_features():
        assert targets >= {machine.by_amx(0.4, 0.95), machine.by_amx(0.42, 0.95)}
    measurable = {
        name
        for name, peer in bench.peers.STEPS["cpu"].items()
        if peer.precision != "bf16" or machine.bf16_features()
    }
    assert {row.peer for row in bench.findings.rows} >= {*measurable, "fp32 openvino split"}
    steps = [m for m in bench.findings.measurements if m.route.startswith(label(bench.best))]
    margins = [m for m in steps if m.route.endswith(", default margin")]
    assert len(margins) == 2
    assert {m.flops for m in margins}.isdisjoint(m.flops for m in steps if m not in margins)
    # 1024 pixels: a ReLU may flip; exactness is tested in test_bench.py.
    assert all(a.cosine > 0.99 for a in bench.findings.agreements if "bf16" not in a.peer)


def test_scaling_fits_exponents(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.peers, "STEPS", {"cpu": {"torch fp32": ON_CPU["torch fp32"]}})
    monkeypatch.setattr(scaling, "BATCHES", (1, 2))
    bench.options = replace(bench.options, sizes=(32, 64))
    scaling.run(bench)
    assert [fit.variable for fit in bench.findings.fits] == ["pixels", "threads", "batch"]


def test_a_fit_recovers_an_exponent(bench: Bench) -> None:
    sizes = (2, 4, 8)
    measured = [Measurement("scaling", "net 2²", "route", [3.0 * n**1.5]) for n in sizes]
    scaling._fit(bench, dict(zip(sizes, measured, strict=True)), "pixels")
    (fit,) = bench.findings.fits
    assert fit.exponent == pytest.approx(1.5)
    assert fit.error == pytest.approx(0, abs=1e-6)


def test_time_to_loss_races_optimisers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "EVALUATIONS", 8)
    quality._race(bench, make_problem(encoders.load("vgg19-lite"), 32, threads=1))
    curves = {curve.route: curve for curve in bench.findings.curves}
    assert len(curves) == len(bench.backends) + 4
    for curve in curves.values():
        assert curve.losses == sorted(curve.losses, reverse=True)
        assert curve.seconds == sorted(curve.seconds)
        assert curve.losses[-1] < curve.losses[0]
    assert len(bench.findings.rows) == 4


class Judged:
    """In place of programs: losses of 20 for the content, less with every step."""

    def __init__(self, content: float) -> None:
        self.content = content
        self.run: list[list[str]] = []

    def __call__(self, module: str, words: list[str], *_: object) -> Done:
        self.run.append([module, *words])
        if module == PEERS.CLASSIC:
            each = [2.0] * int(words[words.index("--steps") + 1])
            printed = json.dumps({"seconds": each, "writing": 3.0})
            return Done(sum(each) + 3.0 + 1.5, 0, printed)
        if module == PEERS.JUDGED:
            pictures = words[2 : words.index("--encoder")]
            return Done(1.0, 0, json.dumps([self.found(Path(path).stem) for path in pictures]))
        preset = words[words.index("--preset") + 1]
        return Done({"draft": 2.0, "standard": 4.0, "fine": 9.0}[preset], 0, "")

    def found(self, picture: str) -> tuple[float, float]:
        ours = {"draft": (0.6, 0.1), "standard": (0.3, self.content), "fine": (0.2, 0.4)}
        classic = {"classic": (0.5, 0.4), "classic_2": (0.7, 0.2), "classic_5": (0.8, 0.3)}
        return (ours | classic)[picture]


@pytest.fixture
def race(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Judged]:
    monkeypatch.setattr(suites.judged, "STEPS", 10)
    monkeypatch.setattr(suites.judged, "KEPT", (2, 5))
    bench.options = replace(bench.options, sizes=(suites.judged.SIZE,))

    def run(content: float) -> Judged:
        programs = Judged(content)
        monkeypatch.setattr(suites.judged, "call", programs)
        suites.judged.run(bench)
        return programs

    return run


def test_time_to_quality_is_that_of_the_quickest_preset_that_is_no_worse(bench, race) -> None:
    race(0.4)
    compiled = 2 if machine.bf16_features() else 1
    assert [row.target for row in bench.findings.rows] == [1 / 8, *[1 / 5] * compiled]
    for row in bench.findings.rows:
        assert row.ours.startswith("--preset standard")  # draft has too little of the style
        assert (row.ours_value, row.peer_value) == (4.0, 1.5 + 10 * 2.0)
    ours, eager, *_ = bench.findings.curves
    assert (ours.seconds, ours.losses) == ([2.0, 4.0, 9.0], [0.6, 0.3, 0.2])
    # From the start of the process, without what it took to write; the least so far.
    assert (eager.seconds, eager.losses) == ([5.5, 11.5, 21.5], [0.7, 0.7, 0.5])


def test_a_preset_with_less_likeness_does_not_count(bench, race) -> None:
    race(0.41)
    assert all(row.ours.startswith("--preset fine") for row in bench.findings.rows)


def test_what_is_compiled_is_warm(bench, race) -> None:
    programs = [words for words in race(0.4).run if words[0] == PEERS.CLASSIC]
    for index, words in enumerate(programs):
        if "--compile" in words and "--keep" in words:
            assert programs[index - 1] == [*words[: words.index("--steps")], "--steps", "1"]


def test_without_a_checkout_there_is_no_time_to_quality(bench, tmp_path) -> None:
    bench.peers_parent = tmp_path / "bench"
    suites.judged.run(bench)
    assert not bench.findings.rows
    assert "checkout" in bench.findings.notes[-1]


def test_the_classic_script_is_extrapolated_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench._encoders["vgg19"] = encoders.load("vgg19-lite")
    monkeypatch.setattr(suites.picture, "SIZE", 32)
    suites.picture.compare_pictures(bench)
    rest, row = bench.findings.rows
    assert 0 < rest.ours_value < row.ours_value
    assert rest.peer_value == 1.0
    assert "extrapolated" in row.peer
    assert "extrapolated" in row.note
    assert row.target == (1 / 80 if machine.bf16_features() else 1 / 30)
    assert not bench.findings.failures


def test_extrapolation_adds_the_median_of_the_steps_that_are_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = json.dumps({"seconds": [9.0, 2.0, 2.0, 2.0, 2.0, 3.0]})
    monkeypatch.setattr(suites.picture, "call", lambda *_: Done(25.0, 0, printed))
    lite = encoders.load("vgg19-lite")
    places = (Path("a"), Path("b"))
    assert suites.picture.classic(bench, lite, places, 32, steps=506, timed=6) == 25.0 + 500 * 2.0


def test_throughput_compares_batch_loop_and_classic_script(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench._encoders["vgg19"] = encoders.load("vgg19-lite")
    for name, value in {"STEPS": 8, "EACH": 1, "LOOPED": 1, "SIZE": 32}.items():
        monkeypatch.setattr(suites.throughput, name, value)
    suites.throughput.run(bench)
    found = bench.findings
    assert not found.failures
    assert [m.facts.get("workers") for m in found.measurements] == [1, 2, None, None]
    assert len({m.group for m in found.measurements}) == 1
    best = "nst-fast batch, workers × threads: 2 × 1"
    assert {row.ours for row in found.rows} == {best}
    classic = 1 / 40 if machine.bf16_features() else 1 / 15
    assert [row.target for row in found.rows] == [None, 1 / 1.5, classic]
    assert "extrapolated" in found.rows[-1].peer


def test_a_route_that_fails_leaves_the_others_their_turns(bench: Bench) -> None:
    def failing() -> float:
        raise BenchError("no memory")

    routes = {"a": lambda: 1.0, "b": failing, "c": lambda: 3.0}
    assert bench.in_turns("memory", "task", routes, 2) == {"a": [1.0, 1.0], "c": [3.0, 3.0]}
    assert bench.findings.failures == [Failure("memory", "task, b", "no memory")]


def test_memory_of_a_worker_is_followed_over_many_pictures(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PICTURES": 12, "SETTLED": 4, "SIZE": 32, "STEPS": 2}.items():
        monkeypatch.setattr(suites.many, name, value)
    suites.many.run(bench, encoders.load("vgg19-lite"))
    _, settled, last, most = found = [m.middle for m in bench.findings.measurements]
    assert min(found) > 50e6
    assert most >= max(settled, last)
    assert [row.target for row in bench.findings.rows] == [1.05, 1.05]


def test_memory_that_grows_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = ((done, (100 + done) << 20) for done in range(501) for _ in range(2))
    monkeypatch.setattr(suites.many, "_samples", lambda *_: growing)
    suites.many.run(bench, encoders.load("vgg19-lite"))
    assert [row.ratio for row in bench.findings.rows] == [5.0, 5.0]
    assert not any(row.met for row in bench.findings.rows)


def test_memory_goes_on_where_a_route_has_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(module: str, arguments: list[str], *_: object) -> Done:
        if module == "nst_fast" and "bf16" in arguments:
            raise BenchError("nst_fast was killed; most likely the machine ran out of memory")
        return Done(1.0, 1 << 30, "")

    monkeypatch.setattr(suites.memory, "call", without)
    monkeypatch.setattr(suites.many, "run", lambda *_: None)
    suites.memory.run(bench)
    reasons = [f"{f.task}: {f.reason}" for f in bench.findings.failures]
    expected = "vgg19-lite 32², peak memory, bf16 openvino: nst_fast was killed; most likely"
    assert [r[: len(expected)] for r in reasons] == [expected] * len(
        [b for b in bench.backends.values() if b.precision == "bf16"]
    )
    assert {row.ours for row in bench.findings.rows} == {
        next(name for name, b in bench.backends.items() if b.precision == "fp32")
    }


def test_a_killed_program_is_said_to_lack_memory(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(BenchError, match=r"dying was killed; .* memory"):
        call("dying", [], 1, tmp_path)


def test_memory_measures_each_route_in_its_own_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites.memory, "TARGET_SIZE", 32)
    monkeypatch.setattr(suites.many, "run", lambda *_: None)
    monkeypatch.setattr(bench.peers, "MEMORY", {"torch fp32": ()})  # the others: tested above
    ballast = np.ones(1 << 27)  # 1 GiB here must not count there
    bench.options = replace(bench.options, precisions=("fp32",))
    suites.memory.run(bench)
    assert {row.target for row in bench.findings.rows} == {0.25}
    assert all(50e6 < m.middle < ballast.nbytes for m in bench.findings.measurements)


def test_a_run_without_peers_measures_ours_alone(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "CHECKOUT", tmp_path)
    options = Options(sizes=(32,), encoders=("vgg19-lite",), repeats=1, threads=1)
    lines: list[str] = []
    with opened(options, "test", lines.append) as run:
        step.run(run)
    assert sum("no peers" in line for line in lines) == 1
    assert all(m.ours for m in run.findings.measurements)
    assert isinstance(run.findings, Findings)
