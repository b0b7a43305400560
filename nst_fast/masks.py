"""Masks: which style goes where, and where the photograph stays.

With the grey M_k of the mask of style k, its share w_k of the blend, and the grey K of the mask of
the content, all from 0 (black) to 1 (white), the style's share of a pixel is

    r_k = (1 − K) · min(1, Σ_j M_j) · w_k M_k / Σ_j w_j M_j

Where masks overlap, styles share a pixel by grey and blend; where they sum to less than 1, the rest
of it has no style. Without masks of the styles there is one region for all of them, r = 1 − K, with
their blend for its target. Where the photograph stays it is also laid over the result, as far as K
says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike

import numpy as np

from nst_fast import images
from nst_fast.canvas import Canvas
from nst_fast.colour import luma
from nst_fast.config import StyleSettings
from nst_fast.errors import SettingsError
from nst_fast.host import Float32
from nst_fast.images import ImageLike, Origin, Picture
from nst_fast.losses import Objective, Weights, site
from nst_fast.styles import blend_shares, ordinal

LEAST_CELLS = 4.0  # of a tap: fewer have no statistics to speak of
LEVEL = 1 / 255
MOST_STRETCH = 0.03  # of a mask, that its sides may be rounded to whole pixels


@dataclass(frozen=True, eq=False)
class Mask:
    """One mask: its grey, (H, W) float32 in [0, 1], what messages call it, and its file."""

    grey: Float32
    label: str
    origin: Origin | None

    def at(self, width: int, height: int) -> Float32:
        """Resized, (``height``, ``width``); without ripples at its edges."""
        return images.resize_plane(self.grey, width, height)


@dataclass(frozen=True, eq=False)
class Placed:
    """Masks at the size of a picture.

    Attributes:
        shares: of each region at each pixel, r, (R, H, W) in [0, 1].
        kept: how much of the photograph stays at each pixel, K, (H, W); None: nothing of it.
    """

    shares: Float32
    kept: Float32 | None


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of a run.

    Attributes:
        styles: one for each style, in their order; none: all styles are everywhere.
        content: where the photograph stays; None: nowhere.
        blend: the share of each style.
        regions: whether those of the styles are the colours of one picture.
    """

    styles: tuple[Mask, ...]
    content: Mask | None
    blend: tuple[float, ...]
    regions: bool

    @property
    def origins(self) -> dict[str, list[Origin | None]]:
        """Their files, by the names that they have in ``Stylizer.start``."""
        files = [mask.origin for mask in self.styles]
        found = {"style_regions": files[:1]} if self.regions else {"style_mask": files}
        found["content_mask"] = [] if self.content is None else [self.content.origin]
        return {name: each for name, each in found.items() if each}

    @cached_property
    def digest(self) -> str:
        """Hash of all that they say; taken once, so leave the arrays as they are."""
        state = hashlib.blake2b(repr((self.blend, len(self.styles))).encode(), digest_size=16)
        for mask in (*self.styles, *filter(None, [self.content])):
            state.update(repr(mask.grey.shape).encode())
            state.update(np.ascontiguousarray(mask.grey).data)
        return state.hexdigest()

    def check(self, size: tuple[int, int]) -> None:
        """Refuse masks for pictures of other proportions than this width and height.

        Raises:
            SettingsError: names the mask and both sizes.
        """
        width, height = size
        for mask in (*self.styles, *filter(None, [self.content])):
            own_height, own_width = mask.grey.shape
            stretch = own_width * height / (own_height * width)
            if max(stretch, 1 / stretch) > 1 + MOST_STRETCH:
                raise SettingsError(
                    f"{mask.label} is {own_width}×{own_height} pixels, of other proportions than "
                    f"the content's {width}×{height}; give a mask of the same shape, at any size"
                )

    def at(self, width: int, height: int) -> Placed:
        """The same for a picture of this size."""
        kept = None if self.content is None else self.content.at(width, height)
        free = np.ones((height, width), np.float32) if kept is None else 1 - kept
        if not self.styles:
            return Placed(free[None], kept)
        blended = list(zip(self.styles, self.blend, strict=True))
        greys = np.stack([(share > 0) * mask.at(width, height) for mask, share in blended])
        shares = greys * np.array(self.blend, np.float32)[:, None, None]
        total = shares.sum(axis=0)
        wanted = free * np.minimum(greys.sum(axis=0), 1)
        return Placed(shares * (wanted / np.where(total > 0, total, 1)), kept)

    def seen(self, content: Picture) -> list[Picture]:
        """A content as each style meets it: what its region does not show is transparent."""
        if not self.styles:
            return [content] * len(self.blend)
        shares = self.at(*content.size).shares
        alpha = np.float32(1) if content.alpha is None else content.alpha
        return [Picture(content.pixels, alpha * share) for share in shares]


