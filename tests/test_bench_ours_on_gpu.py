"""Our side of ``nst-fast bench --device cuda``, with kernels and sessions on the host."""

from __future__ import annotations

import host_gpus
import numpy as np
import pytest
from closeness import assert_close
from shim import LAUNCHERS, make_launcher

from nst_fast import encoders
from nst_fast.bench import gpu
from nst_fast.bench.problem import OurStep, backend, evaluate, make_problem
from nst_fast.gpu import loop
from nst_fast.runtime import ProviderStatus

host_gpu = host_gpus.host_gpu
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3}


@pytest.mark.parametrize("where", LAUNCHERS)
@pytest.mark.parametrize("kind", gpu.KINDS)
def test_gram_routes(where, kind, seed):
    rng = np.random.default_rng(seed)
    F = np.maximum(rng.standard_normal((70, 130)), 0).astype(np.float32)
    D = rng.standard_normal((71, 71)).astype(np.float32)
    derivative = (D + D.T)[:70] / np.float32(F.size)
    routes = gpu.gram_routes(make_launcher(where), kind, F, derivative, repeats=2)
    assert routes.repeats == 2
    extended = np.concatenate([F, np.ones((1, 130))]).astype(np.float64)
    for _ in range(2):
        routes.forward()
        assert_close(routes.moments(), extended @ extended.T / F.size, TOLERANCE[kind])
        routes.gradient()
        assert_close(routes.found(), derivative.astype(np.float64) @ extended, TOLERANCE[kind])


def test_several_taps_in_one_launch():
    """Each with its own sizes; results are those of each tap alone."""
    rng = np.random.default_rng(0)
    taps = []
    for C, P in ((64, 150), (70, 33)):
        F = np.maximum(rng.standard_normal((C, P)), 0).astype(np.float32)
        D = rng.standard_normal((C + 1, C + 1)).astype(np.float32)
        taps.append((F, (D + D.T)[:C] / np.float32(F.size)))
    where = make_launcher("shim")
    together = gpu.tap_routes(where, "fp32", taps, repeats=1)
    together.forward()
    together.gradient()
    for index, tap in enumerate(taps):
        alone = gpu.gram_routes(where, "fp32", *tap, repeats=1)
        alone.forward()
        alone.gradient()
        assert_close(together.moments()[index], alone.moments(), 1e-6)
        assert_close(together.found()[index], alone.found(), 1e-6)


def test_whole_steps_are_those_of_the_loop(monkeypatch, host_gpu):
    for module in (gpu, loop):
        monkeypatch.setattr(module, "REPORT_EVERY", 3)
    problem = make_problem(encoders.load("vgg19-lite"), 32, 1)
    where = host_gpu()
    step = gpu.GpuStep(problem, where, "split")
    first = step.step()
    ahead, alone = step.with_lbfgs()
    terms = [*ahead(), *alone(), *alone()]  # the first of `alone` was under way
    assert len(terms) == 9
    assert all(found.sum() < 0.9 * first for found in terms)
    assert step.planned > 1e8


@pytest.mark.parametrize("kind", gpu.PLANS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_is_that_of_the_cpu(kind, batch, host_gpu):
    problem = make_problem(encoders.load("vgg19-lite"), 48, 1, batch)
    where = host_gpu()
    ours = gpu.GpuStep(problem, where, kind)
    loss, gradient = evaluate(ours)
    expected = evaluate(OurStep(problem, backend("cpu", "fp32", 1), "split"))
    assert loss == pytest.approx(expected[0], rel=1e-4)
    assert_close(gradient, expected[1], 1e-3)
    ours.place(problem.image[..., ::-1].copy())
    assert evaluate(ours)[0] != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "precisions", "expected"),
    [
        (["auto"], ["auto"], ["tf32 tensorrt", "fp16 tensorrt", "fp32 cuda", "fp16 cuda"]),
        (["cuda"], ["auto"], ["fp32 cuda", "fp16 cuda"]),
        (["auto"], ["fp16"], ["fp16 tensorrt", "fp16 cuda"]),
        (["cpu"], ["auto"], []),
    ],
)
def test_what_was_asked_for_is_measured(monkeypatch, asked, precisions, expected):
    statuses = [
        ProviderStatus("tensorrt", ("tf32", "fp16")),
        ProviderStatus("cuda", ("fp32", "fp16")),
        ProviderStatus("cpu", ("fp32",)),
    ]
    monkeypatch.setattr(gpu, "providers", lambda: statuses)
    monkeypatch.setattr(gpu, "launcher", lambda: None)
    monkeypatch.setattr(gpu, "GpuStep", lambda *arguments: arguments)
    problem = make_problem(encoders.load("vgg19-lite"), 32, 1)
    found = gpu.steps(problem, asked, precisions)
    assert list(found) == [f"{name} {kind}" for name in expected for kind in gpu.PLANS]
    assert all(precision == name.split()[0] for name, (_, precision) in found.items())
