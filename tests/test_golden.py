"""The default look, against a picture that was looked at and kept.

Loose in value: another CPU rounds otherwise, and many steps amplify it. Tight in structure:
measured with providers and settings around the draft's, float32's rounding leaves the detail
correlated by 0.957, and three times the weight of the content brings it to 0.845.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from nst_fast import EngineOptions, StyleSettings, Stylizer

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden/lake_swirls.png"
SETTINGS = StyleSettings(size=160, steps=36)


def parts(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strokes and what is coarser than they are, of the luma of (H, W, 3) in levels of 8 bits."""
    luma = picture @ np.array([0.299, 0.587, 0.114])
    coarse = gaussian_filter(luma, 2.0)
    return luma - coarse, coarse - coarse.mean()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.vdot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.fixture(scope="module")
def stylise():
    stylizer = Stylizer(EngineOptions(provider="cpu", threads=1))

    def make(settings: StyleSettings) -> np.ndarray:
        content, style = (ROOT / "examples" / f"{n}.jpg" for n in ("content_lake", "style_swirls"))
        return np.asarray(stylizer.stylize(content, style, settings).image, np.float64)

    return make


def golden() -> np.ndarray:
    return np.asarray(Image.open(GOLDEN), np.float64)


def test_the_default_look(stylise, tmp_path):
    found, expected = stylise(SETTINGS), golden()
    made = tmp_path / GOLDEN.name
    Image.fromarray(found.astype(np.uint8)).save(made)
    told = f"look at {made} beside {GOLDEN}; where the change is meant, replace it"
    (detail, coarse), (wanted, ground) = parts(found), parts(expected)
    assert correlation(detail, wanted) > 0.92, told
    assert correlation(coarse, ground) > 0.99, told
    assert np.linalg.norm(detail) == pytest.approx(np.linalg.norm(wanted), rel=0.025), told
    assert found.mean(axis=(0, 1)) == pytest.approx(expected.mean(axis=(0, 1)), abs=3.0), told


def test_another_look_is_told_apart(stylise):
    """What the test above is worth: it fails for a weight that is three times as much."""
    other = stylise(replace(SETTINGS, content_weight=3 * SETTINGS.content_weight))
    assert correlation(parts(other)[0], parts(golden())[0]) < 0.9
