"""The GPU's code path with everything on the host: kernels by the shim, sessions on the CPU.

The CPU provider runs float16 graphs by casting, which rounds every layer's result as a GPU does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from closeness import assert_close, relative_error
from problems import (
    LOSSES,
    SHALLOW,
    SHAPE,
    Problem,
    around,
    clear_image,
    make_objective,
    make_problem,
)
from shim import ShimLauncher, make_launcher
from stylizing import pixels, quick

from nst_fast import EngineOptions, Result, images
from nst_fast.backend import Backend
from nst_fast.config import StyleSettings
from nst_fast.errors import DeviceMemoryError, ImageError, NonFiniteError, ProviderError
from nst_fast.gpu import loop
from nst_fast.gpu.plan import DevicePlan
from nst_fast.gpu.session import DeviceSession
from nst_fast.gradient_check import MOST_ERROR, gradient_error
from nst_fast.graph import forms
from nst_fast.kernels import Kernels
from nst_fast.plan import Plan, make_plan
from nst_fast.runtime import GPU_PROVIDERS, providers
from nst_fast.stylizer import Run, Stylizer
from nst_fast.workspace import Workspace

TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2}  # float16 flips ReLUs that are nearly 0
KINDS = ("split", "fused")


# The shim runs every thread of a kernel on the CPU: pictures are as small as a test allows.
@pytest.fixture(scope="session")
def content(photo) -> np.ndarray:
    return photo("chelsea", 48, 32)


@pytest.fixture(scope="session")
def style(photo) -> np.ndarray:
    return photo("coffee", 48, 32)


@pytest.fixture(scope="session")
def larger(photo) -> tuple[np.ndarray, np.ndarray]:
    """Content and style that can be cut into windows."""
    return photo("chelsea", 64, 48), photo("coffee", 64, 48)


@pytest.fixture
def host_gpu(monkeypatch):
    """A backend whose launcher is the shim, by precision."""
    # The CPU provider stands in for CUDA, which has a form for float16.
    monkeypatch.setitem(forms.FORMS, ("cpu", "fp16"), forms.FORMS["cuda", "fp16"])

    def make(precision: str = "fp32") -> Backend:
        return Backend("cpu", precision, 1, Kernels(1), make_launcher("shim"))

    return make


@pytest.fixture(params=["shim", *(pytest.param(p, marks=pytest.mark.gpu) for p in GPU_PROVIDERS)])
def gpu(request, host_gpu):
    """The same, and on a machine with a GPU its providers on it."""
    if request.param == "shim":
        return host_gpu
    launcher = make_launcher("cuda")
    (status,) = (status for status in providers() if status.name == request.param)

    def make(precision: str = "fp32") -> Backend:
        if precision not in status.precisions:
            pytest.skip(f"{status.name} has no {precision} here: {status.problem or 'by nature'}")
        return Backend(status.name, precision, 1, Kernels(1), launcher)

    return make


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
def test_loss_and_gradient(average_pack, problem, gpu, precision, kind):
    given, where = problem(average_pack), gpu(precision)
    plan = make_device_plan(average_pack, given, where, kind)
    assert plan.kind == kind
    terms, gradient = evaluate(plan, where.launcher, given)
    assert np.allclose(terms, given.terms, rtol=TOLERANCE[precision], atol=0)
    for n in range(SHAPE[0]):
        assert_close(gradient[n], given.gradient[n], TOLERANCE[precision])


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
    heavy = make_objective(average_pack.encoder, style_weight=1e7, content_weight=3e6)
    plan = make_device_plan(average_pack, replace(given, objective=heavy), where, kind)
    plan.set_targets(given.targets, given.weights)
    before = where.launcher.download(plan.loss_scale)
    gradient = plan.gradient_at(given.image)
    scale = where.launcher.download(plan.loss_scale)
    assert (scale < before).all()
    assert (np.log2(scale) % 1 == 0).all()
    assert np.isfinite(gradient).all()
    lighter = make_device_plan(average_pack, given, where, kind)
    lighter.set_targets(given.targets, given.weights)
    # Same direction: the weights differ by one factor, but for the terms of the picture.
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


@pytest.fixture
def small_memory(monkeypatch):
    """Let every session of larger images than so many pixels a side fail."""

    def limit(side: int) -> None:
        genuine = DeviceSession.__init__

        def limited(session, graph, **options):
            maps = [shape[2:] for shape in graph.inputs.values() if len(shape) == 4]
            if any(max(sides) > side for sides in maps):
                raise DeviceMemoryError("out of memory")
            genuine(session, graph, **options)

        monkeypatch.setattr(DeviceSession, "__init__", limited)

    return limit


LIGHT = {"style_layers": {"relu2_1": 1.0}, "content_layers": {"relu2_2": 1.0}}


def test_a_picture_beyond_the_memory_is_made_in_windows(
    stylizer, host_gpu, larger, small_memory, caplog
):
    content, style = larger
    settings = quick(steps=6, **LIGHT)
    expected = stylizer.stylize(content, style, settings)
    small_memory(44)
    with start(stylizer, host_gpu(), [content], style, settings) as run:
        for _ in run:
            pass
        result = run.result()
    assert result.environment["plan"] == "tiled"
    assert result.loss == pytest.approx(expected.loss, rel=1e-2)
    assert relative_error(pixels(result), pixels(expected)) < 1e-2
    # Once: style, content, Plan and last evaluation are of one size.
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["out of memory; going on in windows of 42 pixels"]


def test_windows_suit_the_taps_they_are_for(stylizer, host_gpu, larger, small_memory):
    """A side that was found for shallow taps is no multiple of a deep one's cell."""
    content, style = larger
    small_memory(60)
    workspace = Workspace(stylizer.encoder, host_gpu(), "auto")
    pictures = [images.load(content)], [images.load(style)]
    for layers in (LIGHT, {"style_layers": {"relu3_1": 1.0}, "content_layers": {"relu3_1": 1.0}}):
        settings = quick(steps=2, size=80, **layers)
        with Run(workspace, *pictures, settings) as run:
            list(run)
            assert run.result().environment["plan"] == "tiled"


