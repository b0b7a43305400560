"""What a Stylizer refuses: settings, pictures and engines, each named in one line."""

from __future__ import annotations

import numpy as np
import pytest
from stylizing import quick

from nst_fast import EngineOptions, StyleSettings, Stylizer
from nst_fast.errors import EncoderError, ImageError, NstError, ProviderError, SettingsError


def test_together_refuses_what_no_picture_could_use(stylizer, content, style):
    with pytest.raises(SettingsError, match="nope"):
        stylizer.stylize_together([content], style, quick(style_layers={"nope": 1.0}))
    with pytest.raises(SettingsError, match="most must be"):
        stylizer.stylize_together([content], style, quick(), most=0)


def test_a_missing_picture_to_start_from_is_named(stylizer, content, style):
    with pytest.raises(ImageError, match=r"no/such\.png"):
        stylizer.start(content, style, quick(init="no/such.png"))


@pytest.mark.parametrize(
    ("changes", "styles", "parts"),
    [
        ({"style_layers": {"relu9_9": 1.0}}, 1, ("style_layers", "relu9_9", "relu1_1")),
        ({"content_layers": {"fc6": 1.0}}, 1, ("content_layers", "fc6")),
        ({"style_blend": (1.0,)}, 2, ("style_blend", "1", "2")),
        ({"style_blend": (1.0, 1.0)}, 1, ("style_blend",)),
        ({}, 0, ("style",)),
    ],
)
def test_settings_that_do_not_fit_are_refused(stylizer, content, style, changes, styles, parts):
    with pytest.raises(SettingsError) as caught:
        stylizer.start(content, [style] * styles, quick(**changes))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_pictures_that_cannot_be_used_are_refused(stylizer, content, style):
    clear = np.dstack((style, np.zeros(style.shape[:2], np.uint8)))
    with pytest.raises(SettingsError, match="fully transparent"):
        stylizer.start(content, clear, quick())
    with pytest.raises(ImageError, match="content"):
        stylizer.start(content[:8], style, quick())
    with pytest.raises(ImageError, match="style"):
        stylizer.start(content, style.astype(np.int32), quick())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threads": 0}, SettingsError),
        ({"threads": -2}, SettingsError),
        ({"encoder": "vgg99"}, EncoderError),
        ({"provider": "cpu", "precision": "bf16"}, ProviderError),
    ],
)
def test_a_stylizer_that_cannot_be_is_refused(options, error):
    with pytest.raises(error) as caught:
        Stylizer(EngineOptions(**options))
    assert isinstance(caught.value, NstError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"provider": "rocm"},
        {"precision": "fp8"},
        {"plan": "fuse"},
        {"device": "gpu"},
        {"device": "cuda:x"},
    ],
)
def test_unknown_ways_to_compute_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(SettingsError, match=f"^{name} .*{value}"):
        Stylizer(EngineOptions(**wrong))


def test_a_picture_too_thin_for_its_size_is_refused(stylizer, style):
    thin = np.zeros((16, 2000, 3), np.uint8)
    with pytest.raises(SettingsError, match=r"size: .*2000×16.* larger size"):
        stylizer.start(thin, style, StyleSettings(size=128))
