"""The style losses by name."""

from __future__ import annotations

from nst_fast.losses.gram import Gram
from nst_fast.losses.style_loss import StyleLoss
from nst_fast.losses.wasserstein import Wasserstein
from nst_fast.losses.whitened import Whitened

STYLE_LOSSES: dict[str, StyleLoss] = {
    "gram": Gram(),
    "whitened": Whitened(),
    "wasserstein": Wasserstein(),
}
