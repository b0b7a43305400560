"""How benchmarks measure, and that the peers compute what we compute."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from closeness import assert_close

from nst_fast import encoders
from nst_fast.bench import floor, machine, method, peers, suites
from nst_fast.bench import problem as posing
from nst_fast.bench.child import Done, call
from nst_fast.bench.findings import Failure, Findings, Measurement
from nst_fast.bench.problem import (
    SETTINGS,
    OurStep,
    Problem,
    agreement,
    backend,
    evaluate,
    make_problem,
    smooth_picture,
    timed_sessions,
)
from nst_fast.bench.session import Bench, Options, opened
from nst_fast.bench.suites import kernels, quality, scaling, step
from nst_fast.errors import BenchError, SettingsError
from nst_fast.losses import Objective

THREADS = 2
PEERS, PARENT, _ = peers.load(None)
BF16_COSINE = 0.98  # vgg19-lite is narrow: docs/architecture.md
assert PEERS is not None
ON_CPU = PEERS.STEPS["cpu"]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(encoders.load("vgg19-lite"), 96, THREADS)


@pytest.fixture(scope="module")
def shallow() -> Problem:
    """With every kind of layer and term, but few of them: torch.compile takes seconds for each."""
    settings = replace(SETTINGS, style_layers={"relu1_1": 0.5, "relu2_1": 0.5},
                       content_layers={"relu2_2": 1.0})  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posing, "SETTINGS", settings)
        return make_problem(encoders.load("vgg19-lite"), 48, THREADS)


@pytest.fixture(scope="module")
def ours(problem: Problem) -> OurStep:
    return OurStep(problem, backend("auto", "fp32", THREADS))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "PAUSE", 0.0)
    monkeypatch.setattr(method, "LEAST_BLOCK", 0.0)
    monkeypatch.setattr(floor, "SIDE", 64)
    monkeypatch.setattr(floor, "COPIED", 1 << 20)


@pytest.fixture
def bench(quick: None) -> Iterator[Bench]:
    options = Options(sizes=(32,), encoders=("vgg19-lite",), repeats=1, threads=THREADS)
    with opened(options, "test", lambda line: None) as run:
        yield run


# ----------------------------------------------------------------------------------- the peers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize("name", ON_CPU)
def test_peers_compute_our_loss_and_gradient(name: str, problem: Problem, shallow: Problem) -> None:
    peer = ON_CPU[name]
    if peer.precision == "bf16" and not machine.bf16_features():
        pytest.skip("this CPU has no bfloat16")
    posed = shallow if peer.compiled else problem
    ours = OurStep(posed, backend("auto", "fp32", THREADS))
    found = agreement("", ("ours", name), evaluate(ours), evaluate(peer.make(posed)))
    if peer.precision == "bf16":
        assert found.cosine >= BF16_COSINE
        assert found.loss < 0.03
    else:
        assert found.loss < 1e-4
        assert found.gradient < 1e-4


def test_a_peer_repeats_itself_and_follows_its_picture(problem: Problem) -> None:
    peer = ON_CPU["torch fp32"].make(problem)
    first = peer.step(), peer.gradient.copy()
    assert peer.step() == pytest.approx(first[0], rel=1e-5)
    assert_close(peer.gradient, first[1])
    peer.place(np.full_like(problem.image, 0.5))
    assert peer.step() != pytest.approx(first[0], rel=1e-2)


def test_agreement_tells_a_wrong_weight(problem: Problem, ours: OurStep) -> None:
    wrong = ON_CPU["torch fp32"].make(replace(problem, factors=problem.factors * 2))
    found = agreement("", ("ours", "wrong"), evaluate(ours), evaluate(wrong))
    assert found.loss == pytest.approx(0.5, rel=1e-4)
    assert found.gradient == pytest.approx(0.5, rel=1e-4)
    assert found.cosine == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("name", ["torch fp32", "torch fp32 channels_last"])
def test_peers_of_several_pictures_add_them_up(name: str, problem: Problem) -> None:
    two = replace(problem, image=np.concatenate([problem.image, problem.image[:, ::-1]]))
    step = ON_CPU[name].make(two)
    found = evaluate(step)
    alone = [evaluate(ON_CPU[name].make(replace(two, image=two.image[i : i + 1]))) for i in (0, 1)]
    assert found[0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
    assert_close(found[1], np.concatenate([gradient for _, gradient in alone]), 1e-4)


@pytest.mark.parametrize("name", PEERS.MINIMIZERS)
def test_minimizers_descend_within_their_evaluations(name: str) -> None:
    calls = []

    def bowl(x: np.ndarray) -> tuple[float, np.ndarray]:
        calls.append(1)
        scale = np.linspace(1, 10, x.size)
        return float(scale @ np.square(x, dtype=np.float64)), 2 * scale * x

    start = np.ones(50, np.float32)
    PEERS.MINIMIZERS[name](bowl, start, 15)
    assert 2 <= len(calls) <= 15
    assert np.array_equal(start, np.ones(50))


@pytest.mark.parametrize("options", PEERS.MEMORY.values(), ids=PEERS.MEMORY)
def test_the_classic_script_makes_a_picture(options: tuple[str, ...], tmp_path: Path) -> None:
    paths = suites.picture.save_pictures(tmp_path, 32)
    encoder = str(encoders.load("vgg19-lite").path)
    words = [*map(str, paths), str(tmp_path / "out.png"), "--encoder", encoder, *options]
    done = call(PEERS.CLASSIC, [*words, "--size", "32", "--steps", "2"], 1, PARENT)
    assert (tmp_path / "out.png").is_file()
    assert done.output.count(",") == 1  # two steps
    assert done.peak > 50e6
    assert done.seconds > 0


def test_a_failing_program_gives_its_last_line() -> None:
    with pytest.raises(BenchError, match=r"peers\.classic failed: .*required"):
        call(PEERS.CLASSIC, [], 1, PARENT)


def test_a_wheel_has_no_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "CHECKOUT", tmp_path)
    found, _, reason = peers.load(None)
    assert found is None
    assert "--peers" in reason
    with pytest.raises(BenchError, match="holds no peers"):
        peers.load(tmp_path)


def test_importing_benchmarks_imports_no_torch() -> None:
    code = "import sys, nst_fast.bench.suites; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------- the method


@pytest.mark.usefixtures("quick")
def test_routes_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    routes = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = method.interleave(routes, 3)
    # A warm-up first; then an untimed call precedes each timed one.
    assert "".join(calls) == "abc" + "aabbcc" + "ccbbaa" + "aabbcc"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_short_calls_fill_the_block_and_long_ones_are_their_own_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(method, "PAUSE", 0.0)
    for durations, calls, found in (
        ([0.01, 0.01, 0.06], 1 + 1 + 5, 0.06 / 5),
        ([9.0, 2.0], 2, 2.0),
        ([9.0, 0.1, 0.2], 3, 0.2),  # compiled in the first call
    ):
        ticks = iter([t for d in durations for t in (0.0, d)])
        monkeypatch.setattr(method.time, "perf_counter", lambda ticks=ticks: next(ticks))
        made: list[int] = []
        times = method.interleave({"a": lambda made=made: made.append(1)}, 1)
        assert len(made) == calls
        assert times["a"] == [pytest.approx(found)]


def test_ratios_are_taken_within_a_round() -> None:
    mine = Measurement("step", "task", "ours", [1.0, 2.0, 4.0], floor=1.0)
    other = Measurement("step", "task", "peer", [2.0, 2.0, 16.0], note="Beware.")
    row = method.compare(mine, other, 0.4)
    assert (row.ours_value, row.peer_value) == (2.0, 2.0)
    assert (row.ratio, row.low, row.high) == (0.5, 0.25, 1.0)
    assert row.met is False
    assert row.share == 0.5
    assert row.note == "Beware."
    assert method.compare(mine, other).met is None


def test_the_floor_counts_convolutions_and_gram_matrices() -> None:
    encoder = encoders.load("vgg19-lite")
    objective = Objective({"relu1_1": 1.0}, {"relu1_2": 1.0}, 0.0, 0.0, "relative")
    flops, moved = floor.step_work(encoder, objective, 32, 2, "bf16")
    pixels = 2 * 32 * 32
    assert flops == pixels * (4 * 9 * 3 * 16 + 4 * 9 * 16 * 16 + 3 * 16 * 16)
    assert moved == 2 * 2 * (2 * 16 * pixels + 9 * 3 * 16 + 9 * 16 * 16)
    peaks = {"fp32": 10.0, "copy": 4.0}
    assert floor.seconds(peaks, "fp32", 100, 8) == 10.0
    assert floor.seconds(peaks, "fp32", 10, 8) == 2.0
    assert floor.seconds(peaks, "bf16", 10, 8) == 0.0


def test_provider_calls_are_timed_only_inside(ours: OurStep) -> None:
    with timed_sessions() as calls:
        ours.step()
    ours.step()
    assert len(calls) == 1


def test_pictures_differ_by_seed_only() -> None:
    one, same, other = (smooth_picture(48, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": ("step", "x")}, "no suite 'x'"),
        ({"sizes": (100,)}, "--sizes: multiples of 16"),
        ({"repeats": 0}, "--repeats"),
        ({"threads": 0}, "--threads"),
        ({"batches": (4, 0)}, "--batch"),
        ({"device": "cuda", "suites": ("memory",)}, "no suite 'memory' on cuda"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Options(**options)


# -------------------------------------------------------------------------------------- on a GPU


class FakeGpu:
    """A GPU that is this CPU, and counts how often it was waited for."""

    SIDE, COPIED = 64, 1 << 20

    def __init__(self) -> None:
        self.waits = 0

    def facts(self) -> dict[str, object]:
        return {"gpu": "NVIDIA Test 80GB (PCIe)", "cuda": "13"}

    def wait(self) -> None:
        self.waits += 1

    def peak_routes(self) -> dict[str, method.Route]:
        return dict.fromkeys(("fp32", "tf32", "bf16", "fp16", "copy"), lambda: None)


@pytest.fixture
def fake_gpu(quick: None, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    monkeypatch.setattr(PEERS, "gpu", fake)
    eager = {"torch fp32": ON_CPU["torch fp32"], "torch tf32": replace(ON_CPU["torch fp32"])}
    monkeypatch.setattr(PEERS, "STEPS", {"cpu": ON_CPU, "cuda": eager})
    monkeypatch.setattr(PEERS, "GRAMS", {"cuda": {"cuBLAS fp32": PEERS.GRAMS["cpu"]["torch"]}})
    return fake


ON_CUDA = Options(
    suites=("kernels", "step"), sizes=(32,), encoders=("vgg19-lite",), repeats=2, device="cuda"
)


def test_a_gpu_is_measured_against_its_own_peers(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(problem: Problem, *_: object) -> dict[str, tuple[OurStep, str]]:
        return {"fp16 cuda": (OurStep(problem, backend("auto", "fp32", 1)), "fp16")}

    ours = PEERS.GRAMS["cuda"]["cuBLAS fp32"]
    monkeypatch.setattr(suites.step.gpu, "steps", steps)
    monkeypatch.setattr(suites.step.gpu, "grams", lambda: {"CUDA kernel": ours})
    monkeypatch.setattr(suites.step, "SIZE", 32)
    monkeypatch.setattr(suites.step, "LARGEST", "vgg19-lite")
    with opened(ON_CUDA, "test", lambda line: None) as run:
        suites.run_all(run, lambda: None)
    found = run.findings
    assert not found.failures
    assert found.name == "nvidia-test-80gb"
    assert set(found.peaks) == {"fp32", "tf32", "bf16", "fp16", "copy"}
    steps_of = [row for row in found.rows if row.suite == "step"]
    assert [(row.task, row.peer) for row in steps_of] == [
        (f"vgg19-lite 32²{many}, loss + gradient", peer)
        for many in ("", " × 8")
        for peer in ("torch fp32", "torch tf32")
    ]
    assert {row.target for row in steps_of} == {1 / 8, None}
    assert {row.ours for row in found.rows} == {"fp16 cuda", "CUDA kernel"}
    calls = sum(len(m.values) for m in found.measurements if "five" not in m.task)
    assert fake_gpu.waits >= calls


def test_without_ours_the_peers_of_a_gpu_are_measured_alone(fake_gpu: FakeGpu) -> None:
    with opened(ON_CUDA, "test", lambda line: None) as run:
        suites.run_all(run, lambda: None)
    assert not run.findings.failures
    assert not run.findings.rows
    assert {m.suite for m in run.findings.measurements} == {"kernels", "step"}
    assert any("peers alone" in note for note in run.findings.notes)


def test_a_machine_without_a_gpu_says_so_in_one_line() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with (
        pytest.raises(BenchError, match=r"^--device cuda: torch .* sees no GPU; install .*$"),
        opened(ON_CUDA, "test", lambda line: None),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PEERS.STEPS["cuda"])
def test_gpu_peers_compute_our_loss_and_gradient(
    name: str, problem: Problem, ours: OurStep
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    peer = PEERS.STEPS["cuda"][name]
    found = agreement("", ("ours", name), evaluate(ours), evaluate(peer.make(problem)))
    loss, cosine = {"fp32": (1e-4, 0.9999), "tf32": (1e-2, 0.99)}.get(
        peer.precision, (0.03, BF16_COSINE)
    )
    assert found.loss < loss
    assert found.cosine > cosine


def test_a_gpu_is_waited_for_within_the_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(method, "PAUSE", 0.0)
    monkeypatch.setattr(method.time, "perf_counter", lambda: clock[0])

    def wait() -> None:
        clock[0] += 2.0

    assert method.interleave({"a": lambda: None}, 2, wait) == {"a": [2.0, 2.0]}


# ---------------------------------------------------------------------------------- the suites


def test_peaks_are_measured_for_every_precision(bench: Bench) -> None:
    assert set(bench.findings.peaks) >= {"fp32", "copy"}
    assert all(peak > 0 for peak in bench.findings.peaks.values())
    assert ("bf16" in bench.findings.peaks) == bool(machine.bf16_features())


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
    bench: Bench, monkeypatch: pytest.MonkeyPatch, vgg19_pack
) -> None:
    eager_only(bench, monkeypatch)
    monkeypatch.setattr(step, "SIZE", 32)
    bench._encoders["vgg19"] = replace(vgg19_pack.encoder, name="vgg19")
    for encoder in ("vgg19", "vgg19-lite"):
        bench.options = replace(bench.options, encoders=(encoder,))
        step.run(bench)
    targets = {row.target for row in bench.findings.rows} - {None}
    assert targets >= {0.65, 0.85, 0.35, 0.2, machine.by_amx(0.02, 0.03)}
    if machine.bf16_features():
        assert targets >= {machine.by_amx(0.4, 0.95), machine.by_amx(0.42, 0.95)}
    assert {row.peer for row in bench.findings.rows} >= {
        *bench.peers.STEPS["cpu"],
        "fp32 openvino split",
    }
    # Random weights and 1024 pixels: a ReLU may flip; exactness is tested above.
    assert all(a.cosine > 0.99 for a in bench.findings.agreements if "bf16" not in a.peer)


def test_scaling_fits_exponents(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    eager_only(bench, monkeypatch)
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


def test_the_classic_script_is_extrapolated_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench._encoders["vgg19"] = encoders.load("vgg19-lite")
    monkeypatch.setattr(suites.picture, "SIZE", 32)
    monkeypatch.setattr(suites.picture, "STEPS", 3)
    suites.picture.compare_pictures(bench)
    (row,) = bench.findings.rows
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
    first, settled, last, most = (m.middle for m in bench.findings.measurements)
    assert 50e6 < first <= most
    assert most == max(settled, last, most)
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
