"""Plans of the GPU's code path: kernels by the shim, sessions on the CPU; loss and gradient."""

from __future__ import annotations

from dataclasses import replace

import host_gpus
import numpy as np
import pytest
import reference
from closeness import assert_close, relative_error
from problems import (
    LOSSES,
    SHAPE,
    Problem,
    around,
    clear_image,
    make_objective,
    make_problem,
)
from shim import ShimLauncher, make_launcher
from stylizing import SHALLOW

from nst_fast.backend import Backend
from nst_fast.errors import ProviderError
from nst_fast.gpu import evaluators
from nst_fast.gpu.plan import DevicePlan
from nst_fast.gpu.session import DeviceSession
from nst_fast.gradient_check import MOST_ERROR, gradient_error
from nst_fast.graph.forms import step_graphs
from nst_fast.graph.half import to_half
from nst_fast.losses import Anchor
from nst_fast.plan import Plan, make_plan

host_gpu = host_gpus.host_gpu
gpu = host_gpus.gpu


TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2}  # float16 flips ReLUs that are nearly 0
FLIPPED = 0.2  # ... and makes maxima of features that are nearly alike
KINDS = ("split", "fused")


def make_device_plan(pack, given: Problem, where: Backend, kind="auto", **options) -> DevicePlan:
    options = {"pictures": len(given.image)} | options
    return DevicePlan(pack.encoder, given.objective, given.canvas, where, kind, **options)


