"""Benchmarks on a GPU, by a fake one; and its peers, where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import benching
import pytest
from benching import BF16_COSINE, ON_CPU, PEERS

from nst_fast.bench import method, suites
from nst_fast.bench.problem import (
    OurStep,
    Problem,
    agreement,
    backend,
    evaluate,
)
from nst_fast.bench.session import Options, opened
from nst_fast.errors import BenchError

problem = benching.problem
ours = benching.ours
quick = benching.quick


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
    def steps(problem: Problem, *_: object) -> dict[str, tuple[Callable[[], OurStep], str]]:
        return {"fp16 cuda": (partial(OurStep, problem, backend("auto", "fp32", 1)), "fp16")}

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
