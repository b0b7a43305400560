"""The transfer against float64 references, and where pictures have hardly any statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch_reference import LITE_POOLED, Network, waves

from nst_fast import StyleSettings, encoders, images, transfer
from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.encoders.manifest import DECODERS, WEIGHTS
from nst_fast.errors import SettingsError
from nst_fast.kernels import Kernels
from nst_fast.losses import Objective
from nst_fast.losses import moments as reference
from nst_fast.losses.space import style_space
from nst_fast.runtime import providers
from nst_fast.transfer import Transfer, colouring, decoder_graph

EXAMPLES = Path(__file__).parent.parent / "examples"
ENCODER = encoders.load("vgg19-lite")
TAPS = [decoder.tap for decoder in ENCODER.decoders]


def features(seed: int, n: int = 2, channels: int = 6, cells: int = 400) -> np.ndarray:
    """Correlated, with means."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(n, channels, channels))
    return mix @ rng.normal(size=(n, channels, cells)) + rng.normal(size=(n, channels, 1))


def moments(x: np.ndarray) -> np.ndarray:
    ones = np.ones((len(x), x.shape[2]), np.float32)
    return reference.moments(x, ones, reference.normalizer(x.shape[1], ones))


def gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=2), np.stack([np.cov(each, bias=True) for each in x])


def colour(x: np.ndarray, T: np.ndarray) -> np.ndarray:
    maps = colouring(moments(x), T)
    return maps[:, :, :-1] @ x + maps[:, :, -1:]


def test_coloured_features_have_the_mean_and_covariance_of_the_style(monkeypatch):
    monkeypatch.setattr(transfer, "RIDGE", 1e-12)
    monkeypatch.setattr(transfer, "RESOLVED", 0.0)
    content, style = features(1), features(2, cells=300)
    for found, want in zip(gaussian(colour(content, moments(style))), gaussian(style), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-6 * np.abs(want).max())


def test_the_ridge_hardly_changes_well_conditioned_statistics():
    rng = np.random.default_rng(3)
    content, style = rng.normal(size=(2, 6, 400)), 2.0 * rng.normal(size=(1, 6, 500)) + 1.0
    _, covariance = gaussian(colour(content, moments(style)))
    _, wanted = gaussian(style)
    assert np.linalg.norm(covariance - wanted) < 0.1 * np.linalg.norm(wanted)


def test_no_other_map_to_the_style_moves_features_less(monkeypatch):
    """The map is symmetric and positive: Brenier's condition for the optimal one."""
    monkeypatch.setattr(transfer, "RIDGE", 1e-12)
    monkeypatch.setattr(transfer, "RESOLVED", 0.0)
    content, style = features(5), features(6)
    maps = colouring(moments(content), moments(style))
    A = maps[:, :, :-1]
    np.testing.assert_array_equal(A, A.transpose(0, 2, 1))
    assert (np.linalg.eigvalsh(A) > 0).all()
    moved = colour(content, moments(style))
    mean, covariance = gaussian(moved)
    roots = [np.linalg.cholesky(S) for S in (gaussian(content)[1], covariance)]
    whitened = np.linalg.solve(roots[0], content - content.mean(axis=2, keepdims=True))
    other = roots[1] @ whitened + mean[:, :, None]  # the same moments by another map
    assert ((moved - content) ** 2).sum() < ((other - content) ** 2).sum()


def test_features_that_are_their_own_style_stay():
    content = features(7)
    np.testing.assert_allclose(colour(content, moments(content)), content, atol=1e-6)


