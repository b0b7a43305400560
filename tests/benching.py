"""Benchmarks made small: a problem, our step of it, and a run that measures next to nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nst_fast import encoders
from nst_fast.bench import floor, method, peers
from nst_fast.bench.problem import OurStep, Problem, backend, make_problem
from nst_fast.bench.session import Bench, Options, opened

THREADS = 2
PEERS, PARENT, _ = peers.load(None)
BF16_COSINE = 0.98  # vgg19-lite is narrow: docs/architecture.md
assert PEERS is not None
ON_CPU = PEERS.STEPS["cpu"]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(encoders.load("vgg19-lite"), 96, THREADS)


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
