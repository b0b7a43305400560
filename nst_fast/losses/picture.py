"""The terms of the picture itself."""

from __future__ import annotations

import numpy as np

from nst_fast.host import Float32, Float64
from nst_fast.kernels import Kernels
from nst_fast.losses.objective import Objective


class PictureTerms:
    """Total variation and range, as means over the values of a picture."""

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
