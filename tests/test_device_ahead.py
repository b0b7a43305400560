"""A GPU is ahead of the host: what is seen, saved or stopped is that of the steps told of."""

from __future__ import annotations

from functools import partialmethod

import host_gpus
import numpy as np
import pytest
from shim import ShimMirror
from stylizing import LIGHT, pixels, quick, start

from nst_fast import run as run_module
from nst_fast.gpu.loop import REPORT_EVERY, DeviceLoop
from nst_fast.gpu.plan import DevicePlan
from nst_fast.state import Saving, State

host_gpu = host_gpus.host_gpu


@pytest.fixture(scope="module")
def pictures(photo):
    """Content and style, as small as a test allows: the shim runs every thread on the CPU."""
    return [photo("chelsea", 24, 16)], photo("coffee", 24, 16)


@pytest.fixture
def begin(stylizer, host_gpu, pictures):
    """Start a run of so many steps, on Adam: each moves the picture."""
    backend = host_gpu()

    def make(steps: int, more: dict | None = None, **changes):
        settings = quick(steps=steps, optimizer="adam", margin=0, **LIGHT, **changes)
        return start(stylizer, backend, *pictures, settings, **(more or {}))

    return make


@pytest.fixture
def ended(begin):
    """The picture after so many steps of an undisturbed run."""

    def after(steps: int, **changes) -> np.ndarray:
        with begin(steps, **changes) as run:
            list(run)
            return pixels(run.result())

    return after


def test_the_next_steps_are_enqueued_before_the_host_waits(begin, monkeypatch) -> None:
    seen: list[str] = []

    def spied(self, genuine, told):
        seen.append(told)
        return genuine(self)

    for kind, name, told in (
        (DevicePlan, "evaluate_taps", "step"),
        (ShimMirror, "enqueue", "copy"),
        (ShimMirror, "wait", "wait"),
    ):
        monkeypatch.setattr(kind, name, partialmethod(spied, getattr(kind, name), told))
    with begin(25) as run:
        seen.clear()  # of the loss scale's search
        steps = iter(run)
        block, copies, waits = REPORT_EVERY * ["step"], 2 * ["copy"], 2 * ["wait"]
        for fresh in ([*block, *copies, *block], [*copies, *block[:5]], copies):
            for first in [True, *(REPORT_EVERY - 1) * [False]]:
                if next(steps, None) is None:
                    break
                assert seen == ([*fresh, *waits] if first else [])
                seen.clear()
    assert len(run.reports) == 25


@pytest.mark.parametrize("changes", [{}, {"smoothing": 0.0}, {"average": 4}], ids=str)
def test_what_is_seen_is_that_of_the_steps_that_were_told(begin, ended, changes) -> None:
    with begin(25, **changes) as run:
        steps = iter(run)
        next(steps)
        assert len(run.reports) == 10
        seen = run.result()
        assert np.array_equal(run.picture().pixels, pixels(seen))
        assert np.array_equal(pixels(seen), ended(10, **changes))
        assert [report.step for report in steps] == [*range(2, 26)]
        assert np.array_equal(pixels(run.result()), ended(25, **changes))


def test_steps_beyond_the_time_never_happened(begin, ended) -> None:
    with begin(40, max_seconds=1e-9) as run:
        assert [report.step for report in run] == [*range(1, 11)]
        assert np.array_equal(pixels(run.result()), ended(10))


def test_until_stops_where_it_stops_without_running_ahead(begin, monkeypatch) -> None:
    found = []
    genuine = DeviceLoop.advance
    for ahead in (True, False):
        if not ahead:
            monkeypatch.setattr(DeviceLoop, "advance", lambda loop, most, _: genuine(loop, most))
        with begin(60, until=4.0, scales=1) as run:
            steps = [report.step for report in run]
            found.append((steps, pixels(run.result()).tobytes(), run.reports[-1].progress))
    assert found[0] == found[1]
    assert len(found[0][0]) % run_module.MOVED_OVER == 0
    assert 8 < len(found[0][0]) < 60


def test_the_movement_is_looked_at_where_a_state_is_saved(begin, tmp_path) -> None:
    """Steps 9 to 16 are under way then, and `until` may be reached at the last of them."""
    taken = []
    for saves in (False, True):
        with begin(60, until=1e3) as run:
            for report in run:
                if saves and report.step == 3:
                    run.save(tmp_path / "run.state")
            taken.append(len(run.reports))
    assert taken == [16, 16]


def test_whoever_leaves_and_comes_back_misses_no_report(begin) -> None:
    with begin(25) as run:
        for report in run:
            if report.step == 13:
                break
        assert len(run.reports) == 20
        assert [report.step for report in run] == [*range(14, 26)]


def test_a_state_saved_on_the_way_counts_the_steps_under_way(begin, ended, tmp_path) -> None:
    path = tmp_path / "run.state"
    with begin(25) as run:
        told = []
        for report in run:
            told.append(report.step)
            if report.step == 3:
                run.save(path)
                assert len(run.reports) == 20
                assert np.array_equal(pixels(run.result()), ended(20))
        assert told == [*range(1, 26)]
    state = State.load(str(path))
    assert (state.course.taken, state.course.left) == ([20], 5)
    with begin(25, {"state": state}) as run:
        assert [report.step for report in run] == [*range(21, 26)]
        assert np.array_equal(pixels(run.result()), ended(25))


def test_a_run_that_is_stopped_saves_what_it_took(begin, tmp_path) -> None:
    path = str(tmp_path / "run.state")
    with begin(45, {"saving": Saving(path, 100)}) as run:
        next(iter(run))
        run.stop()
        assert [report.step for report in run] == [*range(2, 21)]
        assert State.load(path).course.taken == [20]
        result = run.result()
    assert len(result.reports) == 20


def test_a_state_is_saved_at_its_steps(begin, tmp_path, monkeypatch) -> None:
    taken = []
    monkeypatch.setattr(State, "save", lambda state: taken.append([*state.course.taken]))
    with begin(30, {"saving": Saving(str(tmp_path / "run.state"), 12)}) as run:
        list(run)
    assert taken == [[12], [24]]


def test_a_state_where_until_was_reached_goes_on_with_the_next_size(
    begin, tmp_path, monkeypatch, small_scales
) -> None:
    """Steps were under way when it was; those are in the state, and in the progress."""
    path, ends = tmp_path / "run.state", []
    options = {"until": 1e3, "scales": 2}
    with begin(60, **options) as run:
        for report in run:
            if report.step == 16:
                run.save(path)
        ends.append(pixels(run.result()))
        sizes = [report.size for report in run.reports]
    assert sizes.count(sizes[0]) == 24  # 16, and 8 under way
    with begin(60, {"state": State.load(str(path))}, **options) as again:
        list(again)
        ends.append(pixels(again.result()))
    assert np.array_equal(*ends)
    assert run.reports[-1].progress <= 1


def test_nothing_is_under_way_once_a_run_is_closed(begin, monkeypatch) -> None:
    settled = []
    genuine = DeviceLoop.settle
    monkeypatch.setattr(DeviceLoop, "settle", lambda loop: settled.append(len(genuine(loop))))
    with begin(25) as run:
        next(iter(run))
    assert settled == [REPORT_EVERY]
