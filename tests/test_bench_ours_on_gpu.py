"""Our side of ``nst-fast bench --device cuda``, with kernels and sessions on the host."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from closeness import assert_close
from shim import LAUNCHERS, make_launcher

from nst_fast import encoders
from nst_fast.bench import gpu
from nst_fast.bench.problem import OurStep, backend, evaluate, make_problem
from nst_fast.kernels import cpu_kernels
from nst_fast.plan import Backend
from nst_fast.runtime import ProviderStatus

TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3}


@pytest.mark.parametrize("where", LAUNCHERS)
@pytest.mark.parametrize("kind", gpu.KINDS)
def test_gram_routes(where, kind, seed):
    rng = np.random.default_rng(seed)
    F = np.maximum(rng.standard_normal((70, 130)), 0).astype(np.float32)
    T, R = (a + a.T for a in rng.standard_normal((2, 70, 70)).astype(np.float32))
    routes = gpu.gram_routes(make_launcher(where), kind, F, T, R, repeats=2)
    assert routes.repeats == 2
    F64, T64, R64 = (a[None].astype(np.float64) for a in (F, T, R))
    one = np.ones(1)
    for _ in range(2):
        routes.forward()
        assert_close(routes.loss(), reference.style_loss(F64, T64, one)[0], TOLERANCE[kind])
        routes.gradient()
        expected = reference.gram_gradient(F64, R64, one)[0]
        assert_close(routes.found(), expected, TOLERANCE[kind])


@pytest.mark.parametrize("kind", gpu.PLANS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_is_that_of_the_cpu(kind, batch):
    problem = make_problem(encoders.load("vgg19-lite"), 48, 1, batch)
    where = Backend("cpu", "fp32", 1, cpu_kernels(1), make_launcher("shim"))
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