def load(
    settings: StyleSettings,
    styles: int,
    *,
    style_mask: Sequence[ImageLike] = (),
    style_regions: ImageLike | None = None,
    content_mask: ImageLike | None = None,
) -> Masks | None:
    """The masks that are given, or else those that the settings name; None where they say nothing.

    Raises:
        ImageError: one cannot be used.
        SettingsError: they do not fit the number of ``styles`` or each other, or nothing is left.
    """
    greys = list(style_mask or settings.style_mask)
    regions = settings.style_regions if style_regions is None else style_regions
    kept = settings.content_mask if content_mask is None else content_mask
    found = _style_masks(greys, regions, styles)
    content = None if kept is None else _content_mask(kept)
    if not found and content is None:
        return None
    blend = tuple(blend_shares(settings.style_blend, styles))
    return Masks(tuple(found), content, blend, regions is not None)


def _style_masks(greys: Sequence[ImageLike], regions: ImageLike | None, styles: int) -> list[Mask]:
    """One for each style; none where all of them are everywhere."""
    if greys and regions is not None:
        raise SettingsError("style_regions: give it or style_mask, not both")
    if greys and len(greys) != styles:
        raise SettingsError(
            f"style_mask: {len(greys)} masks for {styles} style pictures; "
            "give one for each, in their order"
        )
    found = [
        _grey(source, f"the mask of the {ordinal(place)} style")
        for place, source in enumerate(greys, 1)
    ]
    if regions is not None:
        found = _regions(regions, styles)
    for mask in found:
        if mask.grey.max() < LEVEL:
            raise SettingsError(
                f"style_mask: {mask.label} is black, its style would be nowhere; "
                "leave both out, or paint white where it is to be"
            )
    return [] if all(mask.grey.min() > 1 - LEVEL for mask in found) else found


def _content_mask(source: ImageLike) -> Mask | None:
    """Where the photograph stays; None where that is nowhere."""
    content = _grey(source, "the content mask")
    if content.grey.min() > 1 - LEVEL:
        raise SettingsError(
            f"content_mask: {content.label} is white, nothing would be painted; "
            "paint black where the style is to be"
        )
    return None if content.grey.max() < LEVEL else content


def _grey(source: ImageLike, role: str) -> Mask:
    """Of a mask that may be coloured: its luma; what is transparent is black."""
    picture, label = _loaded(source, role)
    grey = luma(picture.pixels).astype(np.float32)
    grey = grey if picture.alpha is None else grey * picture.alpha
    return Mask(grey, label, picture.origin)


def _regions(source: ImageLike, styles: int) -> list[Mask]:
    """A mask for each colour of a picture, the darkest first; where it is transparent, for none."""
    picture, label = _loaded(source, "the picture of regions")
    shows = np.ones(picture.pixels.shape[:2], bool) if picture.alpha is None else picture.alpha > 0
    colours = np.rint(picture.pixels * 255).astype(np.uint8)
    packed = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    values = np.unique(packed[shows])
    if len(values) != styles:
        raise SettingsError(
            f"style_regions: {label} has {len(values)} colours for {styles} style pictures; "
            "give one colour for each, without soft edges, in a format that keeps it, such as PNG"
        )
    rgb = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1) / 255
    ordered = values[np.lexsort((values, luma(rgb.astype(np.float32))))]
    opacity = shows if picture.alpha is None else picture.alpha
    return [
        Mask(((packed == value) * opacity).astype(np.float32), label, picture.origin)
        for value in ordered
    ]


def _loaded(source: ImageLike, role: str) -> tuple[Picture, str]:
    is_path = isinstance(source, str | PathLike)
    picture = images.load(source, name=None if is_path else role)
    return picture, str(source) if is_path else role


def in_regions(
    objective: Objective,
    strides: Mapping[str, int],
    canvas: Canvas,
    shares: Float32,
    alphas: Sequence[Float32 | None],
) -> tuple[Objective, Weights, dict[int, list[str]]]:
    """An objective in regions, and the weights of the cells there.

    Args:
        objective: of the whole picture.
        strides: of the taps.
        canvas: of the pictures.
        shares: of each region, (R, H, W).
        alphas: of N pictures.

    Returns:
        The objective; weights of each tap and site, (N, H/s, W/s); and by region, from 1, the taps
        that it is left out of: those where it has less than ``LEAST_CELLS`` cells, and not all.
    """
    weights = cell_weights(objective.taps, strides, canvas, alphas)
    small: dict[int, list[str]] = {}
    for tap in objective.style:
        least = min(LEAST_CELLS, _cells(weights[tap]))
        for region, share in enumerate(shares, 1):
            shown = [share if alpha is None else alpha * share for alpha in alphas]
            (cells,) = cell_weights([tap], strides, canvas, shown).values()
            if _cells(cells) < least:
                small.setdefault(region, []).append(tap)
            else:
                weights[site(tap, region)] = cells
    return objective.at(place for place in weights if place not in objective.taps), weights, small


def cell_weights(
    taps: Sequence[str],
    strides: Mapping[str, int],
    canvas: Canvas,
    opacities: Sequence[Float32 | None],
) -> dict[str, Float32]:
    """Of the cells of each tap, (N, H/s, W/s), from the opacity of N pictures."""
    return {
        tap: np.stack([canvas.weights(strides[tap], opacity) for opacity in opacities])
        for tap in taps
    }


def _cells(weights: Float32) -> float:
    """How many cells have a weight, in whole ones, in the picture that has most."""
    return float(weights.sum(axis=(1, 2), dtype=np.float64).max())
