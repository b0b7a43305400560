"""Terms and their scaling, against plain transcriptions of each formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from closeness import assert_close
from torch_reference import waves

from nst_fast.config import StyleSettings
from nst_fast.errors import SettingsError
from nst_fast.kernels import cpu_kernels
from nst_fast.losses import Objective, Targets, coefficients, style_target

STYLE = {"relu1_1": 0.5, "relu3_1": 2.0}
CONTENT = {"relu2_2": 3.0}


def objective(encoder, normalization: str = "relative", **changes) -> Objective:
    options = {"style_layers": STYLE, "content_layers": CONTENT, "style_weight": 10.0}
    options |= {"content_weight": 0.1, "normalization": normalization} | changes
    return Objective.from_settings(StyleSettings(**options), encoder)


def matrices(features: np.ndarray) -> np.ndarray:
    """F as (N, C, P) in float64."""
    return features.reshape(*features.shape[:2], -1).astype(np.float64)


def textbook(F: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Gatys et al. 2016, equation 4: 1/(4 C² P²) Σ (G − A)², Gram matrices not divided."""
    _, C, P = F.shape
    G, A = F @ F.swapaxes(1, 2), S @ S.swapaxes(1, 2)
    return ((G - A) ** 2).sum(axis=(1, 2)) / (4 * C**2 * P**2)


def johnson(F: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Johnson et al. 2016, equation 3: ‖G/(CHW) − A/(CHW)‖²."""
    G, A = reference.gram(F), reference.gram(S)
    return ((G - A) ** 2).sum(axis=(1, 2))


def relative(F: np.ndarray, S: np.ndarray) -> np.ndarray:
    """The share of ‖A‖² that is missing."""
    A = reference.gram(S)
    return ((reference.gram(F) - A) ** 2).sum(axis=(1, 2)) / (A**2).sum(axis=(1, 2))


STYLE_TERM = {"textbook": textbook, "gram": johnson, "relative": relative}
CONTENT_TERM = {
    "textbook": lambda F, C: ((F - C) ** 2).sum(axis=(1, 2)) / (4 * F[0].size),
    "gram": lambda F, C: ((F - C) ** 2).mean(axis=(1, 2)),
    "relative": lambda F, C: ((F - C) ** 2).sum(axis=(1, 2)) / (C**2).sum(axis=(1, 2)),
}


@pytest.mark.parametrize("normalization", STYLE_TERM)
def test_each_normalisation_is_its_formula(shipped, normalization, seed):
    """Coefficient × unweighted term = weight × the published term, for each image of a batch."""
    network = shipped.network
    picture, style, content = (network.features(waves(seed + i, 2, 3, 32, 48)) for i in range(3))
    goal = objective(shipped.encoder, normalization)
    targets = Targets(
        style={t: reference.gram(matrices(style[t])).astype(np.float32) for t in STYLE},
        content={t: content[t].astype(np.float32) for t in CONTENT},
    )
    found = coefficients(goal, targets)
    assert found.shape == (2, 3)
    for column, (tap, weight) in enumerate(STYLE.items()):
        F = matrices(picture[tap])
        unweighted = ((reference.gram(F) - targets.style[tap]) ** 2).sum(axis=(1, 2))
        expected = 10.0 * weight * STYLE_TERM[normalization](F, matrices(style[tap]))
        assert_close(found[:, column] * unweighted, expected, 1e-5)
    ((tap, weight),) = CONTENT.items()
    F, C = matrices(picture[tap]), matrices(content[tap])
    expected = 0.1 * weight * CONTENT_TERM[normalization](F, C)
    assert_close(found[:, 2] * ((F - C) ** 2).mean(axis=(1, 2)), expected, 1e-5)


def test_a_target_of_zeros_has_no_infinite_weight(shipped):
    goal = objective(shipped.encoder)
    zeros = Targets(
        style={t: np.zeros((1, 4, 4), np.float32) for t in STYLE},
        content={t: np.zeros((1, 4, 2, 2), np.float32) for t in CONTENT},
    )
    assert np.isfinite(coefficients(goal, zeros)).all()


def test_terms_are_in_the_order_of_the_network(shipped):
    layers = {"relu5_1": 1.0, "relu1_1": 1.0, "relu3_1": 0.0}
    goal = objective(shipped.encoder, style_layers=layers, content_layers={"relu5_1": 2.0})
    assert list(goal.style) == ["relu1_1", "relu5_1"]
    assert goal.taps == ("relu1_1", "relu5_1")
    assert goal.names()[:4] == ["style/relu1_1", "style/relu5_1", "content/relu5_1", "tv"]
    assert goal.content["relu5_1"] == pytest.approx(0.2)


def test_terms_of_weight_zero_are_left_out(shipped):
    assert not objective(shipped.encoder, content_weight=0.0).content
    assert not objective(shipped.encoder, style_weight=0.0).style


@pytest.mark.parametrize("option", ["style_layers", "content_layers"])
def test_an_unknown_tap_is_named_with_those_there_are(shipped, option):
    with pytest.raises(SettingsError) as caught:
        objective(shipped.encoder, **{option: {"relu9_1": 1.0}})
    message = str(caught.value)
    for part in (option, "relu9_1", "vgg19-lite", "relu1_1", "relu5_1"):
        assert part in message
    assert "\n" not in message


def test_style_targets_are_gram_matrices(shipped, seed):
    features = shipped.network.features(waves(seed, 2, 3, 32, 48))
    features = {tap: value.astype(np.float32) for tap, value in features.items()}
    taps = ["relu2_1", "relu5_1"]
    found = style_target(features, taps, cpu_kernels(1))
    assert list(found) == taps
    for tap in taps:
        assert_close(found[tap], reference.gram(matrices(features[tap])), 1e-5)


def test_opacity_weighs_the_cells_of_each_tap(shipped, seed):
    """A cell counts by the mean opacity of its pixels; the sum of weights takes the place of P."""
    rng = np.random.default_rng(seed)
    features = shipped.network.features(waves(seed, 1, 3, 32, 48))
    features = {tap: value.astype(np.float32) for tap, value in features.items()}
    opacity = (rng.random((32, 48), np.float32) > 0.4).astype(np.float32)
    for tap, info in shipped.encoder.taps.items():
        (found,) = style_target(features, [tap], cpu_kernels(2), opacity).values()
        s = info.stride
        cells = opacity.reshape(32 // s, s, 48 // s, s).astype(np.float64).mean(axis=(1, 3))
        expected = reference.gram(matrices(features[tap]), cells.reshape(1, -1))
        assert_close(found, expected, 1e-5)


def test_transparent_cells_do_not_count(shipped, seed):
    features = shipped.network.features(waves(seed, 1, 3, 32, 32))["relu3_1"].astype(np.float32)
    opacity = np.ones((32, 32), np.float32)
    opacity[:, 16:] = 0
    changed = features.copy()
    changed[..., 4:] = 7.0
    grams = [
        style_target({"relu3_1": f}, ["relu3_1"], cpu_kernels(1), opacity)["relu3_1"]
        for f in (features, changed)
    ]
    assert np.array_equal(*grams)
    left = np.ascontiguousarray(features[..., :4])
    assert_close(grams[0], style_target({"relu3_1": left}, ["relu3_1"], cpu_kernels(1))["relu3_1"])
