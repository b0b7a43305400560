"""Problems for Plans, solved once in float64 by torch autograd on the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch_reference
from torch_reference import mirrored, moments, tensor

from nst_fast.canvas import Canvas
from nst_fast.config import StyleSettings
from nst_fast.losses import Objective, Targets

STYLE = {"relu1_1": 0.2, "relu2_1": 0.4, "relu3_1": 0.2, "relu4_2": 0.3, "relu5_1": 0.1}
CONTENT = {"relu2_2": 0.5, "relu4_2": 1.0}
LOSSES = ("gram", "whitened", "wasserstein")
SHAPE = (2, 45, 61)  # what the pictures of ``problem`` have: N, H, W


def make_objective(encoder, **changes) -> Objective:
    options = {"style_layers": STYLE, "content_layers": CONTENT, "content_weight": 0.3}
    options |= {"style_loss": "gram", "style_space": "mapped", "shift": 1.0}
    options |= {"tv_weight": 0.7, "range_weight": 3.0} | changes
    return Objective.from_settings(StyleSettings(**options), encoder)


@dataclass(frozen=True)
class Problem:
    """Pictures with targets, and the weighted terms and gradient in float64."""

    objective: Objective
    canvas: Canvas
    image: np.ndarray
    targets: Targets
    weights: dict[str, np.ndarray]
    terms: np.ndarray
    gradient: np.ndarray


def around(encoder, objective, image, margin: int = 0) -> Canvas:
    """The canvas of pictures (N, 3, H, W)."""
    stride = max(encoder.taps[tap].stride for tap in objective.taps)
    return Canvas.around(*image.shape[2:], margin=margin, stride=stride)


def cell_weights(encoder, objective, canvas: Canvas, opacity=(None,)) -> dict[str, np.ndarray]:
    """Of the cells of each tap, (N, H/s, W/s), from the opacity of N pictures or None."""
    return {
        tap: np.stack([canvas.weights(encoder.taps[tap].stride, a) for a in opacity])
        for tap in objective.taps
    }


def make_targets(pack, objective, content, style, *, margin: int = 0, opacity=(None,)) -> Targets:
    """Targets of pictures (N, 3, H, W), computed in float64 and rounded to float32.

    ``opacity`` is of the styles.
    """
    canvas = around(pack.encoder, objective, style, margin)
    weights = cell_weights(pack.encoder, objective, canvas, opacity)
    features = pack.network(mirrored(tensor(style), canvas))
    kept = pack.network(mirrored(tensor(content), around(pack.encoder, objective, content, margin)))
    return Targets(
        {t: rounded(moments(features[t], tensor(weights[t]))) for t in objective.style},
        {t: rounded(kept[t]) for t in objective.content},
        variation=float(torch_reference.total_variation(tensor(style)).mean()),
    )


def rounded(value) -> np.ndarray:
    return value.numpy().astype(np.float32)


def make_problem(
    pack: Any, objective, image, content, style, *, margin: int = 0, opacity=(None,)
) -> Problem:
    """Solve one: pictures (N, 3, H, W), contents and styles of N or of 1.

    ``opacity`` is of the pictures.
    """
    canvas = around(pack.encoder, objective, image, margin)
    weights = cell_weights(pack.encoder, objective, canvas, opacity)
    targets = make_targets(pack, objective, content, style, margin=margin)
    terms, gradient = torch_reference.evaluate(
        pack.network, pack.encoder, objective, image, canvas, targets, weights
    )
    return Problem(objective, canvas, image, targets, weights, terms, gradient)


def clear_image(pack, objective, image, seed: int, margin: int = 0) -> np.ndarray:
    """The image, moved a little until its canvas is clear of every kink of the network."""
    canvas = around(pack.encoder, objective, image, margin)
    return pack.network.clear_image(image, seed, see=canvas.extend)
