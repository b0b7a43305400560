"""What a run takes of the memory: as predicted, as limited, and with the same picture."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import commanding
import numpy as np
import pytest
from closeness import assert_close
from commanding import assert_fails
from PIL import Image
from stylizing import quick

from nst_fast import EngineOptions, StyleSettings, Stylizer, encoders, masks, scale
from nst_fast.errors import SettingsError, StateError
from nst_fast.limits import memory_text, parse_memory
from nst_fast.memory import FEWEST_PAIRS, Footprint, Share

pictures = commanding.pictures
command = commanding.command
SHALLOW = {"style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}, "content_layers": {"relu2_1": 1.0}}
LARGE = (6000, 4000)


def footprint(content=(64, 48), styles=((64, 48),), masks=None, **changes) -> Footprint:
    return Footprint(
        encoders.load("vgg19-lite"),
        quick(**(SHALLOW | changes)),
        content=content,
        styles=styles,
        masks=masks,
        provider="cpu",
        precision="fp32",
    )


def large(**changes) -> Footprint:
    return Footprint(
        encoders.load("vgg19-lite"),
        StyleSettings(size=None, **changes),
        content=LARGE,
        styles=[(3000, 2000)],
        provider="openvino",
        precision="bf16",
    )


def engine(limit: float) -> EngineOptions:
    return EngineOptions(provider="cpu", threads=1, max_memory=int(limit))


def test_less_memory_costs_windows_then_pairs_then_a_refusal():
    model, before = large(), None
    for limit in (32e9, 16e9, 12e9, 10e9, 8e9, 7e9, 6e9, 5e9):
        found = model.budget([3000, 6000], limit)
        assert found.needed <= limit
        share = found.shares[-1]
        side = share.side or np.inf
        if before is not None:  # never more of anything for less memory
            assert share.pairs <= before.pairs
            assert side <= (before.side or np.inf) or share.pairs < before.pairs
        assert share.pairs == 10 or side < 1000  # pairs are the last thing to go
        before = share
    assert found.shares[-1].pairs < 10
    assert model.budget([3000, 6000], 32e9).shares == (Share(None, None, 10),) * 2
    eight = model.budget([3000, 6000], 8e9)
    assert eight.shares[-1].pairs == 10
    assert 512 < eight.shares[-1].side < 2048
    assert f"6000×4000 in windows of {eight.shares[-1].side} pixels" in str(eight)
    with pytest.raises(SettingsError, match="max_memory: 6000×4000 pixels take"):
        model.budget([3000, 6000], 3e9)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_what_a_refusal_names_would_do(optimizer):
    model = large(optimizer=optimizer)
    with pytest.raises(SettingsError) as caught:
        model.budget([6000], 2e9)
    words = str(caught.value).replace(",", "").split()
    amount = parse_memory(words[words.index("give") + 2])
    size = int(words[-1])
    assert model.budget([6000], amount).needed <= amount
    assert model.budget([size], 2e9).needed <= 2e9
    with pytest.raises(SettingsError):
        model.budget([size + 64], 2e9)


def test_a_process_without_room_for_the_pictures_is_told_no_size():
    with pytest.raises(SettingsError, match=r"give max_memory [\d.]+GB$"):
        large().budget([6000], 3e8)


def test_few_pairs_are_left_alone():
    assert large(history=FEWEST_PAIRS - 1).budget([6000], 5e9).shares[0].pairs == FEWEST_PAIRS - 1


def test_a_small_limit_leads_to_windows_and_to_the_same_picture(content, style):
    settings = quick(history=3, **SHALLOW)
    whole = Stylizer(engine(1e12)).stylize(content, style, settings)
    size = max(content.shape)
    limit = footprint(history=3).whole(size) - 1
    with Stylizer(engine(limit)).start(content, style, settings) as run:
        (share,) = run.memory.shares
        assert share.side < size
        assert share.pairs == 3
        assert run.memory.needed <= limit
        list(run)
        tiled = run.result()
    assert (whole.environment["plan"], tiled.environment["plan"]) == ("fused", "tiled")
    assert tiled.environment["memory"] == int(run.memory.needed)
    assert tiled.loss == pytest.approx(whole.loss, rel=1e-4)
    assert_close(tiled.picture.pixels, whole.picture.pixels, 1e-3)


def test_a_picture_in_windows_is_made_again_and_gone_on_with(photo, tmp_path):
    """In the same windows, which decide its last bits; masks and regions are seen in them, too."""
    content, style = photo("chelsea", 64, 48), photo("coffee", 64, 48)
    files = {name: tmp_path / f"{name}.png" for name in ("content", "style", "left", "right")}
    left = np.zeros((48, 64), np.uint8)
    left[:, :30] = 255
    pictures = {"content": content, "style": style, "left": left, "right": 255 - left}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(files[name])
    named = {"style_mask": (str(files["left"]), str(files["right"]))}
    settings = quick(history=3, scales=1, **SHALLOW)
    given = files["content"], [files["style"], files["content"]], replace(settings, **named)
    whole = Stylizer(engine(1e12)).stylize(*given)
    assert whole.engine.max_memory is None  # nothing depends on it
    placed = masks_of(given[2])
    limit = int(footprint(styles=((64, 48),) * 2, history=3, masks=placed).whole(64)) - 1
    state = tmp_path / "run.state"
    tight = Stylizer(engine(limit))
    with tight.start(*given, save=state, save_every=4) as run:
        list(run)
        tiled = run.result()
    assert (tiled.environment["plan"], tiled.engine.max_memory) == ("tiled", limit)
    assert tiled.loss == pytest.approx(whole.loss, rel=1e-4)
    assert_close(tiled.picture.pixels, whole.picture.pixels, 1e-3)
    recipe = tiled.recipe()
    again = Stylizer(recipe.engine).replay(recipe)
    assert np.array_equal(again.picture.pixels, tiled.picture.pixels)
    gone_on = tight.stylize(*given, resume=state)
    assert np.array_equal(gone_on.picture.pixels, tiled.picture.pixels)
    with pytest.raises(StateError, match=r"window \(\d+ there, None here\)"):
        Stylizer(engine(1e12)).start(*given, resume=state)


def masks_of(settings: StyleSettings):
    return masks.load(settings, len(settings.style_mask))


def test_masks_and_averages_take_memory():
    """Each region its maps, the photograph that stays, the masks themselves, the mean of points."""
    half = np.full((48, 64), 0.5, np.float32)
    placed = [
        masks.load(quick(), 2, **given)
        for given in ({"content_mask": half}, {"style_mask": [half, half]})
    ]
    placed.append(masks.load(quick(), 2, style_mask=[half, half], content_mask=half))
    needed = [footprint(styles=((64, 48),) * 2, masks=each).whole(1024) for each in (None, *placed)]
    assert needed == sorted(set(needed))
    pixels = 1024 * 768
    assert 130 < (needed[2] - needed[0]) / pixels / 2 < 180
    large = quick(**SHALLOW)
    averaged = footprint(average=8).whole(1024) - footprint().whole(1024)
    assert averaged == pytest.approx(24 * pixels)
    big, small = (
        masks.load(large, 1, content_mask=np.full(shape, 0.5, np.float32))
        for shape in ((3000, 4000), (30, 40))
    )
    assert footprint(masks=big).least(64) > footprint(masks=small).least(64)


def test_fewer_pairs_are_remembered(content, style, monkeypatch):
    seen = []
    make = scale.make_loop
    monkeypatch.setattr(
        scale, "make_loop", lambda plan, s, *rest: (seen.append(s.history), make(plan, s, *rest))[1]
    )
    model = footprint(history=40)
    limit = model._least((64, 48)) + 10
    with Stylizer(engine(limit)).start(content, style, quick(history=40, **SHALLOW)) as run:
        assert seen == [run.memory.shares[0].pairs]
        assert FEWEST_PAIRS <= seen[0] < 40
        assert f"remembers {seen[0]} pairs in place of 40" in str(run.memory)
        assert run.settings.history == 40


def test_a_transfer_that_does_not_fit_is_made_smaller(photo):
    content, style = photo("chelsea", 160, 120), photo("coffee", 160, 120)
    settings = quick(init="transfer", steps=1)
    model = Footprint(
        encoders.load("vgg19-lite"),
        settings,
        content=(160, 120),
        styles=[(160, 120)],
        provider="cpu",
        precision="fp32",
    )
    losses = []
    for limit in (1e12, model._transferring((160, 120), None) - 1):
        with Stylizer(engine(limit)).start(content, style, settings) as run:
            losses.append(next(iter(run)).loss)
        start = run.memory.shares[0].start
    assert 64 <= start < 160
    with Stylizer(engine(1e12)).start(content, style, quick(steps=1)) as run:
        plain = next(iter(run)).loss
    assert losses[0] != losses[1]
    assert max(losses) < 0.8 * plain


MEASURED = """
import json, sys
from PIL import Image
from skimage import data
from nst_fast import EngineOptions, Stylizer, StyleSettings
pictures = (Image.fromarray(getattr(data, name)()) for name in ("chelsea", "coffee"))
content, style = (picture.resize((640, 480)) for picture in pictures)
options = EngineOptions(provider="cpu", threads=1, max_memory=json.loads(sys.argv[1]))
settings = StyleSettings(size=None, scales=1, steps=3, history=3)
with Stylizer(options).start(content, style, settings) as run:
    result = [*run] and run.result()
