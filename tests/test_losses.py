"""Terms and their scaling, against plain transcriptions of each formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_reference
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st
from problems import LOSSES, clear_image, make_objective, make_problem
from stylizing import SHALLOW, pixels, quick
from torch_reference import moments, tensor, waves

from nst_fast import EngineOptions, Stylizer
from nst_fast.config import StyleSettings
from nst_fast.errors import SettingsError
from nst_fast.graph.graph import Graph
from nst_fast.losses import STYLE_LOSSES, Objective, Targets, exact_terms, make_goal
from nst_fast.losses import moments as numpy_moments
from nst_fast.losses.space import style_space
from nst_fast.plan import Plan
from nst_fast.runtime import Session

STYLE = {"relu1_1": 0.5, "relu3_1": 2.0}
CONTENT = {"relu2_2": 3.0}


def objective(encoder, normalization: str = "relative", **changes) -> Objective:
    options = {"style_layers": STYLE, "content_layers": CONTENT, "style_weight": 10.0}
    options |= {"content_weight": 0.1, "normalization": normalization} | changes
    return Objective.from_settings(StyleSettings(**options), encoder)


# ----------------------------------------------------------------------------------- distances


def features(rng, n: int, channels: int, height: int, width: int) -> np.ndarray:
    """Like those behind a ReLU: none below 0, of different sizes, correlated."""
    mix = rng.standard_normal((channels, channels)) * rng.uniform(0.2, 2.0, (channels, 1))
    drawn = rng.standard_normal((n, channels, height, width)) + rng.standard_normal(
        (channels, 1, 1)
    )
    return np.einsum("dc,nchw->ndhw", mix, drawn).clip(0) + 0.1 * rng.random(drawn.shape)


def some_weights(rng, height: int, width: int) -> np.ndarray:
    weights = rng.random((2, height, width), np.float32)
    weights *= rng.random(weights.shape) > 0.3
    weights[:, 0, 0] = 1
    return weights


@given(
    name=st.sampled_from(LOSSES),
    channels=st.integers(1, 9),
    dimensions=st.integers(1, 14) | st.none(),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    shift=st.sampled_from([0.0, 1.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_terms_and_derivatives_are_those_of_the_plain_formula(
    name, channels, dimensions, sides, shift, weighted, seed
):
    """Written out in the channels h = H f̃ of each pixel, by autograd; None: the encoder's own."""
    rng = np.random.default_rng(seed)
    F = features(rng, 2, channels, *sides)
    style = tensor(features(rng, 2, channels, 5, 7))
    m = some_weights(rng, *sides) if weighted else np.ones((2, *sides), np.float32)
    H = np.eye(channels, channels + 1)
    if dimensions is not None:
        H = rng.standard_normal((dimensions, channels + 1))
    T = moments(style)
    x = tensor(F).requires_grad_()
    found = [
        torch_reference.style_term(name, f.flatten(1), w.flatten(), t, tensor(H), shift)
        for f, w, t in zip(x, tensor(m), T, strict=True)
    ]
    expected, power = (torch.stack(values) for values in zip(*found, strict=True))
    (gradient,) = torch.autograd.grad(expected.sum(), x)

    loss = STYLE_LOSSES[name]
    constants = loss.constants(T.numpy(), style_space(H, T.numpy(), shift))
    shapes = {key: (2, *shape) for key, shape in loss.shapes(channels).items()}
    assert {key: value.shape for key, value in constants.items()} == shapes
    s = numpy_moments.normalizer(channels, m)
    term, D = loss.evaluate(numpy_moments.moments(F, m, s), constants)
    assert_close(term, expected.detach().numpy(), 1e-8)
    assert_close(D, D.transpose(0, 2, 1), 1e-12)
    back = numpy_moments.pull_back(F, m, 2 * s[:, None, None] * D[:, :-1])
    # Relative to what cancels in it where a picture has its style's statistics already.
    scale = np.linalg.norm(gradient.numpy()) + 1e-6 * np.linalg.norm(power.numpy())
    assert np.linalg.norm(back - gradient.numpy()) <= 1e-6 * scale
    assert_close(loss.evaluate(np.zeros_like(D), constants)[0], power.numpy(), 1e-8)


