"""``--colour``: whose colours come out, and what the functions behind it promise."""

from __future__ import annotations

import numpy as np
import pytest
from stylizing import pixels, quick

from nst_fast import StyleSettings
from nst_fast.colour import BY_CONTENT, finished, luma, of_style, seen
from nst_fast.images import Picture


def picture(seed: int, *, alpha: bool = False) -> Picture:
    """Correlated colours well inside [0, 1], so that nothing is clipped."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((31, 22, 3)) @ (0.04 * np.eye(3) + rng.uniform(0, 0.03, (3, 3)))
    opacity = rng.uniform(size=(31, 22)).astype(np.float32) if alpha else None
    return Picture((mixed + rng.uniform(0.45, 0.55, 3)).astype(np.float32), opacity)


def statistics(given: Picture) -> tuple[np.ndarray, np.ndarray]:
    flat = given.pixels.reshape(-1, 3).astype(np.float64)
    weights = None if given.alpha is None else given.alpha.ravel().astype(np.float64)
    return np.average(flat, axis=0, weights=weights), np.cov(flat.T, aweights=weights, ddof=0)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("colour", ["linear", "cholesky"])
def test_a_recoloured_style_has_the_contents_mean_and_covariance(colour, alpha):
    style, content = picture(1, alpha=alpha), picture(2, alpha=alpha)
    found = statistics(of_style(style, content, colour))
    for value, expected in zip(found, statistics(content), strict=True):
        assert np.allclose(value, expected, rtol=2e-2)


def test_linear_is_the_symmetric_map():
    """Unlike Cholesky's it moves no colour that agrees already, whatever the order of channels."""
    style, content = picture(3), picture(4)
    turned = [Picture(given.pixels[..., ::-1].copy()) for given in (style, content)]
    found = of_style(style, content, "linear").pixels
    assert np.allclose(of_style(*turned, "linear").pixels[..., ::-1], found, atol=1e-5)
    other = of_style(style, content, "cholesky").pixels
    assert not np.allclose(of_style(*turned, "cholesky").pixels[..., ::-1], other, atol=1e-3)
    assert np.allclose(of_style(style, style, "linear").pixels, style.pixels, atol=1e-5)


def test_luminance_sees_grey_with_the_contents_mean_and_deviation():
    style, content = picture(5), picture(6)
    grey = of_style(style, content, "luminance")
    assert np.ptp(grey.pixels, axis=2).max() == 0
    assert np.ptp(seen(content, "luminance").pixels, axis=2).max() == 0
    found, expected = luma(grey.pixels), luma(content.pixels)
    assert found.mean() == pytest.approx(expected.mean(), abs=1e-5)
    assert found.std() == pytest.approx(expected.std(), abs=1e-5)


@pytest.mark.parametrize("colour", ["content", "luminance"])
def test_what_is_handed_out_has_the_contents_chroma(colour):
    made, content = picture(7).pixels, picture(8).pixels
    found = finished(made, content, colour)
    assert np.allclose(luma(found), luma(made), atol=1e-6)
    chroma = found - luma(found)[..., None]
    assert np.allclose(chroma, content - luma(content)[..., None], atol=1e-6)


@pytest.mark.parametrize("colour", sorted(BY_CONTENT))
@pytest.mark.parametrize("flat", ["style", "content", "both"])
def test_flat_pictures_stay_finite_and_in_range(colour, flat):
    one = Picture(np.full((9, 9, 3), 0.25, np.float32))
    style = one if flat in ("style", "both") else picture(9)
    content = (
        Picture(np.zeros((9, 9, 3), np.float32)) if flat in ("content", "both") else picture(1)
    )
    found = of_style(style, content, colour).pixels
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("colour", ["linear", "cholesky", "luminance", "content"])
def test_each_way_comes_nearer_to_the_contents_colours(stylizer, content, style, colour):
    """As the distance of mean colours; a control that does nothing leaves it as it is."""

    def distance(settings: StyleSettings) -> float:
        made = pixels(stylizer.stylize(content, style, settings))
        return float(np.linalg.norm(made.mean(axis=(0, 1)) - content.mean(axis=(0, 1)) / 255))

    assert distance(quick(steps=12, colour=colour)) < 0.5 * distance(quick(steps=12))


def test_colours_of_the_content_keep_its_alpha(stylizer, content, style):
    alpha = np.full(content.shape[:2], 255, np.uint8)
    alpha[:20] = 0
    made = stylizer.stylize(np.dstack([content, alpha]), style, quick(colour="luminance"))
    assert made.picture.alpha is not None
    assert made.picture.alpha[:20].max() == 0
