from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from closeness import assert_close

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))  # programs, not a package

import compare
import harness
from peers import PEERS
from problem import OurStep, Problem, backend, make_problem
from rich.console import Console

from nst_fast import encoders

THREADS = 2


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(encoders.load("vgg19-lite"), 96, THREADS)


@pytest.fixture(scope="module")
def ours(problem: Problem) -> OurStep:
    return OurStep(problem, backend("fp32", THREADS))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PAUSE", 0.0)


@pytest.fixture
def single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LEAST_BLOCK", 0.0)


@pytest.fixture
def bench(tmp_path: Path, single_calls: None) -> compare.Bench:
    return compare.Bench(64, 1, THREADS, tmp_path, Console(quiet=True))


@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_our_loss_and_gradient(name: str, problem: Problem, ours: OurStep) -> None:
    peer = PEERS[name](problem)
    if "bf16" in name:
        found = compare.agreement("b", ("ours", ours), (name, peer))
        assert found.cosine >= 0.99
        assert found.loss < 0.03
    else:
        assert_close(peer.step(), ours.step(), 1e-4)
        assert_close(peer.gradient, ours.gradient, 1e-4)


def test_a_peer_repeats_itself(problem: Problem) -> None:
    peer = PEERS["torch fp32"](problem)
    first = peer.step(), peer.gradient.copy()
    assert peer.step() == pytest.approx(first[0], rel=1e-5)
    assert_close(peer.gradient, first[1])


def test_agreement_tells_a_wrong_weight(problem: Problem, ours: OurStep) -> None:
    wrong = PEERS["torch fp32"](replace(problem, factors=problem.factors * 2))
    found = compare.agreement("b", ("ours", ours), ("wrong", wrong))
    assert found.loss == pytest.approx(0.5, rel=1e-4)
    assert found.gradient == pytest.approx(0.5, rel=1e-4)
    assert found.cosine == pytest.approx(1.0, rel=1e-6)


@pytest.mark.usefixtures("single_calls")
def test_routes_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    routes = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = harness.interleave(routes, 3)
    # An untimed call precedes each timed one.
    assert "".join(calls) == "aabbcc" + "ccbbaa" + "aabbcc"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_short_calls_are_repeated_to_fill_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.01, 1.0, 1.06])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    times = harness.interleave({"a": lambda: calls.append(1)}, 1)
    assert len(calls) == 1 + 5
    assert times["a"] == [pytest.approx(0.06 / 5)]


def test_ratios_are_taken_within_a_round() -> None:
    times = {"ours": [1.0, 2.0, 4.0], "peer": [2.0, 2.0, 16.0]}
    row = harness.compare("b", "task", times, ("ours", "peer"), 0.4)
    assert (row.ours_seconds, row.peer_seconds) == (2.0, 2.0)
    assert (row.ratio, row.low, row.high) == (0.5, 0.25, 1.0)
    assert row.met is False
    assert harness.compare("b", "task", times, ("ours", "peer")).met is None


def test_section_a_covers_every_tap_and_the_total(bench: compare.Bench) -> None:
    compare.section_a(bench)
    tasks = [row.task for row in bench.rows]
    assert len(tasks) == 2 * (2 * len(compare.TAPS) + 1)
    assert tasks[0] == "Gram relu1_1, 64 × 4096"
    assert tasks[-1] == "Gram and gradient, total"
    parts = sum(row.ours_seconds for row in bench.rows[:-2:2])
    assert bench.rows[-1].ours_seconds == pytest.approx(parts)


def test_section_d_finds_a_share_and_writes_it(bench: compare.Bench) -> None:
    compare.section_d(bench)
    (row,) = bench.rows
    assert 0 < row.low <= row.ratio <= row.high < 1
    where = harness.machine(THREADS)
    path = bench.folder / "found.json"
    compare.write_json(path, bench, where, ["d"])
    assert [item.name for item in bench.folder.iterdir()] == ["found.json"]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["rows"][0]["ratio"] == row.ratio
    assert found["machine"]["cpu"] in compare.machine_line(where)
    table = compare.markdown(bench, where).splitlines()[:3]
    assert [line.count("|") for line in table] == [len(compare.COLUMNS) + 1] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "a,x"], "no section 'x'"),
        (["--size", "100"], "multiple of 16"),
        (["--rounds", "0"], "--rounds"),
        (["--json", "no-such-folder/found.json"], "no-such-folder"),
    ],
)
def test_options_that_cannot_work_are_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    with pytest.raises(SystemExit):
        compare.parse()
    assert message in capsys.readouterr().err


def test_pictures_differ_by_seed_only() -> None:
    one, same, other = (compare.smooth_picture(48, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
