"""Problems for Plans, solved once in float64 by torch autograd on the same weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch_reference

from nst_fast.config import StyleSettings
from nst_fast.losses import Objective, Targets

STYLE = {"relu1_1": 0.2, "relu2_1": 0.4, "relu3_1": 0.2, "relu4_2": 0.3, "relu5_1": 0.1}
CONTENT = {"relu2_2": 0.5, "relu4_2": 1.0}
SHAPE = (2, 48, 64)


def make_objective(encoder, **changes) -> Objective:
    options = {"style_layers": STYLE, "content_layers": CONTENT, "content_weight": 0.3}
    options |= {"tv_weight": 0.7, "range_weight": 3.0} | changes
    return Objective.from_settings(StyleSettings(**options), encoder)


@dataclass(frozen=True)
class Problem:
    """Images with targets, and the weighted terms and gradient in float64."""

    objective: Objective
    image: np.ndarray
    targets: Targets
    terms: np.ndarray
    gradient: np.ndarray


def make_problem(network, objective, image, content, style) -> Problem:
    styles = torch_reference.style_targets(network, style, objective.style)
    contents = torch_reference.content_targets(network, content, objective.content)
    terms, gradient = torch_reference.evaluate(network, objective, image, styles, contents)
    return Problem(objective, image, Targets(styles, contents), terms, gradient)
