"""Runs: left, interrupted, gone wrong, several at once; and the buffers that they share."""

from __future__ import annotations

import gc
import itertools
import weakref
from dataclasses import replace

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stylizing import SHALLOW, pixels, quick

from nst_fast import EngineOptions, StyleSettings, Stylizer, schedule, workspace
from nst_fast import run as run_module
from nst_fast.errors import NonFiniteError, ProviderError, SettingsError
from nst_fast.plan import Plan

# -------------------------------------------------------------------------------- interruptions


def test_a_run_can_be_left_and_taken_up_again(stylizer, content, style):
    """A result on the way does not disturb: the same picture as without."""
    settings = quick(steps=8)
    with stylizer.start(content, style, settings) as run:
        before = run.result()
        assert before.reports == ()
        assert np.abs(pixels(before) - content / 255).max() < 1e-6
        list(itertools.islice(run, 3))
        early = run.result()
        assert len(early.reports) == 3
        assert run.result() is early
        for _ in run:
            pass
        late = run.result()
    assert early.loss < before.loss
    assert late.loss < early.loss
    assert np.array_equal(pixels(late), pixels(stylizer.stylize(content, style, settings)))
    assert run.result() is late


def interrupt(monkeypatch, target: object, name: str, call: int, error: BaseException) -> None:
    """Let the given call of a method raise, and those before and after it work."""
    original, calls = getattr(target, name), []

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(target, name, wrapped)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_ctrl_c_in_the_middle_of_a_step_keeps_the_picture(
    stylizer, content, style, monkeypatch, optimizer
):
    with stylizer.start(content, style, quick(steps=20, optimizer=optimizer)) as run:
        interrupt(monkeypatch, Plan, "value_and_grad", 6, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            for _ in run:
                pass
        result = run.result()
        assert len(result.reports) == 5
        assert result.loss < result.reports[0].loss
        pixels(result)


@pytest.mark.usefixtures("small_scales")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ProviderError("no room")])
def test_trouble_between_scales_keeps_the_picture(stylizer, content, style, monkeypatch, error):
    interrupt(monkeypatch, run_module, "Scale", 2, error)
    with stylizer.start(content, style, quick(steps=10, scales=2)) as run:
        with pytest.raises(type(error)):
            for _ in run:
                pass
        result = run.result()
        assert len(result.reports) == schedule.scale_steps(10, 2)[0]
        assert result.picture.size == (64, 48)


def test_a_closed_run_says_so(stylizer, content, style):
    run = stylizer.start(content, style, quick())
    run.close()
    run.close()
    with pytest.raises(SettingsError, match="closed"):
        run.result()
    with pytest.raises(SettingsError, match="closed"):
        next(iter(run))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("where", ["loss", "gradient", "infinite gradient"])
def test_what_is_not_finite_names_the_step(stylizer, content, style, monkeypatch, optimizer, where):
    """The third evaluation goes wrong; the best picture before it is there."""
    stylizer.stylize(content, style, quick(steps=1))  # the gradient check evaluates, too
    original, calls = Plan.value_and_grad, []

    def poisoned(plan: Plan) -> np.ndarray:
        loss = original(plan)
        calls.append(1)
        if len(calls) == 3:
            if where != "loss":
                plan.gradient[0, 1, 5, 7] = np.nan if where == "gradient" else np.inf
            loss = loss + np.nan if where == "loss" else loss
        # A refused point is no error, whatever its gradient is.
        return loss / 10 ** len(calls)

    monkeypatch.setattr(Plan, "value_and_grad", poisoned)
    with stylizer.start(content, style, quick(optimizer=optimizer, steps=10)) as run:
        with pytest.raises(NonFiniteError, match="step 3") as caught:
            for _ in run:
                pass
        assert "\n" not in str(caught.value)
        assert len(run.reports) == 2
        pixels(run.result())


# -------------------------------------------------------------------------- buffers and memory


@pytest.fixture
def built(monkeypatch) -> dict[str, list]:
    """Weak references to every Plan and TargetExtractor that is made from now on."""
    made: dict[str, list] = {"make_plan": [], "TargetExtractor": []}
    for name, references in made.items():
        original = getattr(workspace, name)

        def make(*arguments, original=original, references=references, **options):
            value = original(*arguments, **options)
            references.append(weakref.ref(value))
            return value

        monkeypatch.setattr(workspace, name, make)
    return made


def test_the_same_shape_reuses_its_sessions(content, style, built):
    here = Stylizer(EngineOptions(provider="cpu", threads=1))
    addresses = []
    for picture, other in ((content, style), (style, content), (content, style)):
        with here.start(picture, other, quick()) as run:
            addresses.append(run._scale._plan.image.ctypes.data)
            for _ in run:
                pass
            run.result()
    assert len(set(addresses)) == 1
    counts = {name: len(made) for name, made in built.items()}
    assert counts == {"make_plan": 1, "TargetExtractor": 1}


def test_the_second_picture_builds_no_session(photo, built, monkeypatch):
    """Content and style of different aspect, at every scale of the default settings."""
    monkeypatch.setattr(schedule, "SMALLEST", 32)
    here = Stylizer(EngineOptions(provider="cpu", threads=1))
    pictures = photo("chelsea", 256, 192), photo("astronaut", 256, 256)
    counts = []
    for _ in range(2):
        here.stylize(*pictures, StyleSettings(size=256, steps=3))
        counts.append({name: len(made) for name, made in built.items()})
    assert counts[0]["make_plan"] == len(schedule.scale_sizes(256, StyleSettings().scales))
    assert counts[1] == counts[0]


