"""The objective: which terms there are, how each is scaled, and the goal that they lead to.

For the features F of a tap (C channels) with pixel weights m, moments M of F and T of the style
(``nst_fast.losses.moments``), and content features F_c, the unweighted terms are

    style:   d(M, T), a ``StyleLoss``            content:   Σ m (F − F_c)² / (C·Σm)

A style term is at a *site*: a tap, as "relu1_1", or a tap and one of several regions of the
picture, as "relu1_1/2". A region has weights m_r ≤ m of its own, and its term the share Σm_r/Σm of
the tap's weight: a pixel is then pulled as hard as in a picture of one region (after the guided
Gram matrices of Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer").

and the loss, where the normalisation chooses s_l, c_l and t, is

    Σ_l style_weight·λ_l·s_l·d_l + Σ_l content_weight·λ_l·c_l·content_l
    + tv_weight·t·TV + range_weight·mean (x − clamp(x, 0, 1))² + temporal_weight·mean m (x − a)²

    "relative"   s = 1/d(0, T), c = 1/mean (F_c²), t = 1/TV of the style: each term is the
                 share of its target that is still missing, or of what the style has, so that a
                 weight means the same on every tap, encoder, picture and size. The default; a
                 departure from Gatys et al.
    "gram"       s = c = t = 1: the normalisation of most implementations since Johnson et al. 2016.
    "textbook"   s = c = 1/4, t = 1: 1/(4·H²·W²·C²)·‖G_S − G_G‖² over the unnormalised Gram matrices
                 F Fᵀ (Gatys et al. 2016, equations 4 and 5) and 1/(4·H·W·C)·Σ(F − F_c)². A style
                 picture of another size counts as if it had the picture's P.

TV is the mean over pixels and channels of √(ε² + right² + below²) − ε, the length of a value's
differences to its neighbours, rounded at ε = ``CORNER`` (Rudin, Osher and Fatemi 1992, rounded as
by Charbonnier et al. 1997). Between edges it takes away what is faint, such as ripples that a Gram
matrix hardly sees; an edge costs its height, however sharp it is. Over the style's own, it leaves a
style of many strokes its strokes. The range term keeps the unbounded optimisation within the values
that a file can hold; the field clamps at the end instead, which gives part of it away. The temporal
term is for frames of a film: it keeps a picture close to an anchor a, as far as the weights m of
its pixels say (Ruder et al. 2016, section 4.2); its mean is over all values: a pixel is held
as firmly whatever the weights of the others are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from nst_fast.config import Normalization, StyleSettings
from nst_fast.encoders import Encoder
from nst_fast.errors import SettingsError
from nst_fast.host import Float32, Float64, one_blas_thread
from nst_fast.losses import moments
from nst_fast.losses.registry import STYLE_LOSSES
from nst_fast.losses.space import style_space
from nst_fast.losses.style_loss import Constants, StyleLoss

CORNER = 0.02  # of the total variation, in values of a pixel: five levels of 8 bits
# Of the cells of each tap, and of each site in a region; (1 or N, H/s, W/s) in [0, 1].
Weights = Mapping[str, Float32]


def site(tap: str, region: int) -> str:
    """The name of a tap in a region of the picture."""
    return f"{tap}/{region}"


def tap_of(site: str) -> str:
    """The tap of a site."""
    return site.partition("/")[0]


def region_of(site: str) -> int:
    """The region of a site; 0 where it is the whole picture."""
    return int(site.partition("/")[2] or 0)


@dataclass(frozen=True)
class Objective:
    """Sites and weights of the terms; taps in the network's order, all weights above 0.

    Attributes:
        style: style_weight·λ of each style site; those of a tap follow each other.
        content: content_weight·λ of each content tap.
        tv: weight of the total variation.
        range: weight of the penalty on pixels outside [0, 1].
        temporal: weight of the distance from the anchor; with 0 there is no such term.
        normalization: how the terms are scaled.
        style_loss: name of the distance of moments, of ``STYLE_LOSSES``.
        mapped: whether styles are compared in the space that the pack maps to, or in the encoder's
            own channels.
        shift: the activation shift, over the root mean square of the style's channels.
    """

    style: Mapping[str, float]
    content: Mapping[str, float]
    tv: float
    range: float
    temporal: float
    normalization: Normalization
    style_loss: str
    mapped: bool
    shift: float

    @classmethod
    def from_settings(
        cls, settings: StyleSettings, encoder: Encoder, temporal_weight: float = 0.0
    ) -> Objective:
        """Take the terms that have a weight above 0.

        Raises:
            SettingsError: the encoder has no such tap, or there is no such style loss; the message
                lists those that there are.
        """
        for option in ("style_layers", "content_layers"):
            for tap in getattr(settings, option):
                if tap not in encoder.taps:
                    raise SettingsError(
                        f"{option}: encoder {encoder.name} has no layer {tap!r}; "
                        f"it has {', '.join(encoder.taps)}"
                    )
        if settings.style_loss not in STYLE_LOSSES:
            raise SettingsError(
                f"style_loss must be one of {', '.join(STYLE_LOSSES)}, not {settings.style_loss!r}"
            )

        def weighted(layers: Mapping[str, float], weight: float) -> dict[str, float]:
            return {t: weight * layers[t] for t in encoder.taps if weight * layers.get(t, 0.0) > 0}

        return cls(
            style=weighted(settings.style_layers, settings.style_weight),
            content=weighted(settings.content_layers, settings.content_weight),
            tv=settings.tv_weight,
            range=settings.range_weight,
            temporal=temporal_weight,
            normalization=settings.normalization,
            style_loss=settings.style_loss,
            mapped=settings.style_space == "mapped",
            shift=settings.shift,
        )

    @property
    def taps(self) -> tuple[str, ...]:
        """Every tap that a term needs, once."""
        return tuple(dict.fromkeys((*map(tap_of, self.style), *self.content)))

    def at(self, sites: Iterable[str]) -> Objective:
        """The same with its style terms at these sites, each with the weight of its tap."""
        return replace(self, style={each: self.style[tap_of(each)] for each in sites})

    @property
    def whole(self) -> Objective:
        """The same with its style terms at the taps."""
        return replace(self, style={tap_of(each): weight for each, weight in self.style.items()})

    def sites(self, tap: str) -> list[str]:
        """The style sites of a tap."""
        return [each for each in self.style if tap_of(each) == tap]

    @property
    def key(self) -> Hashable:
        """Equal for equal objectives."""
        values = vars(self).values()
        return tuple(tuple(v.items()) if isinstance(v, Mapping) else v for v in values)

    @property
    def distance(self) -> StyleLoss:
        """The style loss of every style tap."""
        return STYLE_LOSSES[self.style_loss]

    def names(self) -> list[str]:
        """Names of the terms, in the order of :class:`Goal`'s factors: style, content, picture."""
        at_taps = [f"{role}/{place}" for role, place in self.terms]
        return [*at_taps, "tv", "range", *(["temporal"] if self.temporal > 0 else [])]

    @property
    def terms(self) -> list[tuple[str, str]]:
        """Role, and site or tap, of each term at the taps, in the order of their factors."""
        return [("style", t) for t in self.style] + [("content", t) for t in self.content]