def test_windows_end_where_little_is_their_own(stylizer, host_gpu, content, style, small_memory):
    small_memory(17)
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        start(stylizer, host_gpu(), [content], style, quick(steps=6, **LIGHT))


# ------------------------------------------------------------------------------------- whole runs


def start(stylizer: Stylizer, backend: Backend, content, style, settings: StyleSettings) -> Run:
    workspace = Workspace(stylizer.encoder, backend, "auto")
    contents = [images.load(picture) for picture in content]
    return Run(workspace, contents, [images.load(style)], settings)


@pytest.mark.parametrize(
    ("precision", "optimizer"), [("fp32", "lbfgs"), ("fp32", "adam"), ("fp16", "lbfgs")]
)
def test_a_run_ends_where_the_cpu_ends(stylizer, gpu, content, style, optimizer, precision):
    settings = quick(steps=15, optimizer=optimizer)
    expected = stylizer.stylize(content, style, settings)
    with start(stylizer, gpu(precision), [content], style, settings) as run:
        for _ in run:
            pass
        result = run.result()
    pixels(result)
    assert [report.step for report in result.reports] == list(range(1, 16))
    assert result.reports[0].loss == pytest.approx(expected.reports[0].loss, rel=5e-3)
    # Rounding to float16 leads the steps elsewhere, to no worse a place.
    within = 1e-1 if precision == "fp16" else 5e-2
    assert result.loss == pytest.approx(expected.loss, rel=within)
    assert result.environment["plan"] == "split"


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_without_smoothing_and_margin(stylizer, gpu, content, style, optimizer):
    settings = quick(steps=8, optimizer=optimizer, smoothing=0.0, margin=0)
    expected = stylizer.stylize(content, style, settings)
    with start(stylizer, gpu(), [content], style, settings) as run:
        for _ in run:
            pass
        result = run.result()
    assert result.loss == pytest.approx(expected.loss, rel=1e-2)
    assert relative_error(pixels(result), pixels(expected)) < 2e-2


@pytest.mark.usefixtures("small_scales")
def test_scales_and_results_on_the_way(stylizer, gpu, content, style):
    settings = quick(steps=8, scales=2)
    with start(stylizer, gpu(), [content], style, settings) as run:
        steps = iter(run)
        next(steps)
        early = run.result()
        assert early.size == (24, 16)
        for _ in steps:
            pass
        result = run.result()
    assert result.size == (48, 32)
    plain = start(stylizer, gpu(), [content], style, settings)
    for _ in plain:
        pass
    # Asking for a result on the way disturbs nothing.
    assert np.array_equal(plain.result().picture.pixels, result.picture.pixels)