def run_operators(name, M, constants, channels) -> tuple[np.ndarray, np.ndarray]:
    """Term and D of the loss as a graph on the CPU provider."""
    shape = M.shape
    inputs = {"M": shape} | {key: value.shape for key, value in constants.items()}
    graph = Graph([], {}, inputs, {"term": (len(M), 1), "D": shape})
    names = {key: key for key in constants}
    term, D = STYLE_LOSSES[name].add_to(graph, "M", names, channels)
    graph.add("Identity", [term], "term")
    graph.add("Identity", [D], "D")
    session = Session(graph, provider="cpu", precision="fp32", threads=1)
    for key, value in (constants | {"M": M}).items():
        session.inputs[key][:] = value
    session.run()
    return session.outputs["term"][:, 0], session.outputs["D"]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize(
    ("channels", "dimensions"), [(1, None), (1, 3), (7, 12), (8, 5), (33, None)]
)
@pytest.mark.parametrize("sides", [(1, 1), (7, 9)])
def test_operators_are_the_reference(name, shift, channels, dimensions, sides):
    rng = np.random.default_rng(channels)
    style, F = features(rng, 2, channels, 11, 13), features(rng, 2, channels, *sides)
    rounded = np.float32
    T, M = (moments(tensor(f)).numpy().astype(rounded).astype(float) for f in (style, F))
    H = np.eye(channels, channels + 1)
    if dimensions is not None:
        H = rng.standard_normal((dimensions, channels + 1))
    constants = STYLE_LOSSES[name].constants(T, style_space(H, T, shift))
    constants = {key: value.astype(rounded).astype(float) for key, value in constants.items()}
    term, D = STYLE_LOSSES[name].evaluate(M, constants)
    found_term, found_D = run_operators(name, M, constants, channels)
    assert_close(found_term, term, 1e-5)
    assert_close(found_D, D, 1e-5)