@pytest.mark.parametrize("flat", ["content", "style", "both"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_flat_features_have_nothing_to_colour_but_their_mean(flat, value):
    content, style = features(9), features(10)
    if flat != "style":
        content = np.full_like(content, value)
    if flat != "content":
        style = np.full_like(style, value)
    found = colour(content, moments(style))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.mean(axis=2), style.mean(axis=2), atol=1e-6)
    assert (np.ptp(found, axis=2) <= np.ptp(content, axis=2) + 1e-9).all()


def test_fewer_cells_than_channels_are_no_reason_to_explode():
    content, style = features(11, channels=40, cells=4), features(12, channels=40)
    found = colour(content, moments(style))
    assert np.abs(found).max() < 3 * np.abs(style).max()


# ------------------------------------------------------------------------------------ the network


def backend(provider="cpu", precision="fp32") -> Backend:
    return Backend(provider, precision, 1, Kernels(1))


def weights(canvas: Canvas, opacity=(None,)) -> dict[str, np.ndarray]:
    return {
        tap: np.stack([canvas.weights(ENCODER.taps[tap].stride, a) for a in opacity])
        for tap in TAPS
    }


def around(picture: np.ndarray, margin: int = 8) -> Canvas:
    return Canvas.around(*picture.shape[2:], margin=margin, stride=16)


FALLING = {"relu4_1": 1.0, "relu3_1": 2 / 3, "relu2_1": 1 / 3, "relu1_1": 0.0}
NETWORK = Network(load_file(ENCODER.path / WEIGHTS), pooled=LITE_POOLED)


def style_of(picture: np.ndarray) -> dict[str, np.ndarray]:
    canvas = around(picture)
    found, m = NETWORK.features(canvas.extend(picture)), weights(canvas)
    return {
        tap: reference.moments(
            found[tap], m[tap], reference.normalizer(found[tap].shape[1], m[tap])
        )
        for tap in TAPS
    }


def start(content, style, *, margin=8, opacity=(None,), share=0.4, on=None):
    canvas = around(content, margin)
    made = Transfer(ENCODER, canvas, on or backend(), len(content))
    return made(content, style, weights(canvas, opacity), share)


def by_torch(content, styles, opacities, share, places=(None,)) -> np.ndarray:
    """The transfer in float64, from the weights and the formulas.

    ``styles`` and ``opacities`` are of each region, ``places`` how much of its map a pixel gets.
    """
    canvas = around(content)
    parts = [weights(canvas, opacity) for opacity in opacities]
    arrays = {
        k: torch.from_numpy(v).double() for k, v in load_file(ENCODER.path / DECODERS).items()
    }
    found = NETWORK(torch.from_numpy(canvas.extend(content)).double())
    x = found[TAPS[0]]
    for tap, after in zip(TAPS, (*TAPS[1:], None), strict=True):
        same, x = x, torch.zeros_like(x)
        for style, m, place in zip(styles, parts, places, strict=True):
            s = reference.normalizer(same.shape[1], m[tap])
            M = reference.moments(same.numpy(), m[tap], s)
            maps = torch.from_numpy(colouring(M, style[tap]))
            made = (maps[:, :, :-1] @ same.flatten(2) + maps[:, :, -1:]).view(same.shape)
            x += made if place is None else same + cells(place, canvas, tap) * (made - same)
        x -= (len(styles) - 1) * same
        count = sum(name.startswith(tap) for name in arrays) // 2
        for i in range(count):
            if i == count - 1 and after is not None:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            full = x.shape[2:] == canvas.size
            x = F.pad(x, (1, 1, 1, 1), mode="constant" if full else "replicate")
            x = F.conv2d(x, arrays[f"{tap}.{i}.weight"], arrays[f"{tap}.{i}.bias"])
            x = x if i == count - 1 and after is None else F.relu(x)
        if after is not None:
            x = x + share * FALLING[after] * (found[after] - x)
    inside = x[:, :, canvas.top :, canvas.left :][:, :, : canvas.height, : canvas.width]
    return inside.clamp(0, 1).numpy()


def cells(place, canvas, tap) -> torch.Tensor:
    """Means over the cells of a tap of a plane (H, W), mirrored past its borders."""
    sides = zip(canvas.size, (canvas.height, canvas.width), (canvas.top, canvas.left), strict=True)
    around = [(before, total - length - before) for total, length, before in sides]
    wide = np.pad(place.astype(np.float64), around, mode="reflect")
    return F.avg_pool2d(torch.from_numpy(wide)[None, None], ENCODER.taps[tap].stride)


def test_starts_in_regions_are_those_of_the_formulas():
    """Two styles in soft places that leave some to neither, one with opacity in the other."""
    size = 45, 61
    content = waves(1, 2, 3, *size)
    styles = [style_of(waves(seed, 1, 3, 70, 50)) for seed in (2, 3)]
    places = 0.5 * waves(4, 2, 1, *size)[:, 0].clip(0, 1)
    opacity = np.random.default_rng(0).uniform(size=size).astype(np.float32)
    opacities = [(place, opacity * place) for place in places]
    expected = by_torch(content, styles, opacities, 0.3, places)
    canvas = around(content)
    sites = [(tap, region) for tap in TAPS for region in (0, 1)]
    found = Transfer(ENCODER, canvas, backend(), 2)(
        content,
        {f"{tap}/{region}": styles[region][tap] for tap, region in sites},
        {f"{tap}/{region}": weights(canvas, opacities[region])[tap] for tap, region in sites},
        0.3,
        {
            f"{tap}/{region}": canvas.shares(ENCODER.taps[tap].stride, places[region])
            for tap, region in sites
        },
    )
    np.testing.assert_allclose(found, expected, atol=1e-2)
    assert np.abs(found - expected).mean() < 1e-3
    assert np.abs(found - start(content, styles[0], share=0.3)).mean() > 0.02


@pytest.mark.parametrize("size", [(64, 64), (45, 61), (8, 31)])
def test_starts_are_those_of_the_formulas(size):
    content, style = waves(1, 2, 3, *size), style_of(waves(2, 1, 3, 70, 50))
    rng = np.random.default_rng(0)
    opacity = None, rng.uniform(size=size).astype(np.float32)
    expected = by_torch(content, [style], [opacity], 0.3)
    found = start(content, style, opacity=opacity, share=0.3)
    assert found.shape == content.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-2)
    assert np.abs(found - expected).mean() < 1e-3
    again = start(content, style, opacity=opacity, share=0.3)
    np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize(
    ("provider", "precision"),
    [(s.name, p) for s in providers() if s.name == "openvino" for p in s.precisions],
)
def test_openvino_makes_nearly_the_same_starts(provider, precision):
    content, style = waves(3, 1, 3, 90, 77), style_of(waves(4, 1, 3, 64, 64))
    found = start(content, style, on=backend(provider, precision))
    error = np.abs(found - start(content, style)).mean()
    assert error < (0.02 if precision == "bf16" else 1e-3)


