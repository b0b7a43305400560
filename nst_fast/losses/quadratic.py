"""Losses that are quadratic in the residual R = M − T: ‖S R Sᵀ‖²_F for any S with K = SᵀS.

    term = tr(K R K R),   D = 2 K R K

K, (C+1)×(C+1), says in which space, and by which metric, Gram matrices are compared. Only matrices
of that size meet it: comparing in a space of more channels costs nothing a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping

from nst_fast.graph.graph import Graph
from nst_fast.host import Float64
from nst_fast.losses.style_loss import Constants


class Quadratic:
    """``StyleLoss`` up to the choice of K."""

    exact = False

    def shapes(self, channels: int) -> Mapping[str, tuple[int, int]]:
        """T and K; see ``StyleLoss.shapes``."""
        side = channels + 1
        return {"T": (side, side), "K": (side, side)}

    def evaluate(self, M: Float64, constants: Constants) -> tuple[Float64, Float64]:
        """See ``StyleLoss.evaluate``."""
        R, K = M - constants["T"], constants["K"]
        KRK = K @ R @ K
        return (R * KRK).sum(axis=(1, 2)), 2 * KRK

    def add_to(
        self, graph: Graph, M: str, constants: Mapping[str, str], channels: int
    ) -> tuple[str, str]:
        """See ``StyleLoss.add_to``."""
        R, K = graph.add("Sub", [M, constants["T"]]), constants["K"]
        KRK = graph.add("MatMul", [graph.add("MatMul", [K, R]), K])
        product = graph.add("Mul", [R, KRK])
        total = graph.add("ReduceSum", [product, graph.shape_constant(1, 2)], keepdims=0)
        term = graph.add("Unsqueeze", [total, graph.shape_constant(1)])
        return term, graph.add("Mul", [KRK, graph.float_constant(2.0)])