lines = open("/proc/self/status").read().splitlines()
peak = 1024 * int(next(l for l in lines if l.startswith("VmHWM")).split()[1])
print(json.dumps([peak, run.memory.needed, result.environment["plan"]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
@pytest.mark.parametrize(("limit", "kind"), [(None, "fused"), (480_000_000, "tiled")])
def test_a_process_takes_what_is_predicted_and_no_more(limit, kind):
    words = [sys.executable, "-c", MEASURED, json.dumps(limit)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    peak, needed, found = json.loads(done.stdout.splitlines()[-1])
    assert found == kind
    assert 0.7 * needed < peak <= needed


def test_amounts_are_read_and_written():
    for text, amount in {"8GB": 8e9, "7.5 gib": 7.5 * 2**30, "900MB": 9e8, "1MiB": 2**20}.items():
        assert parse_memory(text) == amount == EngineOptions(max_memory=text).memory_limit
    assert EngineOptions(max_memory=5e9).memory_limit == 5_000_000_000
    assert EngineOptions().memory_limit is None
    for amount in (7.81e9, 8e9, 123456789, 999_000_001):
        assert amount <= parse_memory(memory_text(amount)) <= 1.02 * amount


@pytest.mark.parametrize("amount", ["8", "8 XB", "GB", "-8GB", "8GB/s", "", 0, -1, True, np.nan])
def test_amounts_that_are_none(amount):
    with pytest.raises(SettingsError, match="max_memory must be an amount with its unit, such as"):
        EngineOptions(max_memory=amount)


def test_the_command_says_what_it_takes_beforehand(pictures, command):
    words = ["stylize", "photo.jpg", "paint.jpg", "-o", "a.png", "--size", 32, "--steps", 1]
    words += ["--provider", "cpu"]
    code, out, err = command(*words, "--max-memory", "2GB")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("memory: at most ")
    assert err.strip().endswith("of 2GB")
    assert out.startswith("a.png")
    assert command(*words, "--max-memory", "2GB", "--quiet") == (0, "", "")
    assert command(*words)[2] == ""
    told = "--max-memory: 32×22 pixels take "
    assert_fails(command, [*words, "--max-memory", "90MB"], 2, told)
    assert_fails(command, [*words, "--max-memory", "8"], 2, "--max-memory must be an amount")
