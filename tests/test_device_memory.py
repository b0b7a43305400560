"""What a group of pictures takes of a GPU's memory, and what is done where that is short."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import host_gpus
import numpy as np
import pytest
from shim import ShimLauncher
from stylizing import LIGHT, quick, start

from nst_fast.canvas import Canvas
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import DeviceMemoryError, ImageError
from nst_fast.gpu.footprint import ALLOWANCE, DeviceFootprint
from nst_fast.gpu.loop import DeviceLoop
from nst_fast.gpu.plan import DevicePlan
from nst_fast.losses import Objective
from nst_fast.stylizer import Stylizer
from nst_fast.workspace import Workspace

host_gpu = host_gpus.host_gpu
SIZE = 160, 112  # width and height: large enough for what does not grow with it to be little


def canvas_of(settings: StyleSettings) -> Canvas:
    return Canvas.around(SIZE[1], SIZE[0], margin=settings.margin, stride=16)


@pytest.mark.parametrize(
    ("precision", "pictures", "changes", "temporal"),
    [
        ("fp16", 2, {}, 0.0),
        ("fp16", 1, {"history": 30, "average": 5}, 1.0),
        ("fp32", 1, {"optimizer": "adam", "smoothing": 0.0, "margin": 0}, 0.0),
    ],
)
def test_our_arrays_are_counted(
    stylizer, host_gpu, monkeypatch, precision, pictures, changes, temporal
) -> None:
    settings = StyleSettings(**changes)
    taken = []
    genuine = ShimLauncher.zeros

    def counted(launcher, shape, dtype=np.float32):
        taken.append(math.prod(shape) * np.dtype(dtype).itemsize)
        return genuine(launcher, shape, dtype)

    monkeypatch.setattr(ShimLauncher, "zeros", counted)
    monkeypatch.setattr(DevicePlan, "settle_scale", lambda plan: None)  # takes long on the shim
    encoder, backend, canvas = stylizer.encoder, host_gpu(precision), canvas_of(settings)
    objective = Objective.from_settings(settings, encoder, temporal)
    plan = DevicePlan(encoder, objective, canvas, backend, pictures=pictures)
    image = np.zeros((pictures, 3, canvas.height, canvas.width), np.float32)
    DeviceLoop(plan, settings, backend, image)
    found = DeviceFootprint(encoder, objective, settings, canvas, precision, plan.weighted)
    # Sums over slices are in the allowance; here they are a few hundredths.
    assert 0.9 * sum(taken) < found.arrays(pictures) < sum(taken)
    assert found.needed(pictures) > found.arrays(pictures) + ALLOWANCE


@pytest.fixture
def here(stylizer, host_gpu, monkeypatch):
    """A workspace on a GPU with so many bytes free, and what eight pictures need."""
    monkeypatch.setattr(ShimLauncher, "free", math.inf, raising=False)
    monkeypatch.setattr(ShimLauncher, "free_memory", lambda launcher: launcher.free)
    return Workspace(stylizer.encoder, host_gpu("fp16"), "auto")


def needed(here: Workspace, count: int) -> int:
    settings = StyleSettings()
    objective = Objective.from_settings(settings, here.encoder)
    canvas = canvas_of(settings)
    return DeviceFootprint(here.encoder, objective, settings, canvas, "fp16", True).needed(count)


@pytest.mark.parametrize(
    ("fits", "count"), [(8, 8), (7, 4), (5, 4), (4, 4), (3, 3), (2, 2), (1, 1)]
)
def test_a_group_is_divided_into_what_fits(here, monkeypatch, caplog, fits, count) -> None:
    monkeypatch.setattr(ShimLauncher, "free", needed(here, fits))
    with caplog.at_level(logging.WARNING):
        assert here.together(StyleSettings(), SIZE, 8) == count
    told = [record.getMessage() for record in caplog.records]
    if count == 8:
        assert not told
        return
    (line,) = told
    assert line.startswith("8 pictures of 160×112 pixels take ")
    assert line.endswith(f"free: going on with {fits} at a time, at most")
    assert "\n" not in line
    # What the group keeps is not free, and no reason to divide the next one further.
    monkeypatch.setattr(ShimLauncher, "free", 0)
    assert [here.together(StyleSettings(), SIZE, most) for most in (8, 2)] == [count, min(count, 2)]
    assert len(caplog.records) == 1


def test_groups_are_as_large_as_fits(here, photo, monkeypatch, tmp_path) -> None:
    sizes, lite = [], Stylizer(EngineOptions(provider="cpu", threads=1))

    def made(workspace, contents, *_, **__):
        sizes.append(len(contents))
        raise ImageError("only counted")

    monkeypatch.setattr(lite, "_workspace", here)
    monkeypatch.setattr("nst_fast.stylizer.Run", made)
    monkeypatch.setattr(ShimLauncher, "free", needed(here, 3))
    wide, contents = photo("coffee", *SIZE), [photo("chelsea", *SIZE)] * 7
    found = lite.stylize_together([*contents, wide[:64]], wide, StyleSettings(size=None))
    assert sizes == [3, 3, 1, 1]  # the last is of another size
    assert all(isinstance(each, ImageError) for each in found)


def test_what_is_kept_is_let_go_of_before_fewer_are_made(here, monkeypatch, caplog) -> None:
    settings = StyleSettings()
    monkeypatch.setattr(ShimLauncher, "free", needed(here, 3))
    monkeypatch.setattr(
        ShimLauncher, "give_memory_back", lambda launcher: setattr(launcher, "free", math.inf)
    )
    here._plans.put("another size", object())
    assert here.together(settings, SIZE, 8) == 8
    assert not here._plans._values
    assert not caplog.records


def test_memory_that_is_short_is_taken_from_what_is_kept(here) -> None:
    here._plans.put("another size", object())
    objective = Objective.from_settings(StyleSettings(), here.encoder)
    tried = []

    def make(side):
        tried.append(side)
        if here._plans._values:
            raise DeviceMemoryError("out of memory")
        return "made"

    assert here.attempt(objective, (1, 112, 160), make) == "made"
    assert tried == [None, None]  # no windows


def test_plans_of_a_group_are_kept_for_the_next(stylizer, host_gpu, photo, monkeypatch) -> None:
    made = []
    genuine = DevicePlan.__init__
    monkeypatch.setattr("nst_fast.workspace.LARGE", 1)  # of a CPU
    monkeypatch.setattr(
        DevicePlan, "__init__", lambda *a, **k: (made.append(1), genuine(*a, **k))[1]
    )
    contents, style = [photo("chelsea", 24, 16)] * 2, photo("coffee", 24, 16)
    settings = quick(steps=1, margin=0, **LIGHT)
    first = start(stylizer, host_gpu(), contents, style, settings)
    list(first)
    first.close()
    before = len(made)
    given = first._given
    again = type(first)(first._workspace, given.contents, given.styles, replace(settings, steps=2))
    list(again)
    assert len(made) == before
