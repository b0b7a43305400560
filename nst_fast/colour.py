"""Whose colours a picture gets: what is done to pictures before and after the optimisation.

Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer". On gamma-coded RGB, as
there; luma Y = 0.299 R + 0.587 G + 0.114 B.

    "style"      nothing: the colours are the style's
    "linear"     before: the style's colours s become A (s − μ_s) + μ_c, with the mean and the
                 covariance Σ of the content's, A = Σ_c^½ Σ_s^−½ (section 3, "image analogies")
    "cholesky"   the same with A = L_c L_s⁻¹, Σ = L Lᵀ (section 3)
    "luminance"  before: content and style keep luma alone, and the style's gets the content's mean
                 and deviation; after: the content's chroma is added (section 4)
    "content"    after: the luma that came out with the content's chroma
"""

from __future__ import annotations

import numpy as np

from nst_fast.config import Colour
from nst_fast.host import Float32, Float64
from nst_fast.images import Picture

LUMA = np.array([0.299, 0.587, 0.114])
LEAST_VARIANCE = 1e-5  # of a colour direction: a deviation of 0.003, less than one level of 8 bits
BY_CONTENT: frozenset[Colour] = frozenset({"linear", "cholesky", "luminance"})


def seen(picture: Picture, colour: Colour) -> Picture:
    """What is optimised, and compared with, of a content or of a picture to start from."""
    return _grey(picture, luma(picture.pixels)) if colour == "luminance" else picture


def of_style(style: Picture, content: Picture, colour: Colour) -> Picture:
    """A style with the colours that go with a content; transparent pixels of neither count.

    A content of which nothing shows has no colours to give.
    """
    if colour not in BY_CONTENT or (content.alpha is not None and not content.alpha.any()):
        return style
    if colour == "luminance":
        y = luma(style.pixels)
        brightness, deviation = _mean_and_deviation(y, style.alpha)
        wanted, spread = _mean_and_deviation(luma(content.pixels), content.alpha)
        gain = spread / max(deviation, LEAST_VARIANCE**0.5)
        return _grey(style, np.clip((y - brightness) * gain + wanted, 0.0, 1.0))
    (mean, source), (target_mean, target) = map(_mean_and_covariance, (style, content))
    A = _transport(source, target, colour)
    pixels = (style.pixels.astype(np.float64) - mean) @ A.T + target_mean
    return Picture(np.clip(pixels, 0.0, 1.0).astype(np.float32), style.alpha)


def finished(pixels: Float32, content: Float32, colour: Colour) -> Float32:
    """The picture that is handed out: (H, W, 3) in [0, 1], from the optimised one and the content.

    Adding the same to all three channels changes luma alone, so chroma stays the content's.
    """
    if colour not in ("luminance", "content"):
        return pixels
    change = luma(pixels) - luma(content)
    found: Float32 = np.clip(content + change[..., None], 0.0, 1.0).astype(np.float32)
    return found


def luma(pixels: Float32) -> Float64:
    """Y of (H, W, 3), as (H, W) float64."""
    found: Float64 = pixels.astype(np.float64) @ LUMA
    return found


def _grey(picture: Picture, y: Float64) -> Picture:
    pixels = np.repeat(y[..., None].astype(np.float32), 3, axis=2)
    return Picture(pixels, picture.alpha)


def _transport(source: Float64, target: Float64, colour: Colour) -> Float64:
    """A with A Σ_source Aᵀ = Σ_target; colour directions that the source lacks are left flat."""
    if colour == "cholesky":
        from_, to = (
            np.linalg.cholesky(each + LEAST_VARIANCE * np.eye(3)) for each in (source, target)
        )
        return np.asarray(to @ np.linalg.inv(from_), np.float64)
    return _power(target, 0.5) @ _power(source, -0.5)


def _power(covariance: Float64, exponent: float) -> Float64:
    values, vectors = np.linalg.eigh(covariance)
    powers = np.maximum(values, LEAST_VARIANCE) ** exponent
    found: Float64 = (vectors * powers) @ vectors.T
    return found


def _mean_and_covariance(picture: Picture) -> tuple[Float64, Float64]:
    colours = picture.pixels.reshape(-1, 3).astype(np.float64)
    weights = None if picture.alpha is None else picture.alpha.reshape(-1)
    mean = np.asarray(np.average(colours, axis=0, weights=weights), np.float64)
    centred = colours - mean
    weighted = centred if weights is None else centred * weights[:, None]
    total = len(colours) if weights is None else weights.sum(dtype=np.float64)
    covariance: Float64 = centred.T @ weighted / total
    return mean, covariance


def _mean_and_deviation(y: Float64, alpha: Float32 | None) -> tuple[float, float]:
    mean = np.average(y, weights=alpha)
    variance = np.average((y - mean) ** 2, weights=alpha)
    return float(mean), float(np.sqrt(variance))
