"""Squared Wasserstein-2 distance between Gaussians of the style's and the picture's features.

With mean μ and covariance Σ of h = H f̃, over its D channels, and Σ' = Σ + εI,

    term = (‖μ − μ_t‖² + tr(Σ' + Σ'_t − 2 (P Σ' P)^(1/2)))/D,   P = Σ'_t^(1/2)

(the squared Bures–Wasserstein distance; Dowson and Landau 1982, equation 1, and for style transfer
Kolkin et al. 2019). ε keeps the root differentiable where features span fewer dimensions than there
are channels. The distance does not change with a shift of h, and the image of H has at most C
dimensions, so that H is replaced by a C×C factor B of HᵀH over its first C columns.

    ∂term/∂Σ = (I − P (P Σ' P)^(−1/2) P)/D

On the host the roots come from eigenvalues; in a graph from the coupled iteration of Newton and
Schulz (Higham 2008, "Functions of Matrices", equation 6.35) in float64: condition numbers are
squares here, beyond float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from nst_fast.graph.graph import Graph
from nst_fast.host import Float64
from nst_fast.losses.style_loss import Constants

RIDGE = 0.01  # ε over the mean eigenvalue of the style's covariance, at least
RESOLVED = 1e-6  # of the mean second moment: less is not seen in moments of float32
ITERATIONS = 30  # of Newton and Schulz; each brings the smallest eigenvalue up by 9/4


class Wasserstein:
    """``StyleLoss``: squared Wasserstein-2 distance of Gaussians.

    Its constants hold 1/√D: ``basis`` B with BᵀB = HᵀH over its first C columns, ``root`` P,
    ``mean`` B v_t with v_t the mean in T, ``ridge`` ε and ``trace`` tr Σ'_t.
    """

    exact = True

    def shapes(self, channels: int) -> Mapping[str, tuple[int, int]]:
        """See ``StyleLoss.shapes``."""
        square, one = (channels, channels), (1, 1)
        return {
            "basis": square,
            "root": square,
            "mean": (channels, 1),
            "ridge": one,
            "trace": one,
        }

    def constants(self, T: Float64, H: Float64) -> Constants:
        """See ``StyleLoss.constants``."""
        C = T.shape[1] - 1
        basis = np.stack([_factor(h[:, :C]) for h in H])
        mean = basis @ T[:, :C, C:]
        covariance = _covariance(T, basis, mean)
        spread = np.trace(covariance, axis1=1, axis2=2) / C
        power = np.trace(basis @ T[:, :C, :C] @ basis.transpose(0, 2, 1), axis1=1, axis2=2) / C
        # A style of one colour has no covariance but what float32 left of a difference.
        ridge = np.maximum(RIDGE * spread, RESOLVED * power)
        ridge = np.where(ridge > 0, ridge, RIDGE)[:, None, None]
        covariance = covariance + ridge * np.eye(C)
        trace = np.trace(covariance, axis1=1, axis2=2)[:, None, None]
        root = symmetric_power(covariance, 0.5)
        return {"basis": basis, "root": root, "mean": mean, "ridge": ridge, "trace": trace}

    def evaluate(self, M: Float64, constants: Constants) -> tuple[Float64, Float64]:
        """See ``StyleLoss.evaluate``."""
        C = M.shape[1] - 1
        B, P = constants["basis"], constants["root"]
        transposed = B.transpose(0, 2, 1)
        mean = B @ M[:, :C, C:]
        covariance = _covariance(M, B, mean) + constants["ridge"] * np.eye(C)
        S = P @ covariance @ P
        away = mean - constants["mean"]
        term = C * np.square(away).sum(axis=(1, 2)) + constants["trace"][:, 0, 0]
        term = term + np.trace(covariance - 2 * symmetric_power(S, 0.5), axis1=1, axis2=2)
        E = np.eye(C) - P @ symmetric_power(S, -0.5) @ P
        D = np.zeros_like(M)
        D[:, :C, :C] = transposed @ E @ B
        D[:, :C, C:] = C * transposed @ (away - E @ mean)
        D[:, C:, :C] = D[:, :C, C:].transpose(0, 2, 1)
        return term, D

    def add_to(
        self, graph: Graph, M: str, constants: Mapping[str, str], channels: int
    ) -> tuple[str, str]:
        """See ``StyleLoss.add_to``."""
        build = _Builder(graph, channels)
        B, P, target, ridge, trace = (
            build.cast(constants[name], TensorProto.DOUBLE) for name in self.shapes(channels)
        )
        M = build.cast(M, TensorProto.DOUBLE)
        gram = build.block(M, (0, 0), (channels, channels))
        transposed = build.transposed(B)
        mean = build.product(B, build.block(M, (0, channels), (channels, channels + 1)))
        outer = build.times(build.product(mean, build.transposed(mean)), channels)
        whole = build.product(B, gram, transposed)
        unit = graph.constant(np.eye(channels))
        covariance = build.sum(build.minus(whole, outer), graph.add("Mul", [ridge, unit]))
        root, inverse = build.roots(build.product(P, covariance, P))
        away = build.minus(mean, target)
        square = build.times(build.total(graph.add("Mul", [away, away])), channels)
        spread = build.minus(covariance, build.times(root, 2.0))
        term = build.sum(square, build.sum(trace, build.total(graph.add("Mul", [spread, unit]))))
        E = build.minus(unit, build.product(P, inverse, P))
        column = build.minus(away, build.product(E, mean))
        column = build.times(build.product(transposed, column), channels)
        corner = build.times(trace, 0.0)
        top = graph.add("Concat", [build.product(transposed, E, B), column], axis=2)
        bottom = graph.add("Concat", [build.transposed(column), corner], axis=2)
        D = graph.add("Concat", [top, bottom], axis=1)
        single = graph.add("Squeeze", [build.cast(term, TensorProto.FLOAT), build.axes(2)])
        return single, build.cast(D, TensorProto.FLOAT)


def _factor(H: Float64) -> Float64:
    """B (C, C) with BᵀB = HᵀH, for H (D, C) of any D."""
    values, vectors = np.linalg.eigh(H.T @ H)
    factor: Float64 = np.sqrt(values.clip(0))[:, None] * vectors.T
    return factor


def _covariance(M: Float64, basis: Float64, mean: Float64) -> Float64:
    """Σ/D of B f: the Gram matrix less the product of the means, as M scales them."""
    C = mean.shape[1]
    gram = basis @ M[:, :C, :C] @ basis.transpose(0, 2, 1)
    covariance: Float64 = gram - C * mean @ mean.transpose(0, 2, 1)
    return covariance


def symmetric_power(S: Float64, exponent: float) -> Float64:
    """A power of symmetric positive matrices (N, C, C)."""
    values, vectors = np.linalg.eigh(S)
    least = np.finfo(np.float64).eps * values[:, -1:]
    powers = np.maximum(values, least)[:, None, :] ** exponent
    power: Float64 = (vectors * powers) @ vectors.transpose(0, 2, 1)
    return power


class _Builder:
    """Operators on float64 matrices (N, rows, columns)."""

    def __init__(self, graph: Graph, channels: int) -> None:
        self._graph, self._channels = graph, channels

    def cast(self, x: str, kind: int) -> str:
        return self._graph.add("Cast", [x], to=kind)

    def axes(self, *numbers: int) -> str:
        return self._graph.shape_constant(*numbers)

    def block(self, x: str, first: tuple[int, int], last: tuple[int, int]) -> str:
        bounds = [self.axes(*first), self.axes(*last), self.axes(1, 2)]
        return self._graph.add("Slice", [x, *bounds])

    def transposed(self, x: str) -> str:
        return self._graph.add("Transpose", [x], perm=[0, 2, 1])

    def product(self, x: str, *others: str) -> str:
        for other in others:
            x = self._graph.add("MatMul", [x, other])
        return x

    def sum(self, x: str, y: str) -> str:
        return self._graph.add("Add", [x, y])

    def minus(self, x: str, y: str) -> str:
        return self._graph.add("Sub", [x, y])

    def times(self, x: str, factor: float) -> str:
        return self._graph.add("Mul", [x, self._graph.constant(np.array(factor, np.float64))])

    def total(self, x: str) -> str:
        return self._graph.add("ReduceSum", [x, self.axes(1, 2)], keepdims=1)

    def roots(self, S: str) -> tuple[str, str]:
        """S^(1/2) and S^(−1/2), by Y ← Y(3I − ZY)/2, Z ← (3I − ZY)Z/2 from S/‖S‖ and I."""
        graph = self._graph
        norm = graph.add("Sqrt", [self.total(graph.add("Mul", [S, S]))])
        Y = graph.add("Div", [S, norm])
        unit = graph.constant(np.eye(self._channels)[None])
        thrice = graph.constant(3 * np.eye(self._channels)[None])
        Z = unit
        for _ in range(ITERATIONS):
            step = self.times(self.minus(thrice, self.product(Z, Y)), 0.5)
            Y, Z = self.product(Y, step), self.product(step, Z)
        length = graph.add("Sqrt", [norm])
        return graph.add("Mul", [Y, length]), graph.add("Div", [Z, length])
