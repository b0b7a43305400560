"""Gram matrices compared relative to the style's own: every direction of the style counts alike.

    term = ‖W (H (M − T) Hᵀ) W‖²_F,   W = (H T Hᵀ + ε·mean eigenvalue·I)^(−1/2)

The metric of the whitening and colouring transform (Li et al. 2017, "Universal Style Transfer via
Feature Transforms"), as a loss: without ε it is ‖W G W − I‖², the distance of the whitened Gram
matrix from the identity. It asks for more content weight than the Gram loss does.
"""

from __future__ import annotations

import numpy as np

from nst_fast.host import Float64
from nst_fast.losses.quadratic import Quadratic
from nst_fast.losses.style_loss import Constants

RIDGE = 0.3  # ε


class Whitened(Quadratic):
    """``StyleLoss``: squared distance of whitened Gram matrices."""

    def constants(self, T: Float64, H: Float64) -> Constants:
        """K = Hᵀ (H T Hᵀ + ε·mean eigenvalue·I)⁻¹ H; see ``StyleLoss.constants``."""
        transposed = H.transpose(0, 2, 1)
        G = H @ T @ transposed
        mean = np.trace(G, axis1=1, axis2=2) / G.shape[1]
        # A black style has no directions.
        ridge = RIDGE * np.where(mean > 0, mean, 1.0)[:, None, None] * np.eye(G.shape[1])
        return {"T": T, "K": transposed @ np.linalg.solve(G + ridge, H)}