def evaluate(plan: DevicePlan, launcher, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    plan.set_targets(problem.targets, problem.weights)
    gradient = plan.gradient_at(problem.image)
    terms = np.concatenate([launcher.download(part) for part in plan.terms], axis=1)
    return terms, gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_loss_and_gradient(pack, problem, gpu, precision, kind):
    check_plan(pack, problem(pack), gpu(precision), kind)


def check_plan(pack, given: Problem, where: Backend, kind: str) -> None:
    plan = make_device_plan(pack, given, where, kind)
    assert plan.kind == kind
    tolerance = TOLERANCE[where.precision]
    terms, gradient = evaluate(plan, where.launcher, given)
    assert np.allclose(terms, given.terms, rtol=tolerance, atol=0)
    flips = (pack.encoder.pooling, where.precision) == ("max", "fp16")
    for n in range(SHAPE[0]):
        assert_close(gradient[n], given.gradient[n], FLIPPED if flips else tolerance)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_an_encoder_that_is_no_chain_runs_as_whole_graphs(
    max_pack, problem, gpu, precision, monkeypatch
):
    """As every encoder does on TensorRT."""
    monkeypatch.setattr(evaluators, "chain_of", lambda *_, **__: None)
    check_plan(max_pack, problem(max_pack), gpu(precision), "split")


def test_ties_of_maxima_share_the_gradient_in_float16(max_pack, seed):
    """Of activations that float16 holds, of a few values each, as float32 computes it."""
    rng, taps, shape = np.random.default_rng(seed), ["relu1_2", "relu3_1"], (2, 20, 12)
    _, backward = step_graphs(max_pack.encoder, taps, shape)
    _, half = step_graphs(max_pack.encoder, taps, shape)
    to_half(half)
    assert {"Equal", "Div", "AveragePool"} <= {node.op_type for node in half.nodes}
    found = []
    sessions = [
        DeviceSession(graph, provider="cpu", precision="fp32", launcher=make_launcher("shim"))
        for graph in (backward, half)
    ]
    for name, array in sessions[0].inputs.items():
        values = rng.integers(0, 4, array.shape) if name in max_pack.encoder.taps else None
        drawn = rng.standard_normal(array.shape) if values is None else values
        for session in sessions:
            session.inputs[name][...] = drawn.astype(np.float16)
    for session in sessions:
        session.run()
        (gradient,) = session.outputs.values()
        found.append(gradient.astype(np.float64))
    assert_close(found[1], found[0], 5e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_style_loss_with_margin_and_opacity(average_pack, batch, gpu, kind, loss):
    objective = make_objective(average_pack.encoder, style_loss=loss, **SHALLOW)
    pictures = [batch(names, 29, 23) for names in ("astronaut coffee", "chelsea", "coffee")]
    image = clear_image(average_pack, objective, pictures[0], seed=2, margin=6)
    opacity = [np.linspace(0, 1, 23 * 29, dtype=np.float32).reshape(23, 29), None]
    given = make_problem(average_pack, objective, image, *pictures[1:], margin=6, opacity=opacity)
    where = gpu()
    plan = make_device_plan(average_pack, given, where, kind)
    terms, gradient = evaluate(plan, where.launcher, given)
    # A distance is a difference of traces: as small as this, little of it is left in float32.
    assert np.allclose(terms, given.terms, rtol=1e-3, atol=1e-7)
    for n in range(2):
        assert_close(gradient[n], given.gradient[n], 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{"style_weight": 0.0}, {"content_weight": 0.0}])
def test_style_or_content_alone(average_pack, batch, gpu, kind, changes):
    objective = make_objective(average_pack.encoder, **SHALLOW, **changes)
    pictures = [batch(names, 24, 16) for names in ("astronaut", "chelsea", "coffee")]
    image = clear_image(average_pack, objective, pictures[0], seed=3)
    given, where = make_problem(average_pack, objective, image, *pictures[1:]), gpu()
    plan = make_device_plan(average_pack, given, where, kind)
    terms, gradient = evaluate(plan, where.launcher, given)
    assert np.allclose(terms, given.terms, rtol=1e-4, atol=0)
    assert_close(gradient, given.gradient, 1e-4)


def test_tensorrt_has_no_float64(average_pack, host_gpu):
    objective = make_objective(average_pack.encoder, style_loss="wasserstein", **SHALLOW)
    canvas = around(average_pack.encoder, objective, np.zeros((1, 3, 16, 16)))
    where = replace(host_gpu(), provider="tensorrt")
    with pytest.raises(ProviderError, match=r"wasserstein needs float64, .* use --provider cuda"):
        DevicePlan(average_pack.encoder, objective, canvas, where)


@pytest.mark.parametrize("kind", KINDS)
def test_other_targets_and_images(average_pack, problem, gpu, kind):
    first, second = problem(average_pack), problem(average_pack, swapped=True)
    where = gpu()
    plan = make_device_plan(average_pack, first, where, kind)
    for given in (first, second, first):
        terms, gradient = evaluate(plan, where.launcher, given)
        assert_close(terms, given.terms, 1e-4)
        assert_close(gradient, given.gradient, 1e-4)
    mirrored = np.ascontiguousarray(first.image[..., ::-1])
    assert relative_error(plan.gradient_at(mirrored), first.gradient) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_scale_is_lowered_until_the_gradient_fits(average_pack, problem, gpu, kind):
    given, where = problem(average_pack), gpu("fp16")
    alone = {"tv_weight": 0.0, "range_weight": 0.0}
    heavy = make_objective(average_pack.encoder, style_weight=1e7, content_weight=3e6, **alone)
    plan = make_device_plan(average_pack, replace(given, objective=heavy), where, kind)
    plan.set_targets(given.targets, given.weights)
    before = where.launcher.download(plan.loss_scale)
    gradient = plan.gradient_at(given.image)
    scale = where.launcher.download(plan.loss_scale)
    assert (scale < before).all()
    assert (np.log2(scale) % 1 == 0).all()
    assert np.isfinite(gradient).all()
    light = make_objective(average_pack.encoder, **alone)
    lighter = make_device_plan(average_pack, replace(given, objective=light), where, kind)
    lighter.set_targets(given.targets, given.weights)
    # Same direction: the weights differ by one factor.
    a, b = gradient.ravel(), lighter.gradient_at(given.image).ravel()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_gradient_check_passes(average_pack, gpu, precision, kind):
    objective = make_objective(average_pack.encoder)
    error = gradient_error(average_pack.encoder, objective, gpu(precision), kind)
    assert error < MOST_ERROR[precision]


def test_the_gradient_check_sees_a_wrong_kernel(average_pack, host_gpu, monkeypatch):
    objective = make_objective(average_pack.encoder)
    genuine = ShimLauncher.launch

    def skip_one(launcher, kernel, *arguments):
        if "pull_back" not in kernel:
            genuine(launcher, kernel, *arguments)

    monkeypatch.setattr(ShimLauncher, "launch", skip_one)
    error = gradient_error(average_pack.encoder, objective, host_gpu(), "split")
    assert not error <= MOST_ERROR["fp32"]


@pytest.mark.parametrize(("on_gpu", "precision"), [(True, "fp32"), (True, "fp16"), (False, "fp32")])
def test_the_anchor_is_that_of_the_last_targets(average_pack, problem, gpu, on_gpu, precision):
    given, where = problem(average_pack), gpu(precision)
    weight, encoder = 7.0, average_pack.encoder
    objective = replace(given.objective, temporal=weight)
    where = where if on_gpu else replace(where, launcher=None)
    plan = make_plan(encoder, objective, given.canvas, where, "split", pictures=len(given.image))
    rng = np.random.default_rng(0)
    seen = rng.random((len(given.image), *given.image.shape[2:]), np.float32)
    anchor = Anchor(rng.random(given.image.shape, np.float32), seen)
    means = np.full(len(given.image), weight / given.image[0].size)
    wide = (array.astype(np.float64) for array in (given.image, anchor.pixels, anchor.weights))
    losses, added = reference.temporal_loss(*wide, means)
    for near in (None, anchor, None):
        plan.set_targets(given.targets, given.weights, near)
        gradient = plan.gradient_at(given.image)
        term = where.launcher.download(plan.terms[1])[:, 2] if on_gpu else plan.terms[:, -1]
        expected = given.gradient if near is None else given.gradient + added
        assert_close(gradient, expected, TOLERANCE[precision])
        assert np.allclose(term, 0 if near is None else losses, rtol=1e-5, atol=0)


def test_the_plan_of_a_backend_is_that_of_its_device(average_pack, gpu):
    objective = make_objective(average_pack.encoder)
    where = gpu()
    canvas = around(average_pack.encoder, objective, np.zeros((1, 3, 16, 16)))
    on_gpu = make_plan(average_pack.encoder, objective, canvas, where)
    on_cpu = make_plan(average_pack.encoder, objective, canvas, replace(where, launcher=None))
    assert (type(on_gpu), type(on_cpu)) == (DevicePlan, Plan)
    assert (on_gpu.kind, on_cpu.kind) == ("split", "fused")


# ---------------------------------------------------------------------------------------- windows

WINDOWED = {
    "style_layers": {"relu1_1": 1.0, "relu2_2": 0.5, "relu3_1": 1.0},
    "content_layers": {"relu2_1": 0.5, "relu3_2": 1.0},
}


@pytest.mark.parametrize(
    ("precision", "side"), [("fp32", 48), ("fp16", 48), ("fp32", 64), ("fp16", 96)]
)
def test_windows_add_up_to_the_whole(average_pack, batch, gpu, precision, side):
    """Against float64 autograd on the whole pictures; twice, as nothing may be left over."""
    objective = make_objective(average_pack.encoder, **WINDOWED)
    content, style = batch("chelsea astronaut", 77, 63), batch("coffee chelsea", 80, 64)
    image = clear_image(average_pack, objective, batch("astronaut coffee", 77, 63), seed=1)
    opacity = [None, np.linspace(0, 1, 63 * 77, dtype=np.float32).reshape(63, 77)]
    given = make_problem(average_pack, objective, image, content, style, opacity=opacity)
    where = gpu(precision)
    plan = make_device_plan(average_pack, given, where, side=side)
    assert plan.kind == "tiled"
    for _ in range(2):
        terms, gradient = evaluate(plan, where.launcher, given)
        assert np.allclose(terms, given.terms, rtol=TOLERANCE[precision], atol=0)
        for n in range(2):
            assert_close(gradient[n], given.gradient[n], TOLERANCE[precision])


# --------------------------------------------------------------------------------- order and shapes


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_reads_what_was_copied_just_before(average_pack, problem, gpu, kind):
    """Nobody waits in between: the order on the stream has to do."""
    given, where = problem(average_pack), gpu()
    plan = make_device_plan(average_pack, given, where, kind)
    plan.set_targets(given.targets, given.weights)
    pictures = [given.image, np.ascontiguousarray(given.image[..., ::-1])]
    alone = [plan.gradient_at(picture).copy() for picture in pictures]
    for last in (0, 1, 0):
        for which in (last, 1 - last, last):
            plan.set_image(pictures[which])
            plan.evaluate_taps()
            plan.evaluate_picture()
        assert np.array_equal(where.launcher.download(plan.gradient), alone[last])


def test_many_shapes_in_one_process(average_pack, batch, gpu):
    """Each has sessions, arrays and graphs of its own, all alive at once."""
    where = gpu()
    objective = make_objective(average_pack.encoder)
    plans = []
    for width, height in ((64, 48), (48, 64), (32, 32), (79, 17)):
        image, content, style = (
            batch(n, width, height) for n in ("astronaut", "coffee", "chelsea")
        )
        image = clear_image(average_pack, objective, image, seed=1)
        solved = make_problem(average_pack, objective, image, content, style)
        plans.append((make_device_plan(average_pack, solved, where), solved))
    for plan, solved in plans * 2:
        terms, gradient = evaluate(plan, where.launcher, solved)
        assert_close(terms, solved.terms, 1e-4)
        assert_close(gradient, solved.gradient, 1e-4)
