"""The objective: which terms there are, how each is scaled, and the targets they compare with.

For features F (C, P) of a tap, with Gram matrix G = F Fᵀ / (C·P) and target T, and for
content features F_c, the unweighted terms are

    style:   ‖G − T‖²_F                 content:   mean (F − F_c)²

and the loss, where the normalisation chooses s_l and c_l, is

    Σ_l style_weight·λ_l·s_l·‖G_l − T_l‖² + Σ_l content_weight·λ_l·c_l·mean(F_l − F_c,l)²
    + tv_weight·TV + range_weight·mean (x − clamp(x, 0, 1))²

    "relative"   s = 1/‖T‖²_F, c = 1/mean(F_c²): each term is the share of its target that is
                 still missing, so that a weight means the same on every tap, encoder, picture
                 and size. The default; a departure from Gatys et al.
    "gram"       s = c = 1: the normalisation of most implementations since Johnson et al. 2016.
    "textbook"   s = c = 1/4: 1/(4·H²·W²·C²)·‖G_S − G_G‖² over the unnormalised Gram matrices
                 F Fᵀ (Gatys et al. 2016, equations 4 and 5) and 1/(4·H·W·C)·Σ(F − F_c)². A style
                 picture of another size counts as if it had the picture's P.

TV is the mean over pixels and channels of the squared differences to the right and lower
neighbour. The last term keeps the unbounded optimisation within the values that a file can
hold; the field clamps at the end instead, which gives part of it away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nst_fast.config import Normalization, StyleSettings
from nst_fast.device import Float32, Float64
from nst_fast.encoders import Encoder
from nst_fast.errors import SettingsError
from nst_fast.kernels import Kernels


@dataclass(frozen=True)
class Objective:
    """Taps and weights of the terms; taps in the network's order, all weights above 0.

    Attributes:
        style: style_weight·λ of each style tap.
        content: content_weight·λ of each content tap.
        tv: weight of the total variation.
        range: weight of the penalty on pixels outside [0, 1].
        normalization: how the terms are scaled.
    """

    style: Mapping[str, float]
    content: Mapping[str, float]
    tv: float
    range: float
    normalization: Normalization

    @classmethod
    def from_settings(cls, settings: StyleSettings, encoder: Encoder) -> Objective:
        """Take the terms that have a weight above 0.

        Raises:
            SettingsError: the encoder has no such tap; the message lists those it has.
        """
        for option in ("style_layers", "content_layers"):
            for tap in getattr(settings, option):
                if tap not in encoder.taps:
                    raise SettingsError(
                        f"{option}: encoder {encoder.name} has no layer {tap!r}; "
                        f"it has {', '.join(encoder.taps)}"
                    )

        def weighted(layers: Mapping[str, float], weight: float) -> dict[str, float]:
            return {t: weight * layers[t] for t in encoder.taps if weight * layers.get(t, 0.0) > 0}

        return cls(
            style=weighted(settings.style_layers, settings.style_weight),
            content=weighted(settings.content_layers, settings.content_weight),
            tv=settings.tv_weight,
            range=settings.range_weight,
            normalization=settings.normalization,
        )

    @property
    def taps(self) -> tuple[str, ...]:
        """Every tap that a term needs, once."""
        return tuple(dict.fromkeys((*self.style, *self.content)))

    def names(self) -> list[str]:
        """Names of the terms, in the order of coefficients: style, content, picture."""
        taps = [*(f"style/{t}" for t in self.style), *(f"content/{t}" for t in self.content)]
        return [*taps, "tv", "range"]


def term_kinds(objective: Objective) -> list[tuple[str, str]]:
    """Kind and tap of each term at the taps, in the order of :func:`coefficients`."""
    return [("style", t) for t in objective.style] + [("content", t) for t in objective.content]


def as_matrix(features: Float32) -> Float32:
    """View (N, C, H, W) as (N, C, P)."""
    return features.reshape(features.shape[0], features.shape[1], -1)


@dataclass(frozen=True)
class Targets:
    """What the terms compare with: ``style`` T (N, C, C) and ``content`` F_c (N, C, H/s, W/s)."""

    style: Mapping[str, Float32]
    content: Mapping[str, Float32]


def coefficients(objective: Objective, targets: Targets) -> Float64:
    """Factor of each unweighted term at the taps, (N, K), style terms before content terms."""
    columns = [
        weight * _scale(objective.normalization, np.square(_rows(targets.style[tap])).sum(axis=1))
        for tap, weight in objective.style.items()
    ] + [
        weight
        * _scale(objective.normalization, np.square(_rows(targets.content[tap])).mean(axis=1))
        for tap, weight in objective.content.items()
    ]
    return np.stack(columns, axis=1)


def _rows(array: Float32) -> Float64:
    return array.reshape(array.shape[0], -1).astype(np.float64)


def _scale(normalization: Normalization, power: Float64) -> Float64:
    if normalization == "relative":
        # A target of zeros (a black style under a bias-free tap) has nothing to be relative to.
        return 1.0 / np.where(power > 0, power, 1.0)
    return np.full_like(power, 1.0 if normalization == "gram" else 0.25)


def style_target(
    features: Mapping[str, Float32],
    taps: Sequence[str],
    kernels: Kernels,
    opacity: Float32 | None = None,
) -> dict[str, Float32]:
    """Gram matrices of a style picture, (N, C, C) a tap.

    Args:
        features: its taps (N, C, H/s, W/s).
        taps: which to compute.
        kernels: on the device of the features.
        opacity: of its pixels, (H, W) in [0, 1]; transparent pixels do not count.
    """
    grams: dict[str, Float32] = {}
    for tap in taps:
        n, channels, height, width = features[tap].shape
        grams[tap] = np.empty((n, channels, channels), np.float32)
        weights = None if opacity is None else _pool(opacity, height, width)
        kernels.gram(as_matrix(features[tap]), grams[tap], pixel_weights=weights)
    return grams


def _pool(opacity: Float32, height: int, width: int) -> Float32:
    """Mean of the opacity over the pixels of each cell, (H·W,)."""
    rows, columns = opacity.shape[0] // height, opacity.shape[1] // width
    cells = opacity.reshape(height, rows, width, columns).mean(axis=(1, 3), dtype=np.float32)
    return np.ascontiguousarray(cells.reshape(-1))


class PictureTerms:
    """The terms of the picture itself: total variation and range, as means over its values."""

    def __init__(self, objective: Objective, shape: tuple[int, ...], kernels: Kernels) -> None:
        """Take the terms that have a weight; ``shape`` is that of the images, (N, 3, H, W)."""
        n, per_image = shape[0], int(np.prod(shape[1:]))
        self._losses = np.zeros(n)
        self._terms = [
            (column, np.full(n, weight / per_image), kernel)
            for column, (weight, kernel) in enumerate(
                [(objective.tv, kernels.total_variation), (objective.range, kernels.range_penalty)]
            )
            if weight > 0
        ]

    def add(self, image: Float32, gradient: Float32, terms: Float64) -> None:
        """Add to the gradient (N, 3, H, W), and write the weighted terms (N, 2)."""
        for column, weights, kernel in self._terms:
            kernel(image, weights, gradient, self._losses)
            terms[:, column] = self._losses


def exact_terms(
    objective: Objective,
    image: Float32,
    found: Targets,
    targets: Targets,
    kernels: Kernels,
) -> Float64:
    """Evaluate the terms at an image in float32 by another route than a Plan's: (N, K), weighted.

    A float32 forward pass and the CPU's kernels stand in for the step's own graph, so that a loss
    found at a lower precision is reported in float32.

    Args:
        objective: names the terms.
        image: (N, 3, H, W).
        found: its Gram matrices and features.
        targets: what the terms compare with.
        kernels: of the CPU.
    """
    factors = coefficients(objective, targets)
    terms = np.zeros((image.shape[0], len(objective.names())))
    for index, (kind, tap) in enumerate(term_kinds(objective)):
        column = np.ascontiguousarray(factors[:, index])
        if kind == "style":
            losses = np.zeros_like(column)
            kernels.style_residual(found.style[tap].copy(), targets.style[tap], column, losses)
            terms[:, index] = losses
        else:
            difference = found.content[tap].astype(np.float64) - targets.content[tap]
            terms[:, index] = column * np.square(difference).mean(axis=(1, 2, 3))
    picture = PictureTerms(objective, image.shape, kernels)
    picture.add(image, np.zeros_like(image), terms[:, factors.shape[1] :])
    return terms
