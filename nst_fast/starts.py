"""What pictures start from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nst_fast.config import StyleSettings
from nst_fast.images import Picture


def initial(
    settings: StyleSettings, contents: Sequence[Picture], given: Picture | None
) -> list[Picture] | None:
    """Where each of some contents of one size starts; None for a transfer.

    ``given`` is what all of them start from, whatever the settings say.
    """
    if given is not None:
        return [given] * len(contents)
    if settings.init == "transfer":
        return None
    if settings.init == "content":
        return list(contents)
    rng = np.random.default_rng(settings.seed)
    noise = rng.standard_normal(contents[0].pixels.shape, dtype=np.float32)
    start = Picture(np.clip(np.float32(0.5) + np.float32(0.15) * noise, 0, 1))
    return [start] * len(contents)