@dataclass(frozen=True)
class Targets:
    """What pictures have at the taps, or shall have: for N pictures, or one for all of them.

    Attributes:
        style: moments at each style site, (1 or N, C+1, C+1).
        content: features of each content tap on the canvas, (1 or N, C, H/s, W/s).
        variation: TV of the styles.
    """

    style: Mapping[str, Float32]
    content: Mapping[str, Float32]
    variation: float = 1.0


@dataclass(frozen=True)
class Goal:
    """All that a Plan needs to evaluate the terms at the taps of N pictures.

    Attributes:
        weights: of the cells of each tap, and of each site in a region.
        constants: of the style loss at each style site, (1 or N, …) each.
        content: F_c of each content tap, (1 or N, C, H/s, W/s).
        factors: of each unweighted term, (N, K), style terms before content terms.
        normalizers: s of each term, 1/(C·Σm), (N, K).
        tv: weight of the total variation.
    """

    weights: Weights
    constants: Mapping[str, Constants]
    content: Mapping[str, Float32]
    factors: Float64
    normalizers: Float64
    tv: float

    @property
    def pulls(self) -> Float64:
        """Factors, (N, K), of the derivatives by moments and of F − F_c on the way back."""
        return 2 * self.factors * self.normalizers


@one_blas_thread()
def make_goal(
    objective: Objective, encoder: Encoder, targets: Targets, weights: Weights, count: int
) -> Goal:
    """Derive the goal of ``count`` pictures from their targets."""
    constants: dict[str, Constants] = {}
    factors, normalizers = [], []
    for each, weight in objective.style.items():
        tap, T = tap_of(each), targets.style[each].astype(np.float64)
        identity = np.eye(T.shape[1] - 1, T.shape[1])
        H = encoder.style_map(tap) if objective.mapped else identity
        constants[each] = objective.distance.constants(T, style_space(H, T, objective.shift))
        power, _ = objective.distance.evaluate(np.zeros_like(T), constants[each])
        share = moments.share(weights[each], weights[tap])
        factors.append(weight * _unit(objective.normalization, power) * share)
        normalizers.append(moments.normalizer(encoder.taps[tap].channels, weights[each]))
    for tap, weight in objective.content.items():
        normalizers.append(moments.normalizer(encoder.taps[tap].channels, weights[tap]))
        power = content_term(targets.content[tap], 0.0, weights[tap], normalizers[-1])
        factors.append(weight * _unit(objective.normalization, power))
    relative = objective.normalization == "relative"
    return Goal(
        tv=objective.tv / (max(targets.variation, CORNER) if relative else 1.0),
        weights=weights,
        constants=constants,
        content=targets.content,
        factors=np.stack([np.broadcast_to(f, count) for f in factors], axis=1),
        normalizers=np.stack([np.broadcast_to(s, count) for s in normalizers], axis=1),
    )


