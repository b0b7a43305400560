"""The terms of the picture itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nst_fast.host import Float32, Float64
from nst_fast.kernels import Kernels
from nst_fast.losses.objective import CORNER, Goal, Objective


@dataclass(frozen=True)
class Anchor:
    """What N pictures shall stay close to.

    Attributes:
        pixels: (N, 3, H, W), finite where they have no weight, too.
        weights: of the pixels, (N, H, W) in [0, 1].
    """

    pixels: Float32
    weights: Float32


class PictureTerms:
    """Total variation, range and temporal term, as means over the values of a picture.

    Attributes:
        anchor: of the temporal term, which is 0 where that is None.
    """

    def __init__(
        self,
        objective: Objective,
        goal: Goal,
        shape: tuple[int, ...],
        kernels: Kernels,
        anchor: Anchor | None = None,
    ) -> None:
        """Take the terms that have a weight; ``shape`` is that of the images, (N, 3, H, W)."""
        n, per_image = shape[0], int(np.prod(shape[1:]))
        self.anchor = anchor
        self._kernels = kernels
        self._losses = np.zeros(n)
        self._terms = [
            (column, np.full(n, weight / per_image), kernel)
            for column, (weight, kernel) in enumerate(
                [
                    (goal.tv, self._total_variation),
                    (objective.range, kernels.range_penalty),
                    (objective.temporal, self._temporal_loss),
                ]
            )
            if weight > 0
        ]

    def add(self, image: Float32, gradient: Float32, terms: Float64) -> None:
        """Add to the gradient (N, 3, H, W), and write the weighted terms of ``objective.names()``.

        Args:
            image: (N, 3, H, W).
            gradient: (N, 3, H, W), added to.
            terms: (N, 2), with a temporal term (N, 3); overwritten where a term has a weight.
        """
        for column, weights, kernel in self._terms:
            kernel(image, weights, gradient, self._losses)
            terms[:, column] = self._losses

    def _total_variation(
        self, image: Float32, weights: Float64, gradient: Float32, losses: Float64
    ) -> None:
        self._kernels.total_variation(image, CORNER, weights, gradient, losses)

    def _temporal_loss(
        self, image: Float32, weights: Float64, gradient: Float32, losses: Float64
    ) -> None:
        if self.anchor is None:
            losses[:] = 0.0
            return
        self._kernels.temporal_loss(
            image,
            weights,
            gradient,
            losses,
            anchor=self.anchor.pixels,
            pixel_weights=self.anchor.weights,
        )


def variation(pixels: Float32, alpha: Float32 | None) -> float:
    """TV of a picture, (H, W, 3), as far as its values show: those of ``alpha``, (H, W)."""
    lengths = np.zeros(pixels.shape[:2], np.float32)
    for channel in range(3):  # all at once take three times the memory
        plane = pixels[..., channel]
        right, below = (np.diff(plane, axis=axis, append=plane.take([-1], axis)) for axis in (1, 0))
        lengths += np.sqrt(CORNER**2 + np.square(right) + np.square(below))
    return float(np.average(lengths / 3 - CORNER, weights=alpha))
