"""Quick settings, and what every picture that comes out must be."""

from __future__ import annotations

import numpy as np

from nst_fast import Result, StyleSettings

# A fifth of the network, where the rest would add nothing but time.
SHALLOW = {"style_layers": {"relu1_1": 0.5, "relu2_1": 1.0}, "content_layers": {"relu2_1": 0.5}}


def quick(**changes) -> StyleSettings:
    few = {"size": None, "steps": 4, "scales": 1, "margin": 8}
    return StyleSettings(**(few | changes))


def pixels(result: Result) -> np.ndarray:
    assert result.picture.pixels.dtype == np.float32
    assert np.isfinite(result.picture.pixels).all()
    assert result.picture.pixels.min() >= 0
    assert result.picture.pixels.max() <= 1
    return result.picture.pixels