def content_term(
    features: Float32, content: Float32 | float, weights: Float32, normalizers: Float64
) -> Float64:
    """Σ m (F − F_c)² · s of each picture, (N,), in float64.

    Channel by channel: in float64 all of them may take more memory than the picture's optimiser.
    """
    others = np.broadcast_to(content, features.shape)
    term: Float64 = np.zeros(1)
    for channel in range(features.shape[1]):
        difference = features[:, channel].astype(np.float64) - others[:, channel]
        term = term + (np.square(difference) * weights).sum(axis=(1, 2))
    return term * normalizers


def at_tap(
    objective: Objective, goal: Goal, index: int, features: Float32
) -> tuple[Float64, Float64]:
    """The reference of a term at its tap, in float64.

    Args:
        objective: names the terms.
        goal: of N pictures.
        index: of the term.
        features: of its tap, (N, C, H/s, W/s).

    Returns:
        The unweighted term, (N,), and the gradient of the weighted one at the features.
    """
    role, place = objective.terms[index]
    weights, normalizers, pulls = (
        goal.weights[place],
        goal.normalizers[:, index],
        goal.pulls[:, index],
    )
    if role == "content":
        difference = (features.astype(np.float64) - goal.content[place]) * weights[:, None]
        term = content_term(features, goal.content[place], weights, normalizers)
        return term, pulls[:, None, None, None] * difference
    M = moments.moments(features, weights, normalizers)
    term, D = objective.distance.evaluate(M, goal.constants[place])
    return term, moments.pull_back(features, weights, pulls[:, None, None] * D[:, :-1])


def _unit(normalization: Normalization, power: Float64) -> Float64:
    if normalization == "relative":
        # A target of zeros (a black style under a bias-free tap) has nothing to be relative to.
        return 1.0 / np.where(power > 0, power, 1.0)
    return np.full_like(power, 1.0 if normalization == "gram" else 0.25)


@one_blas_thread()
def exact_terms(objective: Objective, found: Targets, goal: Goal) -> Float64:
    """The weighted terms at the taps, (N, K), in float64 from what was measured there.

    By another route than a Plan's, so that a loss found in bfloat16 is reported in float32.
    """
    columns = [
        objective.distance.evaluate(found.style[each].astype(np.float64), goal.constants[each])[0]
        for each in objective.style
    ]
    for tap, normalizers in zip(objective.content, goal.normalizers.T[len(columns) :], strict=True):
        columns.append(
            content_term(found.content[tap], goal.content[tap], goal.weights[tap], normalizers)
        )
    return np.stack(columns, axis=1) * goal.factors