def test_other_weights_do_not_get_the_plan_of_these(stylizer, content, style):
    first = stylizer.stylize(content, style, quick())
    stylizer.stylize(content, style, quick(content_weight=5.0, tv_weight=2.0))
    again = stylizer.stylize(content, style, quick())
    assert np.array_equal(pixels(first), pixels(again))


@pytest.mark.parametrize(("shapes", "made_of"), [(1, 4), (2, 8)])
def test_sessions_are_kept_for_so_many_shapes(photo, style, built, shapes, made_of):
    """And the old ones are gone before new ones are made: the peak is what memory has to hold."""
    here = Stylizer(EngineOptions(provider="cpu", threads=1), shapes=shapes)
    for width in range(96, 96 + 16 * made_of, 16):
        here.stylize(photo("chelsea", width, 96), style, quick(steps=1, **SHALLOW))
        gc.collect()
        for made in built.values():
            assert sum(each() is not None for each in made) <= shapes * 2
    assert len(built["make_plan"]) == made_of


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 100)), max_size=30))
def test_a_cache_holds_no_more_than_so_many_of_the_largest(room, values):
    cache = workspace._Cache(room)
    for key, size in values:
        cache.take(key)
        cache.put(key, key, size)
        sizes = [each for _, each in cache._values.values()]
        assert sum(sizes) <= room * max(sizes)
        assert cache._values[key] == (key, size)


def test_two_runs_at_once_do_not_disturb_each_other(stylizer, content, style):
    pairs = [(content, style), (style, content)]
    settings = quick(steps=6)
    alone = [pixels(stylizer.stylize(*pair, settings)) for pair in pairs]
    with (
        stylizer.start(*pairs[0], settings) as one,
        stylizer.start(*pairs[1], settings) as two,
    ):
        for _ in zip(one, two, strict=True):
            one.result()
        together = [pixels(one.result()), pixels(two.result())]
    for found, expected in zip(together, alone, strict=True):
        assert np.array_equal(found, expected)


def test_large_pictures_hold_one_session_at_a_time(content, style, built, monkeypatch):
    monkeypatch.setattr(workspace, "LARGE", content.shape[0] * content.shape[1] - 1)
    genuine, alive = workspace.Workspace.measure, []

    def measure(here, *arguments):
        gc.collect()
        alive.append({name: sum(r() is not None for r in made) for name, made in built.items()})
        return genuine(here, *arguments)

    monkeypatch.setattr(workspace.Workspace, "measure", measure)
    here = Stylizer(EngineOptions(provider="cpu", threads=1))
    first, second = (pixels(here.stylize(content, style, quick())) for _ in range(2))
    assert np.array_equal(first, second)
    # Content, style, and the loss at the end; the second time the style is known.
    assert alive == [{"make_plan": 0, "TargetExtractor": 0}] * 5
    assert {name: len(made) for name, made in built.items()} == {
        "make_plan": 2,
        "TargetExtractor": 5,
    }


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_steps_allocate_nothing_that_grows(stylizer, content, style, optimizer):
    process = psutil.Process()
    with stylizer.start(content, style, quick(steps=240, optimizer=optimizer)) as run:
        plan = run._scale._plan
        addresses = (plan.image.ctypes.data, plan.gradient.ctypes.data, plan.terms.ctypes.data)
        list(itertools.islice(run, 40))
        gc.collect()
        before = process.memory_info().rss
        list(run)
        gc.collect()
        grown = process.memory_info().rss - before
        assert len(run.reports) == 240
        assert run._scale._plan is plan
        assert (
            plan.image.ctypes.data, plan.gradient.ctypes.data, plan.terms.ctypes.data
        ) == addresses  # fmt: skip
    assert grown < 4 * 2**20


# ------------------------------------------------------------------------------ ending early


def test_a_picture_that_no_longer_changes_is_done(stylizer, content, style):
    """It ends where the movement over eight steps, measured from outside, falls below the limit."""
    settings = quick(steps=60)
    every = []
    with stylizer.start(content, style, settings) as run:
        for report in run:
            if report.step % run_module.MOVED_OVER == 0:
                every.append(run.result().picture.pixels)
    moved = [255 * np.sqrt(np.mean((b - a) ** 2)) for a, b in itertools.pairwise(every)]
    assert moved[0] > moved[-1]
    limit = 0.5 * (moved[0] + moved[-1])
    expected = next(i for i, value in enumerate(moved, 2) if value < limit)
    with stylizer.start(content, style, replace(settings, until=limit)) as run:
        list(run)
        assert run.finished
    assert len(run.reports) == run_module.MOVED_OVER * expected < 60


def test_each_size_ends_for_itself(stylizer, content, style, small_scales):
    with stylizer.start(content, style, quick(steps=60, scales=2, until=1e3)) as run:
        list(run)
        assert run.finished
        result = run.result()
    sizes = [report.size for report in run.reports]
    assert sizes == [(32, 24)] * 16 + [(64, 48)] * 16
    assert result.picture.size == result.size == (64, 48)


def test_time_that_is_over_ends_the_run(stylizer, content, style, small_scales, monkeypatch):
    """The best so far is kept, at full size, wherever it ends."""
    clock = itertools.count()
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: float(next(clock)))
    with stylizer.start(content, style, quick(steps=60, scales=2, max_seconds=30.0)) as run:
        list(run)
        assert run.finished
        result = run.result()
    assert 1 <= len(run.reports) < 20
    assert result.picture.size == (64, 48)
    assert result.loss < run.reports[0].loss or result.size != run.reports[0].size
