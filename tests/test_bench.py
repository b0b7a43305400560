"""How benchmarks measure, and that the peers compute what we compute."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import benching
import numpy as np
import pytest
import torch
from benching import BF16_COSINE, ON_CPU, PARENT, PEERS, THREADS
from closeness import assert_close

from nst_fast import encoders, images
from nst_fast.bench import floor, machine, method, peers, suites
from nst_fast.bench import problem as posing
from nst_fast.bench.child import call
from nst_fast.bench.findings import Measurement
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
from nst_fast.bench.session import Options
from nst_fast.errors import BenchError, SettingsError
from nst_fast.losses import Objective

problem = benching.problem
ours = benching.ours
quick = benching.quick


@pytest.fixture(scope="module")
def shallow() -> Problem:
    """With every kind of layer and term, but few of them: torch.compile takes seconds for each."""
    layers = {"style_layers": {"relu1_1": 1.0}, "content_layers": {"relu2_1": 1.0}}
    settings = replace(SETTINGS, **layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posing, "SETTINGS", settings)
        return make_problem(encoders.load("vgg19-lite"), 48, THREADS)


# ----------------------------------------------------------------------------------- the peers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize("name", ON_CPU)
def test_peers_compute_our_loss_and_gradient(
    name: str, problem: Problem, shallow: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the compiled ones, one through C++; the others are traced, and run as they were traced."""
    peer = ON_CPU[name]
    if peer.compiled and name != "torch.compile fp32 channels_last":
        traced = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", traced)
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
    doubled = replace(problem.goal, factors=problem.goal.factors * 2)
    wrong = ON_CPU["torch fp32"].make(replace(problem, goal=doubled))
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
def test_the_classic_script_makes_a_picture(
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process; test_bench_suites.py starts it in one of its own."""
    paths = suites.picture.save_pictures(tmp_path, 32)
    encoder = str(encoders.load("vgg19-lite").path)
    words = [*map(str, paths), str(tmp_path / "out.png"), "--encoder", encoder, *options]
    words += ["--size", "32", "--steps", "3", "--keep", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["classic", *words])
    importlib.import_module(PEERS.CLASSIC).main()
    told = json.loads(capsys.readouterr().out)
    assert len(told["seconds"]) == 3
    assert told["writing"] > 0
    first, content, last = (
        images.load(path).pixels
        for path in (tmp_path / "out_1.png", paths[0], tmp_path / "out.png")
    )
    assert np.array_equal(first, content)  # at the first step nothing has moved
    assert not np.array_equal(first, last)


def test_a_judge_finds_nothing_in_the_pictures_that_it_compares_with(tmp_path: Path) -> None:
    content, style = map(str, suites.picture.save_pictures(tmp_path, 32))
    words = [content, style, content, style, "--encoder", "vgg19-lite", "--size", "32"]
    at_content, at_style = json.loads(call(PEERS.JUDGED, words, 1, PARENT).output)
    assert at_content[1] == at_style[0] == 0
    assert at_content[0] > 0 < at_style[1]


def test_a_failing_program_gives_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text("raise SystemExit('a hint\\nno content')")
    with pytest.raises(BenchError, match=r"^failing failed: no content$"):
        call("failing", [], 1, tmp_path)


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


def test_the_floor_counts_convolutions_and_moments() -> None:
    encoder = encoders.load("vgg19-lite")
    settings = replace(SETTINGS, style_layers={"relu1_1": 1.0}, content_layers={"relu1_2": 1.0})
    objective = Objective.from_settings(settings, encoder)
    flops, moved = floor.step_work(encoder, objective, 32, 2, "bf16")
    pixels = 2 * 32 * 32
    convolutions = pixels * (4 * 9 * 3 * 16 + 4 * 9 * 16 * 16)
    style = pixels * (17 * 17 + 2 * 16 * 17) + 2 * 4 * 17**3
    assert flops == convolutions + style
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
        ({"device": "cuda", "suites": ("scaling",)}, "no suite 'scaling' on cuda"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Options(**options)