@pytest.mark.parametrize("contrast", [0.01, 100.0])
def test_wasserstein_operators_reach_the_root_of_far_statistics(contrast):
    """A picture with far more contrast than its style: condition numbers are their squares."""
    rng = np.random.default_rng(3)
    style, F = features(rng, 2, 16, 24, 24), contrast * features(rng, 2, 16, 24, 24)
    T, M = (moments(tensor(f)).numpy().astype(np.float32).astype(float) for f in (style, F))
    loss = STYLE_LOSSES["wasserstein"]
    constants = loss.constants(T, style_space(np.eye(16, 17), T, 0.0))
    constants = {key: value.astype(np.float32).astype(float) for key, value in constants.items()}
    term, D = loss.evaluate(M, constants)
    found_term, found_D = run_operators("wasserstein", M, constants, 16)
    assert_close(found_term, term, 1e-5)
    assert_close(found_D, D, 1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("colour", [0.0, 0.5])
def test_styles_of_one_colour_have_finite_terms(name, colour):
    T = moments(torch.full((1, 4, 3, 3), colour, dtype=torch.float64)).numpy()
    constants = STYLE_LOSSES[name].constants(T, style_space(np.eye(4, 5), T, 1.0))
    F = np.random.default_rng(0).random((1, 4, 5, 5))
    for M in (T, moments(tensor(F)).numpy(), np.zeros_like(T)):
        term, D = STYLE_LOSSES[name].evaluate(M, constants)
        assert np.isfinite(term).all()
        assert np.isfinite(D).all()
    assert STYLE_LOSSES[name].evaluate(T, constants)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("contrast", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("seed", range(5))
def test_operators_bear_styles_of_hardly_more_than_one_colour(name, contrast, seed):
    """Of moments in float32, whose covariance is but rounding."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(0.5, 2, (1, 16, 1, 1))
    style, F = (colour * (1 + contrast * rng.standard_normal((1, 16, 9, 8))) for _ in range(2))
    T, M = (moments(tensor(x)).numpy().astype(np.float32).astype(np.float64) for x in (style, F))
    constants = STYLE_LOSSES[name].constants(T, style_space(np.eye(16, 17), T, 1.0))
    rounded = {key: value.astype(np.float32) for key, value in constants.items()}
    term, D = run_operators(name, M.astype(np.float32), rounded, 16)
    assert np.isfinite(term).all()
    assert np.isfinite(D).all()


# ------------------------------------------------------------------------- the classical formulas


def matrices(tap: np.ndarray) -> np.ndarray:
    """F as (N, C, P) in float64."""
    return tap.reshape(*tap.shape[:2], -1).astype(np.float64)


def textbook(F: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Gatys et al. 2016, equation 4: 1/(4 C² P²) Σ (G − A)², Gram matrices not divided."""
    _, C, P = F.shape
    G, A = F @ F.swapaxes(1, 2), S @ S.swapaxes(1, 2)
    return ((G - A) ** 2).sum(axis=(1, 2)) / (4 * C**2 * P**2)


def johnson(F: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Johnson et al. 2016, equation 3: ‖G/(CHW) − A/(CHW)‖²."""
    G, A = (X @ X.swapaxes(1, 2) / X[0].size for X in (F, S))
    return ((G - A) ** 2).sum(axis=(1, 2))


def relative(F: np.ndarray, S: np.ndarray) -> np.ndarray:
    """The share of ‖A‖² that is missing."""
    return johnson(F, S) / johnson(np.zeros_like(S), S)


STYLE_TERM = {"textbook": textbook, "gram": johnson, "relative": relative}
CONTENT_TERM = {
    "textbook": lambda F, C: ((F - C) ** 2).sum(axis=(1, 2)) / (4 * F[0].size),
    "gram": lambda F, C: ((F - C) ** 2).mean(axis=(1, 2)),
    "relative": lambda F, C: ((F - C) ** 2).sum(axis=(1, 2)) / (C**2).sum(axis=(1, 2)),
}


@pytest.mark.parametrize("normalization", STYLE_TERM)
def test_plain_gatys_is_reached_by_options(shipped, normalization, seed):
    """Each term is weight × the published one, for each image of a batch."""
    network, encoder = shipped.network, shipped.encoder
    picture, style, content = (network.features(waves(seed + i, 2, 3, 32, 48)) for i in range(3))
    asked = objective(
        encoder, normalization, style_loss="gram", style_space="encoder", shift=0, smoothing=0
    )

    def single(found: dict[str, np.ndarray]) -> Targets:
        return Targets(
            {t: moments(tensor(found[t])).numpy().astype(np.float32) for t in STYLE},
            {t: found[t].astype(np.float32) for t in CONTENT},
        )

    weights = {t: np.ones((1, *picture[t].shape[2:]), np.float32) for t in asked.taps}
    targets = Targets(single(style).style, single(content).content)
    goal = make_goal(asked, encoder, targets, weights, 2)
    assert goal.factors.shape == goal.normalizers.shape == (2, 3)
    found = exact_terms(asked, single(picture), goal)
    for column, (tap, weight) in enumerate(STYLE.items()):
        expected = STYLE_TERM[normalization](matrices(picture[tap]), matrices(style[tap]))
        assert_close(found[:, column], 10.0 * weight * expected, 1e-5)
    ((tap, weight),) = CONTENT.items()
    expected = CONTENT_TERM[normalization](matrices(picture[tap]), matrices(content[tap]))
    assert_close(found[:, 2], 0.1 * weight * expected, 1e-5)


# -------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("name", LOSSES)
def test_a_target_of_zeros_has_no_infinite_weight(shipped, name):
    asked, taps = objective(shipped.encoder, style_loss=name), shipped.encoder.taps
    sides = {t: taps[t].channels + 1 for t in STYLE}
    zeros = Targets(
        style={t: np.zeros((1, side, side), np.float32) for t, side in sides.items()},
        content={t: np.zeros((1, taps[t].channels, 2, 2), np.float32) for t in CONTENT},
    )
    weights = {t: np.ones((1, 2, 2), np.float32) for t in asked.taps}
    goal = make_goal(asked, shipped.encoder, zeros, weights, 1)
    assert np.isfinite(goal.factors).all()
    assert np.isfinite(goal.pulls).all()


def test_terms_are_in_the_order_of_the_network(shipped):
    layers = {"relu5_1": 1.0, "relu1_1": 1.0, "relu3_1": 0.0}
    goal = objective(shipped.encoder, style_layers=layers, content_layers={"relu5_1": 2.0})
    assert list(goal.style) == ["relu1_1", "relu5_1"]
    assert goal.taps == ("relu1_1", "relu5_1")
    assert goal.names()[:4] == ["style/relu1_1", "style/relu5_1", "content/relu5_1", "tv"]
    assert goal.terms == [("style", "relu1_1"), ("style", "relu5_1"), ("content", "relu5_1")]
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


def test_an_unknown_style_loss_is_named_with_those_there_are(shipped):
    with pytest.raises(SettingsError) as caught:
        objective(shipped.encoder, style_loss="nope")
    assert all(part in str(caught.value) for part in ("style_loss", "'nope'", *LOSSES))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ one more


class Means:
    """A loss as one writes it: squared distance between the means of the encoder's channels."""

    exact = False

    def shapes(self, channels):
        return {"goal": (channels, 1)}

    def constants(self, T, H):
        return {"goal": T[:, :-1, -1:]}

    def evaluate(self, M, constants):
        away = M[:, :-1, -1:] - constants["goal"]
        D = np.zeros_like(M)
        D[:, :-1, -1:] = away
        D[:, -1:, :-1] = away.transpose(0, 2, 1)
        return np.square(away).sum(axis=(1, 2)), D

    def add_to(self, graph, M, constants, channels):
        bounds = [graph.shape_constant(*v) for v in ((0, channels), (channels, channels + 1))]
        column = graph.add("Slice", [M, *bounds, graph.shape_constant(1, 2)])
        away = graph.add("Sub", [column, constants["goal"]])
        square = graph.add("Mul", [away, away])
        term = graph.add("ReduceSum", [square, graph.shape_constant(1)], keepdims=0)
        unit = graph.constant(np.eye(channels + 1, dtype=np.float32)[None, -1:])
        padded = graph.add("Pad", [away, graph.shape_constant(0, 0, 0, 0, 1, 0)])
        product = graph.add("MatMul", [padded, unit])
        turned = graph.add("Transpose", [product], perm=[0, 2, 1])
        return term, graph.add("Add", [product, turned])


@pytest.fixture
def toy(monkeypatch) -> None:
    monkeypatch.setitem(STYLE_LOSSES, "toy", Means())

    def formula(G, mean, T, target, C):
        return (mean - target).square().sum() / C**2

    monkeypatch.setitem(torch_reference.DISTANCES, "toy", formula)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("kind", ["fused", "split"])
def test_a_loss_is_added_by_its_name(average_pack, batch, backend, kind):
    asked = make_objective(
        average_pack.encoder, style_loss="toy", style_space="encoder", shift=0, **SHALLOW
    )
    image = clear_image(average_pack, asked, batch("astronaut", 37, 29), 1)
    given = make_problem(
        average_pack, asked, image, batch("chelsea", 37, 29), batch("coffee", 40, 40)
    )
    plan = Plan(average_pack.encoder, asked, given.canvas, backend("cpu", "fp32"), kind)
    plan.set_targets(given.targets, given.weights)
    assert_close(plan.gradient_at(image), given.gradient, 1e-5)
    assert_close(plan.terms, given.terms, 1e-5)


@pytest.mark.usefixtures("toy")
def test_an_added_loss_makes_pictures(content, style):
    for plan in ("fused", "split"):
        here = Stylizer(EngineOptions(provider="cpu", threads=1, plan=plan))
        result = here.stylize(content, style, quick(style_loss="toy", steps=8))
        assert result.loss < 0.5 * result.reports[0].loss
        pixels(result)
