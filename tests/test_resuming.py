"""Saved runs that are gone on from: the same bytes, and nothing else is taken for one."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stylizing import pixels, quick

from nst_fast import EngineOptions, StyleSettings, Stylizer, schedule, state
from nst_fast import run as run_module
from nst_fast.errors import SettingsError, StateError
from nst_fast.plan import Plan
from nst_fast.state import Saving, State


@pytest.fixture(scope="module")
def content(photo) -> np.ndarray:
    return photo("chelsea", 40, 32)


@pytest.fixture(scope="module")
def style(photo) -> np.ndarray:
    return photo("coffee", 40, 32)


@pytest.fixture
def saved(stylizer, content, style, tmp_path):
    """The state after so many steps."""

    def save(settings: StyleSettings, steps: int) -> Path:
        path = tmp_path / "run.state"
        with stylizer.start(content, style, settings) as run:
            list(itertools.islice(run, steps))
            run.save(path)
        return path

    return save


# ---------------------------------------------------------------------------------- the same bytes

RUNS = {
    "lbfgs": {"history": 3},  # its ring is full, and turns
    "adam": {"optimizer": "adam"},
    "sizes": {"scales": 2},
    "pixels": {"optimizer": "adam", "smoothing": 0.0, "average": 4},
    "average": {"average": 3, "scales": 2},
    "until": {"until": 1e3, "steps": 60, "scales": 2},
    "noise": {"init": "noise", "seed": 3, "colour": "luminance"},
    "transfer": {"init": "transfer", "margin": 0},
}


@pytest.mark.usefixtures("small_scales")
def test_masks_are_part_of_a_run(stylizer, content, style, tmp_path):
    """Regions that are too small for a tap at one size have another number of terms there."""
    settings, path = quick(steps=6, scales=2), tmp_path / "run.state"
    left = np.zeros((32, 40, 3), np.uint8)
    left[:, :14] = 255
    masks = {"style_mask": [left, 255 - left]}
    with stylizer.start(
        content, [style, content], settings, **masks, save=path, save_every=5
    ) as run:
        list(run)
        expected = run.result()
    result = stylizer.stylize(content, [style, content], settings, **masks, resume=path)
    assert np.array_equal(pixels(result), pixels(expected))
    assert result.notes == expected.notes
    assert [r.terms for r in result.reports] == [r.terms for r in expected.reports]
    for wrong in ({}, {"style_mask": [255 - left, left]}):
        with pytest.raises(StateError, match="pictures masks"):
            stylizer.start(content, [style, content], settings, **wrong, resume=path)


@pytest.mark.usefixtures("small_scales")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_to_the_same_bytes(stylizer, content, style, saved, monkeypatch, name):
    """And takes only the steps that were left: the work before is not done again."""
    settings = quick(**{"steps": 10, **RUNS[name]})
    expected = stylizer.stylize(content, style, settings)
    steps = len(expected.reports)
    assert steps < settings.steps if name == "until" else steps == settings.steps
    calls = []
    genuine = Plan.value_and_grad
    for before in (1, steps // 2, steps - 2, steps):
        path = saved(settings, before)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Plan, "value_and_grad", lambda p: calls.append(1) or genuine(p))
            result = stylizer.stylize(content, style, settings, resume=path)
        assert len(calls) == steps - before
        assert np.array_equal(pixels(result), pixels(expected))
        assert (result.loss, result.terms) == (expected.loss, expected.terms)
        for found, told in zip(result.reports, expected.reports, strict=True):
            assert replace(found, seconds=0, took=0) == replace(told, seconds=0, took=0)
        seconds = [report.seconds for report in result.reports]
        assert seconds == sorted(seconds)


def test_every_array_of_a_state_counts(stylizer, content, style, saved, tmp_path):
    """What could be left out of the file would be no state."""
    settings = quick(steps=12, history=3, average=3)
    expected = pixels(stylizer.stylize(content, style, settings))
    found = State.load(str(saved(settings, 8)))
    changed = set()
    path = tmp_path / "other.state"
    for name, array in found.arrays.items():
        # Zeros, but where it divides by them.
        other = array[::-1] if name in ("slots", "products") else np.zeros_like(array)
        replace(found, source=str(path), arrays=dict(found.arrays) | {name: other}).save()
        result = stylizer.stylize(content, style, settings, resume=path)
        if not np.array_equal(pixels(result), expected):
            changed.add(name)
    assert changed == set(found.arrays) - {"reports0"}  # of the steps before


def test_saving_disturbs_nothing_and_keeps_the_last(
    stylizer, content, style, tmp_path, monkeypatch
):
    settings = quick(steps=10)
    expected = stylizer.stylize(content, style, settings)
    taken, genuine = [], State.save
    monkeypatch.setattr(
        State, "save", lambda found: taken.append(sum(found.course.taken)) or genuine(found)
    )
    path = tmp_path / "run.state"
    result = stylizer.stylize(content, style, settings, save=path, save_every=4)
    assert np.array_equal(pixels(result), pixels(expected))
    assert taken == [4, 8]
    assert sum(State.load(str(path)).course.taken) == 8
    assert os.listdir(tmp_path) == ["run.state"]


def test_steps_that_come_in_tens_are_saved_at_the_next():
    saving = Saving("run.state", 25)
    ends = range(10, 110, 10)
    assert [end for end in ends if saving.due(end - 10, end)] == [30, 50, 80, 100]
    with pytest.raises(SettingsError, match="save_every must be at least 1, not 0"):
        Saving("run.state", 0)


def test_a_full_disk_does_not_end_the_run(stylizer, content, style, tmp_path, monkeypatch, caplog):
    def full(*_arguments, **_arrays) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.np, "savez", full)
    path = tmp_path / "run.state"
    result = stylizer.stylize(content, style, quick(), save=path, save_every=3)
    assert len(result.reports) == 4
    assert "cannot be written (No space left on device)" in caplog.text
    assert os.listdir(tmp_path) == []
    with (
        stylizer.start(content, style, quick()) as run,
        pytest.raises(StateError, match="No space"),
    ):
        run.save(path)


def test_a_state_of_a_run_that_did_nothing_yet(stylizer, content, style, saved):
    settings = quick(init="noise")
    expected = pixels(stylizer.stylize(content, style, settings))
    result = stylizer.stylize(content, style, settings, resume=saved(settings, 0))
    assert np.array_equal(pixels(result), expected)


def test_a_run_that_is_over_has_no_state(stylizer, content, style, tmp_path):
    run = stylizer.start(content, style, quick())
    list(run)
    run.result()
    with pytest.raises(SettingsError, match="before its result"):
        run.save(tmp_path / "run.state")
    run.close()
    with pytest.raises(SettingsError, match="closed"):
        run.save(tmp_path / "run.state")


# ------------------------------------------------------------------------------- what may change


@pytest.mark.parametrize(
    ("taken", "left", "before", "now", "expected"),
    [
        ([64, 8], 24, [64, 32], [64, 32], 24),
        ([8], 24, [32], [99], 91),
        ([32], 0, [32], [99], 67),  # ended, and taken up again
        ([8], 24, [32], [8], 0),
        ([8], 24, [32], [7], None),
        ([8], 56, [64, 32], [128, 64], 120),  # in the first size
        ([64, 8], 24, [64, 32], [128, 64], None),
        ([16, 8], 24, [64, 32], [128, 64], 56),  # where the first ended early
        ([16], 0, [64, 32], [128, 64], 0),
        ([16, 8], 24, [64, 32], [16, 8], None),
        ([1], 0, [1], [2, 1], None),  # fewer sizes
    ],
)
def test_steps_that_lead_to_the_same_place(taken, left, before, now, expected):
    assert schedule.steps_left(taken, left, before, now) == expected


@pytest.mark.usefixtures("small_scales")
def test_more_steps_are_those_of_the_longer_run(stylizer, content, style, saved):
    short, long = quick(steps=6), quick(steps=10)
    expected = stylizer.stylize(content, style, long)
    result = stylizer.stylize(content, style, long, resume=saved(short, 6))
    assert np.array_equal(pixels(result), pixels(expected))
    assert {report.steps for report in result.reports} == {10}
    assert result.reports[-1].progress == 1.0
    path = saved(quick(steps=4, scales=2), 4)
    with pytest.raises(StateError, match="with --steps 1 its sizes"):  # there is one then
        stylizer.start(content, style, quick(steps=1, scales=2), resume=path)
    path = saved(quick(steps=6, scales=2), 5)
    with pytest.raises(StateError, match="with --steps 12 its sizes would have had others; give 6"):
        stylizer.start(content, style, quick(steps=12, scales=2), resume=path)


def test_time_that_is_over_leaves_a_state_to_go_on_from(
    stylizer, content, style, tmp_path, monkeypatch
):
    expected = pixels(stylizer.stylize(content, style, quick(steps=12)))
    path = tmp_path / "run.state"
    clock = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(run_module.time, "perf_counter", lambda: float(next(clock)))
        settings = quick(steps=12, max_seconds=20.0)
        with stylizer.start(content, style, settings, save=path, save_every=100) as run:
            list(run)
            assert run.finished
            assert 0 < run.steps_left < 12
    result = stylizer.stylize(content, style, quick(steps=12), resume=path)
    assert np.array_equal(pixels(result), expected)
    assert result.timings["total"] > 20.0  # of both


# ------------------------------------------------------------------------------------ refused


def test_another_run_is_refused_by_what_differs(
    stylizer, content, style, saved, photo, monkeypatch
):
    path = saved(quick(), 2)
    other = photo("astronaut", 40, 32)
    for message, arguments in {
        r"pictures content \(another\)": (other, style, quick()),
        r"pictures style \(another\)": (content, [style, other], quick()),
        r"content_weight \(0.15 there, 0.3 here\)": (content, style, quick(content_weight=0.3)),
        r"relu1_1 \(0.2 there, 0.4 here\)": (
            content,
            style,
            quick(style_layers=dict(StyleSettings().style_layers) | {"relu1_1": 0.4}),
        ),
        r"seed \(0 there, 1 here\); history \(10 there, 5 here\)|"
        r"history \(10 there, 5 here\).*seed \(0 there, 1 here\)": (
            content,
            style,
            quick(seed=1, history=5),
        ),
    }.items():
        with pytest.raises(StateError, match=message) as caught:
            stylizer.start(*arguments, resume=path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(StateError, match=r"pictures init \(\[\] there|pictures init \(another"):
        stylizer.start(content, style, quick(), init=other, resume=path)
    two = Stylizer(EngineOptions(provider="cpu", threads=2))
    with pytest.raises(StateError, match=r"threads \(1 there, 2 here\)"):
        two.start(content, style, quick(), resume=path)
    split = Stylizer(EngineOptions(provider="cpu", threads=1, plan="split"))
    with pytest.raises(StateError, match=r"plan \(fused there, split here\)"):
        split.start(content, style, quick(), resume=path)


def test_another_encoder_or_version_is_refused(
    stylizer, content, style, saved, average_pack, monkeypatch
):
    path = saved(quick(), 2)
    other = Stylizer(
        EngineOptions(provider="cpu", threads=1, encoder=str(average_pack.encoder.path))
    )
    with pytest.raises(StateError, match=r"encoder \(vgg19-lite there, random-average here\)"):
        other.start(content, style, quick(), resume=path)
    found = State.load(str(path))
    versions = found.identity["versions"] | {"onnxruntime": "0.9"}
    replace(found, identity=dict(found.identity) | {"versions": versions}).save()
    with pytest.raises(StateError, match=r"versions onnxruntime \(0.9 there, "):
        stylizer.start(content, style, quick(), resume=path)
    replace(found, identity=dict(found.identity) | {"window": 128}).save()
    with pytest.raises(StateError, match=r"window \(128 there, None here\)"):
        stylizer.start(content, style, quick(), resume=path)


@pytest.mark.parametrize("part", ["init", "anchor"])
def test_what_a_run_was_given_has_to_be_the_same(stylizer, content, style, photo, tmp_path, part):
    """The pictures count, not the names of their files."""
    other, settings, path = photo("astronaut", 40, 32), quick(steps=6), tmp_path / "run.state"
    more = {"temporal_weight": 2.0} if part == "anchor" else {}
    with stylizer.start(content, style, settings, **{part: other}, **more) as run:
        next(iter(run))
        run.save(path)
        list(run)
        expected = pixels(run.result())
    with stylizer.start(
        content, style, settings, **{part: other.copy()}, **more, resume=path
    ) as run:
        list(run)
        assert np.array_equal(pixels(run.result()), expected)
    for wrong in ({}, {part: content}):
        with pytest.raises(StateError, match=f"pictures {part}"):
            stylizer.start(content, style, settings, **wrong, **more, resume=path)
    if more:
        with pytest.raises(StateError, match=r"temporal_weight \(2.0 there, 1.0 here\)"):
            stylizer.start(content, style, settings, anchor=other, temporal_weight=1.0, resume=path)


def test_another_processor_is_told(stylizer, content, style, saved, monkeypatch, caplog):
    path = saved(quick(), 2)
    monkeypatch.setattr(run_module, "cpu_model", lambda: "Another CPU")
    stylizer.start(content, style, quick(), resume=path).close()
    assert "is from another processor: the last bits may differ" in caplog.text


def test_damage_is_found(saved, tmp_path):
    """Every cut, and flipped bits: refused in a line, or read as it was."""
    genuine = saved(quick(until=0.01), 2)
    payload, whole = genuine.read_bytes(), State.load(str(genuine))
    rng, path = random.Random(5), tmp_path / "damaged.state"
    refused = []
    places = [rng.randrange(len(payload)) for _ in range(150)]
    places += [len(payload) - 1 - rng.randrange(2000) for _ in range(150)]  # the directory
    for index, place in enumerate(places):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged[:place] if index % 5 == 0 else damaged)
        try:
            found = State.load(str(path))
        except StateError as error:
            refused.append(str(error))
            continue
        assert found.identity == whole.identity
        assert found.course == whole.course
        assert found.arrays.keys() == whole.arrays.keys()
        for name, array in found.arrays.items():
            assert array.tobytes() == whole.arrays[name].tobytes(), name
    assert len(refused) > 150
    assert not any("\n" in line for line in refused)


def test_what_is_no_state(tmp_path, stylizer, content, style):
    for name, payload in {
        "empty": b"",
        "text": b"hello",
        "picture": b"\x89PNG\r\n\x1a\n",
        "pickle": b"\x80\x04N.",
    }.items():
        path = tmp_path / name
        path.write_bytes(payload)
        with pytest.raises(StateError, match="is no state of a run, damaged, or"):
            stylizer.start(content, style, quick(), resume=path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(StateError, match="is no state"):
        State.load(str(tmp_path / "other.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(StateError, match="is no state"):
        State.load(str(tmp_path / "one.npy"))
    with pytest.raises(StateError, match="cannot be read"):
        State.load(str(tmp_path / "missing"))


def test_arrays_of_another_shape_are_refused(stylizer, content, style, saved):
    found = State.load(str(saved(quick(), 2)))
    arrays = dict(found.arrays) | {"history": np.zeros((2, 2), np.uint16)}
    replace(found, arrays=arrays).save()
    with pytest.raises(StateError, match=r"does not fit this run \(history\)"):
        stylizer.start(content, style, quick(), resume=found.source)


# ---------------------------------------------------------------------------------- averaging


@pytest.mark.parametrize("smoothing", [0.0, 0.16])
def test_the_average_is_the_papers(stylizer, content, style, smoothing):
    """From the points of a run without it: the last of each size, step by step."""
    K = 4
    settings = quick(steps=9, optimizer="adam", smoothing=smoothing, range_weight=0.0)
    mean, count = None, 0
    with stylizer.start(content, style, settings) as run:
        for _ in run:
            found = run._scale._loop.best().astype(np.float64)
            count += 1
            mean = found if mean is None else mean + (found - mean) / min(count, K)
    with stylizer.start(content, style, replace(settings, average=K)) as run:
        list(run)
        averaged = run._scale._loop.best()
    assert np.abs(averaged - mean).max() < 2e-6
    assert np.abs(averaged - found).max() > 1e-3


def test_an_average_moves_less(stylizer, content, style):
    """Where the learning rate is too high: what one step overshoots, the next takes back."""
    settings = quick(steps=24, optimizer="adam", learning_rate=0.5)
    moves = []
    for average in (1, 8):
        with stylizer.start(content, style, replace(settings, average=average)) as run:
            points = [run.picture().pixels for report in run if report.step > 16]
        moves.append(np.mean([np.abs(b - a).mean() for a, b in itertools.pairwise(points)]))
    assert moves[1] < 0.7 * moves[0]