def test_the_host_reads_now_and_then(stylizer, host_gpu, content, style, monkeypatch):
    backend = host_gpu()
    with start(stylizer, backend, [content], style, quick(steps=30)) as run:
        steps = iter(run)
        next(steps)
        reads = []
        genuine = ShimLauncher.download

        def counted(launcher, array):
            reads.append(array.shape)
            return genuine(launcher, array)

        monkeypatch.setattr(ShimLauncher, "download", counted)
        for _ in range(loop.REPORT_EVERY - 1):
            next(steps)
        assert reads == []
        next(steps)
        assert 1 <= len(reads) <= 4


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_what_is_not_finite_ends_the_run(stylizer, gpu, content, style, optimizer, monkeypatch):
    """The fourth of the evaluations that are enqueued together; those before it are reported."""
    backend = gpu()
    with start(stylizer, backend, [content], style, quick(steps=40, optimizer=optimizer)) as run:
        steps = iter(run)
        for _ in range(loop.REPORT_EVERY):
            next(steps)
        plan, genuine, calls = run._scale._plan, run._scale._plan.evaluate_taps, []

        def poisoned():
            calls.append(1)
            if len(calls) == 4:
                plan.set_image(np.full(plan.image.shape, np.nan, np.float32))
            genuine()

        monkeypatch.setattr(plan, "evaluate_taps", poisoned)
        with pytest.raises(
            NonFiniteError, match=r"step 14: .* not finite at evaluation 14"
        ) as caught:
            for _ in steps:
                pass
        assert "\n" not in str(caught.value)
        assert len(run.reports) == 13
        assert all(np.isfinite(report.loss) for report in run.reports)


# ------------------------------------------------------------------------------ several pictures


@pytest.fixture
def on_gpu(stylizer, gpu, monkeypatch) -> Stylizer:
    """A Stylizer on the shim."""
    here = Stylizer(EngineOptions(provider="cpu", threads=1))
    monkeypatch.setattr(here, "_workspace", Workspace(stylizer.encoder, gpu(), "auto"))
    return here


def test_pictures_side_by_side_are_those_made_alone(on_gpu, photo, style, tmp_path):
    contents = [photo("chelsea", 48, 32), photo("coffee", 32, 48), photo("astronaut", 48, 32)]
    (tmp_path / "text.jpg").write_text("no picture")
    settings = quick(steps=6)
    alone = [on_gpu.stylize(content, style, settings) for content in contents]
    made = on_gpu.stylize_together(
        [contents[0], tmp_path / "text.jpg", *contents[1:]], style, settings
    )
    error = made.pop(1)
    assert isinstance(error, ImageError)
    assert "text.jpg" in str(error)
    for one, other in zip(alone, made, strict=True):
        assert one.picture.size == other.picture.size
        assert [r.step for r in other.reports] == [r.step for r in one.reports]
        # The products are cut by the work of all pictures, and what differs in the last bit grows.
        assert other.reports[0].loss == pytest.approx(one.reports[0].loss, rel=1e-5)
        assert other.loss == pytest.approx(one.loss, rel=1e-3)
        assert relative_error(pixels(other), pixels(one)) < 1e-3


def test_a_group_beyond_the_memory_is_halved(on_gpu, content, style, monkeypatch, caplog):
    sizes = []
    genuine = Run

    def limited(workspace, contents, *arguments, **options):
        sizes.append(len(contents))
        if len(contents) > 2:
            raise DeviceMemoryError("out of memory")
        return genuine(workspace, contents, *arguments, **options)

    monkeypatch.setattr("nst_fast.stylizer.Run", limited)
    made = on_gpu.stylize_together([content] * 5, style, quick(steps=2))
    assert [type(result) for result in made] == [Result] * 5
    assert sizes == [5, 2, 3, 1, 2]
    assert len(caplog.records) == 2
    assert "going on with" in caplog.records[0].getMessage()


def test_on_a_cpu_one_after_another(stylizer, content, style):
    made = stylizer.stylize_together([content, style], style, quick(steps=2))
    expected = [stylizer.stylize(picture, style, quick(steps=2)) for picture in (content, style)]
    for one, other in zip(expected, made, strict=True):
        assert np.array_equal(one.picture.pixels, other.picture.pixels)


# ------------------------------------------------------------------- order, shapes, and memory


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


@pytest.mark.gpu
@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_a_long_loop_allocates_nothing(provider, content, style):
    (status,) = (status for status in providers() if status.name == provider)
    if status.problem:
        pytest.skip(f"{provider}: {status.problem}")
    import cupy

    here = Stylizer(EngineOptions(device="cuda", provider=provider))
    with here.start(content, style, quick(steps=600)) as run:
        steps = iter(run)
        for _ in range(100):
            next(steps)
        before = cupy.cuda.runtime.memGetInfo()[0], cupy.get_default_memory_pool().total_bytes()
        for _ in range(500):
            next(steps)
        after = cupy.cuda.runtime.memGetInfo()[0], cupy.get_default_memory_pool().total_bytes()
    assert after == before
