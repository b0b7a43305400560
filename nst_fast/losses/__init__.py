"""The objective: style losses on moments, content terms, and the terms of the picture itself."""

from nst_fast.losses.head import loss_graph
from nst_fast.losses.objective import (
    CORNER,
    Goal,
    Objective,
    Targets,
    Weights,
    at_tap,
    content_term,
    exact_terms,
    make_goal,
    region_of,
    site,
    tap_of,
)
from nst_fast.losses.picture import Anchor, PictureTerms, variation
from nst_fast.losses.registry import STYLE_LOSSES
from nst_fast.losses.style_loss import Constants, StyleLoss

__all__ = [
    "CORNER",
    "STYLE_LOSSES",
    "Anchor",
    "Constants",
    "Goal",
    "Objective",
    "PictureTerms",
    "StyleLoss",
    "Targets",
    "Weights",
    "at_tap",
    "content_term",
    "exact_terms",
    "loss_graph",
    "make_goal",
    "region_of",
    "site",
    "tap_of",
    "variation",
]
