"""Settings are refused where they cannot work, by name, in one line."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_fast.config import (
    LEAST_SMOOTHING,
    MAX_SIZE,
    MOST_MARGIN,
    EngineOptions,
    StyleSettings,
)
from nst_fast.errors import NstError, SettingsError

NAN, INF = float("nan"), float("inf")
WEIGHTS = [f.name for f in dataclasses.fields(StyleSettings) if f.name.endswith("_weight")]


def test_defaults_are_valid_and_json_able():
    values = StyleSettings().as_dict()
    assert set(values) == {f.name for f in dataclasses.fields(StyleSettings)}
    again = json.loads(json.dumps(values))
    again["style_blend"] = tuple(again["style_blend"])
    assert StyleSettings(**again) == StyleSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((w, v) for w in WEIGHTS for v in (-1.0, NAN, INF, "1", None, True)),
        *(("size", v) for v in (0, 15, MAX_SIZE + 1, 512.5, "512", True)),
        *(("steps", v) for v in (0, -1, 2.5, 1_000_001, False)),
        *(("history", v) for v in (0, 101)),
        *(("seed", v) for v in (-1, 2**32)),
        *(("learning_rate", v) for v in (0.0, -0.1, NAN)),
        *(("style_scale", v) for v in (0.0, 9.0, NAN)),
        *(("style_scale", v) for v in ((), (1.0, 0.0), {1.0: 2.0}, "11")),
        *(("style_mask", v) for v in (3, ("",), ("a.png", None))),
        *((name, v) for name in ("style_regions", "content_mask") for v in ("", 3, ("a", "b"))),
        *(("style_blend", v) for v in ((-1.0, 2.0), (0.0, 0.0), (NAN,))),
        *(("shift", v) for v in (-1.0, NAN, "1")),
        *(("smoothing", v) for v in (-0.1, 0.6, 0.5 * LEAST_SMOOTHING, NAN)),
        *(("margin", v) for v in (-1, 1.5, MOST_MARGIN + 1)),
        ("style_space", "vgg"),
        ("scales", 0),
        ("normalization", "johnson"),
        ("optimizer", "sgd"),
    ],
)
def test_impossible_values_are_refused_by_name(name, value):
    with pytest.raises(SettingsError) as caught:
        StyleSettings(**{name: value})
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert isinstance(caught.value, NstError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["style_layers", "content_layers"])
@pytest.mark.parametrize("value", [-1.0, NAN, "heavy"])
def test_layer_weights_are_checked_and_named(name, value):
    with pytest.raises(SettingsError, match=rf"{name} relu3_1"):
        StyleSettings(**{name: {"relu3_1": value}})


@pytest.mark.parametrize(
    "nothing",
    [
        {"style_weight": 0.0, "content_weight": 0.0},
        {"style_layers": {}, "content_layers": {}},
        {"style_weight": 0.0, "content_layers": {"relu4_2": 0.0}},
    ],
)
def test_an_objective_without_terms_is_refused(nothing):
    with pytest.raises(SettingsError, match="nothing to optimise"):
        StyleSettings(**nothing)


def test_settings_are_frozen_and_keep_no_link_to_the_caller():
    layers = {"relu1_1": 1.0}
    settings = StyleSettings(style_layers=layers)
    layers["relu1_1"] = 7.0
    assert settings.style_layers == {"relu1_1": 1.0}
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.steps = 3


def test_masks_are_paths_and_scales_one_or_several():
    plain = StyleSettings(style_mask="a.png", content_mask=Path("b") / "c.png", style_scale=[2])
    assert plain.mask_paths == ("a.png", str(Path("b") / "c.png"))
    assert plain.style_scale == 2.0
    several = StyleSettings(style_mask=["a.png", Path("b.png")], style_scale=[1, 0.5])
    assert several.style_mask == ("a.png", "b.png")
    assert several.style_scale == (1.0, 0.5)
    assert StyleSettings(**json.loads(json.dumps(several.as_dict()))) == several
    with pytest.raises(SettingsError, match="style_regions: give it or style_mask, not both"):
        StyleSettings(style_mask="a.png", style_regions="b.png")


def test_init_is_a_word_or_a_path():
    assert StyleSettings().init_path is None
    assert StyleSettings(init="noise").init_path is None
    assert StyleSettings(init=Path("a") / "b.png").init_path == Path("a") / "b.png"


@given(
    size=st.none() | st.integers(16, MAX_SIZE),
    steps=st.integers(1, 1_000_000),
    style=st.floats(1e-9, 1e12),
    blend=st.lists(st.floats(0, 1e6), max_size=4).filter(lambda b: not b or sum(b) > 0),
)
def test_whatever_is_in_range_is_taken(size, steps, style, blend):
    settings = StyleSettings(size=size, steps=steps, style_weight=style, style_blend=tuple(blend))
    assert (settings.size, settings.steps, settings.style_weight) == (size, steps, style)


@pytest.mark.parametrize(
    "wrong",
    [
        {"init": None},
        {"style_blend": None},
        {"style_blend": 2.0},
        {"style_layers": None},
        {"style_layers": ["relu1_1"]},
        {"steps": 2.5},
        {"tv_weight": "much"},
    ],
)
def test_wrong_types_name_the_setting(wrong):
    (name,) = wrong
    with pytest.raises(SettingsError, match=f"^{name}"):
        StyleSettings(**wrong)


def test_numpy_numbers_become_plain_ones():
    settings = StyleSettings(steps=np.int64(5), tv_weight=np.float32(0.5), style_blend=[1, 2])
    assert json.loads(json.dumps(settings.as_dict()))["steps"] == 5
    assert settings.tv_weight == 0.5
    assert settings.style_blend == (1.0, 2.0)


def test_whole_numbers_of_any_type_are_meant():
    """Spreadsheets and numpy write 512 as 512.0."""
    given = StyleSettings(size=512.0, steps=np.float64(7), seed=np.int32(3))
    assert given == StyleSettings(size=512, steps=7, seed=3)
    assert type(given.size) is type(given.steps) is int


def test_settings_cannot_be_changed_and_are_hashable():
    given = StyleSettings(style_layers={"relu1_1": 1, "relu2_1": 2})
    same = StyleSettings(style_layers={"relu2_1": 2, "relu1_1": 1})
    assert given == same
    assert len({given, same, StyleSettings()}) == 2
    with pytest.raises(TypeError):
        given.style_layers["relu1_1"] = NAN
    assert pickle.loads(pickle.dumps(given)) == given


def test_engine_options_are_checked_by_name():
    for wrong in ({"device": "gpu"}, {"provider": "onnx"}, {"plan": "both"}, {"threads": 0}):
        (name,) = wrong
        with pytest.raises(SettingsError, match=name):
            EngineOptions(**wrong)
    assert EngineOptions(encoder=Path("pack")).encoder == "pack"


def test_presets():
    assert StyleSettings.preset("standard") == StyleSettings()
    draft, fine = (StyleSettings.preset(name) for name in ("draft", "fine"))
    assert draft.steps < StyleSettings().steps < fine.steps
    assert StyleSettings.preset("fine", size=300).size == 300
    with pytest.raises(SettingsError, match="preset must be one of draft, standard, fine"):
        StyleSettings.preset("best")