def example(name: str, side: int) -> np.ndarray:
    picture = images.load(EXAMPLES / f"{name}.jpg")
    return images.to_tensor(images.resize(picture, side, side).pixels)


def test_starts_are_nearer_to_the_style_than_their_contents():
    """By the default style terms, each at most two thirds of what it was."""
    content, style = example("content_lake", 128), style_of(example("style_swirls", 128))
    objective = Objective.from_settings(StyleSettings(), ENCODER)
    before, after = style_of(content), style_of(start(content, style))
    for tap in TAPS:
        T = style[tap]
        H = style_space(ENCODER.style_map(tap), T, objective.shift)
        constants = objective.distance.constants(T, H)
        terms = [objective.distance.evaluate(M[tap], constants)[0].item() for M in (before, after)]
        assert terms[1] < 2 / 3 * terms[0], tap


def test_a_picture_that_is_its_own_style_comes_back_nearly():
    content = example("content_still_life", 128)
    found = start(content, style_of(content), share=0.9)
    assert np.abs(found - content).mean() < 0.1


def plain(kind: str, side: int) -> np.ndarray:
    if kind == "grey":
        return waves(8, 1, 1, side, side).repeat(3, axis=1)
    return np.full((1, 3, side, side), {"black": 0.0, "flat": 0.4, "white": 1.0}[kind], np.float32)


@pytest.mark.parametrize("side", [8, 48])
@pytest.mark.parametrize("content", ["black", "flat", "white", "grey"])
@pytest.mark.parametrize("style", ["black", "flat", "white", "grey"])
def test_pictures_without_statistics_give_pictures(content, style, side):
    found = start(plain(content, side), style_of(plain(style, 48)), margin=side % 16)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_canvas_leaves_no_frame():
    """More of the mirrored picture around it hardly changes a start, at its border neither."""
    content, style = waves(9, 1, 3, 96, 96), style_of(waves(10, 1, 3, 64, 64))
    mask = np.zeros((192, 192), np.float32)
    mask[48:-48, 48:-48] = 1.0
    wide = np.pad(content, ((0, 0), (0, 0), (48, 48), (48, 48)), mode="reflect")
    change = np.abs(
        start(wide, style, opacity=(mask,))[:, :, 48:-48, 48:-48] - start(content, style)
    )
    middle = change[:, :, 24:-24, 24:-24].mean()
    border = np.concatenate([change[:, :, :8], change[:, :, -8:]]).mean()
    assert middle < 0.06
    assert border < 0.09


def test_graphs_double_a_map_where_the_next_tap_has_twice_the_cells():
    for decoder in ENCODER.decoders:
        shape = 1, ENCODER.taps[decoder.tap].channels, 3, 5
        graph = decoder_graph(ENCODER, decoder, shape, mixed=decoder.after is not None)
        stride = 1 if decoder.after is None else ENCODER.taps[decoder.after].stride
        factor = ENCODER.taps[decoder.tap].stride // stride
        assert graph.outputs["decoded"][2:] == (3 * factor, 5 * factor)
        assert graph.shapes()["decoded"] == graph.outputs["decoded"]


def test_an_encoder_without_decoders_cannot_transfer():
    bare = replace(ENCODER, has_decoders=False)
    with pytest.raises(SettingsError, match="encoder vgg19-lite has no decoders"):
        Transfer(bare, Canvas.around(32, 32, margin=8, stride=16), backend())
