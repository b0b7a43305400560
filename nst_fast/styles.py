"""Several styles: how much of each, how large each is, and how messages call it."""

from __future__ import annotations

from collections.abc import Sequence

from nst_fast.errors import SettingsError


def blend_shares(blend: Sequence[float], count: int) -> list[float]:
    """Shares of ``count`` style pictures, summing to 1; equal where ``blend`` is empty.

    Raises:
        SettingsError: there are not as many shares as pictures.
    """
    weights = list(blend) or [1.0] * count
    if len(weights) != count:
        raise SettingsError(f"style_blend has {len(weights)} shares for {count} style pictures")
    return [weight / sum(weights) for weight in weights]


def style_scales(scale: float | Sequence[float], count: int) -> list[float]:
    """The scale of each of ``count`` style pictures: one number is for all of them.

    Raises:
        SettingsError: there are several, but not as many as pictures.
    """
    if isinstance(scale, float):
        return [scale] * count
    if len(scale) != count:
        raise SettingsError(
            f"style_scale has {len(scale)} values for {count} style pictures; "
            "give one for each, or one for all"
        )
    return list(scale)


def ordinal(number: int) -> str:
    """1 as "1st"."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number // 10 % 10 != 1 else 0, "th")
    return f"{number}{ending}"
