"""What a style loss is: a function of small matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nst_fast.graph.graph import Graph
from nst_fast.host import Float64

Constants = Mapping[str, Float64]


class StyleLoss(Protocol):
    """A distance between the moments M of a picture and those of a style, T, at a tap.

    M and T are (N, C+1, C+1), as ``nst_fast.losses.moments`` defines them. Styles are compared in
    the space of h = H f̃ (``nst_fast.losses.space``), where H M Hᵀ is the Gram matrix of h. Adding
    a loss is adding one of these to ``nst_fast.losses.STYLE_LOSSES``.

    Attributes:
        exact: its graph computes in float64; a provider that has none takes the split plan, which
            calls ``evaluate``.
    """

    exact: bool

    def shapes(self, channels: int) -> Mapping[str, tuple[int, int]]:
        """Names of its constants, and the shape of each for one picture."""

    def constants(self, T: Float64, H: Float64) -> Constants:
        """All that it needs besides M.

        Args:
            T: moments of the style, (N, C+1, C+1).
            H: to the space of styles, (N, D, C+1).

        Returns:
            (N, …) each, with the names and shapes of :meth:`shapes`.
        """

    def evaluate(self, M: Float64, constants: Constants) -> tuple[Float64, Float64]:
        """The term, (N,), and D = ∂term/∂M, (N, C+1, C+1) and symmetric; the reference.

        At M = 0, a picture that has no features at all, the term is what "relative" divides by.
        """

    def add_to(
        self, graph: Graph, M: str, constants: Mapping[str, str], channels: int
    ) -> tuple[str, str]:
        """The same as operators of a graph: names of the term, (N, 1), and of D, both float32.

        Args:
            graph: to add to.
            M: name of the moments, float32.
            constants: names of the inputs that hold the constants, float32: an exact loss casts.
            channels: C.
        """
