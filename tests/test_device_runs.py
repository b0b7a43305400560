"""Whole runs on the GPU's code path: windows, scales, pictures side by side, memory."""

from __future__ import annotations

from dataclasses import replace

import host_gpus
import numpy as np
import pytest
from closeness import relative_error
from stylizing import LIGHT, pixels, quick, start

from nst_fast import EngineOptions, Result, images
from nst_fast.errors import DeviceMemoryError, ImageError, NonFiniteError
from nst_fast.gpu import loop
from nst_fast.gpu.session import DeviceSession
from nst_fast.runtime import GPU_PROVIDERS, providers
from nst_fast.state import Saving, State
from nst_fast.stylizer import Run, Stylizer
from nst_fast.workspace import Workspace

host_gpu = host_gpus.host_gpu
gpu = host_gpus.gpu


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


# ------------------------------------------------------------------------------------------ windows


@pytest.fixture
def small_memory(monkeypatch):
    """Let every session of larger images than so many pixels a side fail."""

    def limit(side: int) -> None:
        genuine = DeviceSession.__init__

        def limited(session, graph, **options):
            images = graph.inputs.get("image"), graph.outputs.get("d_image")
            if any(max(shape[1:]) > side for shape in images if shape):
                raise DeviceMemoryError("out of memory")
            genuine(session, graph, **options)

        monkeypatch.setattr(DeviceSession, "__init__", limited)

    return limit


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
    settings = quick(steps=8, optimizer=optimizer, smoothing=0.0, margin=0, **LIGHT)
    expected = stylizer.stylize(content, style, settings)
    with start(stylizer, gpu(), [content], style, settings) as run:
        for _ in run:
            pass
        result = run.result()
    assert result.loss == pytest.approx(expected.loss, rel=1e-2)
    assert relative_error(pixels(result), pixels(expected)) < 2e-2


@pytest.mark.usefixtures("small_scales")
def test_scales_and_results_on_the_way(stylizer, gpu, content, style):
    settings = quick(steps=8, scales=2, **LIGHT)
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


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_what_is_not_finite_ends_the_run(stylizer, gpu, content, style, optimizer, monkeypatch):
    """The fourth of the evaluations that are enqueued next; those before it are reported."""
    backend = gpu()
    with start(
        stylizer, backend, [content], style, quick(steps=40, optimizer=optimizer, **LIGHT)
    ) as run:
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
            NonFiniteError, match=r"step 24: .* not finite at evaluation 24"
        ) as caught:
            for _ in steps:
                pass
        assert "\n" not in str(caught.value)
        assert len(run.reports) == 23
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
    settings = quick(steps=3)
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
    made = on_gpu.stylize_together([content] * 5, style, quick(steps=2, **LIGHT))
    assert [type(result) for result in made] == [Result] * 5
    assert sizes == [5, 2, 3, 1, 2]
    assert len(caplog.records) == 2
    assert "going on with" in caplog.records[0].getMessage()


def test_on_a_cpu_one_after_another(stylizer, content, style):
    made = stylizer.stylize_together([content, style], style, quick(steps=2))
    expected = [stylizer.stylize(picture, style, quick(steps=2)) for picture in (content, style)]
    for one, other in zip(expected, made, strict=True):
        assert np.array_equal(one.picture.pixels, other.picture.pixels)


# ------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        ("fp32", {"history": 3, "average": 3}),
        ("fp32", {"optimizer": "adam", "smoothing": 0.0}),
        ("fp16", {"history": 3}),
    ],
)
def test_a_run_goes_on_to_the_same_bytes(
    stylizer, gpu, content, style, tmp_path, precision, changes
):
    """Saved after seven steps, none of which is under way then; then in another loop."""
    backend, settings = gpu(precision), quick(steps=12, **LIGHT, **changes)
    path = str(tmp_path / "run.state")
    with start(stylizer, backend, [content], style, settings, saving=Saving(path, 7)) as run:
        list(run)
        expected = run.result()
    state = State.load(path)
    assert state.course.taken == [7]
    with start(stylizer, backend, [content], style, settings, state=state) as run:
        assert [report.step for report in run] == [8, 9, 10, 11, 12]
        result = run.result()
    assert np.array_equal(pixels(result), pixels(expected))
    assert [r.loss for r in result.reports] == [r.loss for r in expected.reports]


def test_the_average_is_that_of_the_cpu(stylizer, gpu, content, style):
    settings = quick(steps=6, optimizer="adam", average=4, **LIGHT)
    expected = stylizer.stylize(content, style, settings)
    with start(stylizer, gpu(), [content], style, settings) as run:
        list(run)
        result = run.result()
    last = stylizer.stylize(content, style, replace(settings, average=1))
    off = relative_error(pixels(result), pixels(expected))
    assert off < 0.1 * relative_error(pixels(last), pixels(expected))


# ------------------------------------------------------------------------------------------- memory


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
