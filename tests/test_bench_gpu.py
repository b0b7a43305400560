"""Benchmarks on a GPU, by a fake one; and its peers, where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import benching
import pytest
from benching import BF16_COSINE, ON_CPU, PEERS

from nst_fast import EngineOptions, StyleSettings
from nst_fast.bench import gpu, method, plots, suites, tables
from nst_fast.bench.findings import SUITES_ON, Findings, read
from nst_fast.bench.problem import (
    OurStep,
    Problem,
    agreement,
    backend,
    evaluate,
    with_lbfgs,
)
from nst_fast.bench.session import Options, opened
from nst_fast.errors import BenchError
from nst_fast.stylizer import Stylizer

problem = benching.problem
ours = benching.ours
quick = benching.quick


class FakeGpu:
    """A GPU that is this CPU, and counts how often it was waited for."""

    SIDE, COPIED = 64, 1 << 20

    def __init__(self) -> None:
        self.waits = 0
        self.given = 0

    def facts(self) -> dict[str, object]:
        return {"gpu": "NVIDIA Test 80GB (PCIe)", "cuda": "13", "cudnn": 92000}

    def wait(self) -> None:
        self.waits += 1

    def used(self) -> int:
        """A MiB more whenever it has been waited for."""
        return self.waits << 20

    def give_back(self) -> None:
        self.given += 1

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
    suites=SUITES_ON["cuda"], sizes=(32,), encoders=("vgg19-lite",), repeats=2, device="cuda"
)


class FakeStep(OurStep):
    """What the suites ask of the engine on a GPU, on the CPU."""

    planned = 1 << 40

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, backend("auto", "fp32", 1))
        self.count = len(problem.image)

    def with_lbfgs(self) -> tuple[method.Route, method.Route]:
        if self.count > 1:  # no Plan of a CPU has several
            return self.run, self.run
        return (with_lbfgs(self, backend("auto", "fp32", 1)),) * 2


@pytest.fixture
def ours_on_gpu(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    def steps(problem: Problem, *_: object) -> dict[str, tuple[Callable[[], FakeStep], str]]:
        return {"fp16 cuda split": (partial(FakeStep, problem), "fp16")}

    def together(taps: Sequence[gpu.TapData]) -> dict[str, tuple[str, gpu.TapRoutes]]:
        return {"CUDA kernel": ("fp32", gpu.TapRoutes(lambda: None, lambda: None, list, list))}

    ours = PEERS.GRAMS["cuda"]["cuBLAS fp32"]
    monkeypatch.setattr(gpu, "steps", steps)
    monkeypatch.setattr(gpu, "grams", lambda: {"CUDA kernel": ours})
    monkeypatch.setattr(gpu, "grams_together", together)
    monkeypatch.setattr(gpu, "give_back", fake_gpu.give_back)
    monkeypatch.setattr(suites.step, "SIZE", 32)
    monkeypatch.setattr(suites.step, "LARGEST", "vgg19-lite")
    monkeypatch.setattr(suites.picture, "DEFAULTS", StyleSettings(steps=3))
    for name, value in (("SIZE", 32), ("TOGETHER", 2), ("CLASSIC_ENCODER", "vgg19-lite")):
        monkeypatch.setattr(suites.gpu_pictures, name, value)
    monkeypatch.setattr(
        suites.gpu_pictures,
        "open_stylizer",
        lambda encoder: Stylizer(EngineOptions(str(encoder.path), provider="cpu", threads=1)),
    )
    return fake_gpu


def test_a_gpu_is_measured_against_its_own_peers(
    ours_on_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with opened(ON_CUDA, "test", lambda line: None) as run:
        suites.run_all(run, lambda: None)
    found = run.findings
    assert not found.failures
    assert found.name == "nvidia-test-80gb"
    assert set(found.peaks) == {"fp32", "tf32", "bf16", "fp16", "copy"}
    rows = [(row.suite, row.task, row.ours, row.peer, row.target) for row in found.rows]
    ours, whole = "fp16 cuda split", "fp16 cuda split + L-BFGS"
    for many in ("", " × 8"):
        task = f"vgg19-lite 32²{many}"
        assert [
            row for row in rows if row[1].startswith(f"{task},") and row[0] != "throughput"
        ] == [
            ("step", f"{task}, loss + gradient", ours, "torch fp32", 1 / 8),
            ("step", f"{task}, loss + gradient", ours, "torch tf32", None),
            ("step", f"{task}, whole step", whole, ours, None),
            (
                "step",
                f"{task}, whole step, reports",
                whole,
                f"{whole}, waiting for each report",
                None,
            ),
            ("step", f"{task}, the host's part", "enqueuing", "until it is done", 0.5),
            (
                "memory",
                f"{task}, memory of the GPU",
                ours,
                f"{ours}, planned before it is made",
                1.0,
            ),
            ("memory", f"{task}, memory of the GPU", ours, "torch fp32", None),
            ("memory", f"{task}, memory of the GPU", ours, "torch tf32", None),
        ]
    pictures = [row for row in rows if row[0] == "throughput"]
    assert [row[2:] for row in pictures] == [
        ("2 together", "one at a time", 1.0),
        ("2 together", "torch fp32, VGG-19, as many steps (extrapolated)", None),
    ]
    kernels = [row[1] for row in rows if row[0] == "kernels"]
    assert sum("in one launch" in task for task in kernels) == 2
    assert any("defaults takes" in note for note in found.notes)
    calls = sum(len(m.values) for m in found.measurements if m.suite == "step")
    assert ours_on_gpu.waits >= calls
    assert ours_on_gpu.given > 0
    monkeypatch.setitem(tables.NUMBERS, "cuda", (("step", "vgg19-lite 32²"), ("throughput", "")))
    check_tables(found, tmp_path)


def check_tables(findings: Findings, folder: Path) -> None:
    """Every table and plot can be made of what was found, written and read again."""
    path = folder / "nvidia.json"
    path.write_text(findings.to_json())
    found = read(path)
    for suite in SUITES_ON["cuda"]:
        assert tables.block(suite, found, "img").startswith("| task | ours |"), suite
    assert "NVIDIA Test 80GB (PCIe), CUDA 13, cuDNN 92000; " in tables.block("machine", found, "")
    told = tables.block("numbers", found, "img")
    assert "2 together" in told
    assert told.endswith("`nst-fast bench --device cuda` on NVIDIA Test 80GB (PCIe), 1 threads.")
    drawn = plots.draw(found, folder)
    assert any(file.name.endswith("roofline.svg") for file in drawn)


def test_without_ours_the_peers_of_a_gpu_are_measured_alone(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "give_back", fake_gpu.give_back)
    options = replace(ON_CUDA, suites=("kernels", "step", "memory"))
    with opened(options, "test", lambda line: None) as run:
        suites.run_all(run, lambda: None)
    assert not run.findings.failures
    assert not run.findings.rows
    assert {m.suite for m in run.findings.measurements} == {"kernels", "step", "memory"}
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
