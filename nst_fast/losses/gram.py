"""The style term of Gatys et al. 2016 (equations 4 and 5), in the space of styles.

    term = ‖H (M − T) Hᵀ‖²_F

which is ‖G − G_style‖² between the Gram matrices of h = H f̃. With H = [I 0] these are the encoder's
own; with −s in H's last column they are those of h − s, the activation shift of Novak and Nikulin
2016 ("Improving the Neural Algorithm of Artistic Style", section 3.2).
"""

from __future__ import annotations

from nst_fast.host import Float64
from nst_fast.losses.quadratic import Quadratic
from nst_fast.losses.style_loss import Constants


class Gram(Quadratic):
    """``StyleLoss``: squared distance of Gram matrices."""

    def constants(self, T: Float64, H: Float64) -> Constants:
        """K = HᵀH; see ``StyleLoss.constants``."""
        return {"T": T, "K": H.transpose(0, 2, 1) @ H}
