"""Moments of a feature map, and the way back: all that a style loss sees of a tap.

For features f_p of P pixels (or cells) with C channels and weights m_p in [0, 1]

    M = s·Σ_p m_p f̃_p f̃_pᵀ,   f̃ = [f; 1],   s = 1/(C·Σm)

is the Gram matrix of Gatys et al. 2016 with the mean beside it: M[:C, :C] is F diag(m) Fᵀ/(C·Σm),
M[:C, C] the mean over C, M[C, C] = 1/C. Where a term of the loss depends on F through M alone, and
D = ∂term/∂M is symmetric, its gradient is

    ∂term/∂F = (A F + b 1ᵀ) diag(m),   [A b] = 2s·D[:C, :]

Both are here as numpy (the reference) and as operators of a graph; the kernels are in ``csrc/``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nst_fast.graph.graph import Graph
from nst_fast.host import Float32, Float64


def normalizer(channels: int, weights: Float32) -> Float64:
    """s of each picture, (N,): weights are (N, …); 0 where none is above 0."""
    total = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.float64)
    found: Float64 = np.where(total > 0, 1.0 / (channels * np.where(total > 0, total, 1.0)), 0.0)
    return found


def share(weights: Float32, whole: Float32) -> Float64:
    """Σ of ``weights`` over that of the ``whole``, of each picture, (N,); 1 where that is 0."""
    part, all_of_it = (
        w.reshape(len(w), -1).sum(axis=1, dtype=np.float64) for w in (weights, whole)
    )
    found: Float64 = np.where(all_of_it > 0, part / np.where(all_of_it > 0, all_of_it, 1.0), 1.0)
    return found


def moments(features: Float32, weights: Float32, normalizers: Float64) -> Float64:
    """M, (N, C+1, C+1) in float64.

    Args:
        features: (N, C, …).
        weights: m, (N or 1, …).
        normalizers: s, (N,).
    """
    F = _extended(features)
    m = weights.reshape(len(weights), 1, -1).astype(np.float64)
    return (F * m) @ F.transpose(0, 2, 1) * normalizers[:, None, None]


def pull_back(features: Float32, weights: Float32, derivative: Float64) -> Float64:
    """(A F + b 1ᵀ) diag(m), like ``features`` but in float64.

    Args:
        features: (N, C, …).
        weights: m, (N or 1, …).
        derivative: [A b], (N, C, C+1).
    """
    m = weights.reshape(len(weights), 1, -1).astype(np.float64)
    gradient: Float64 = (derivative @ _extended(features) * m).reshape(features.shape)
    return gradient


def _extended(features: Float32) -> Float64:
    """f̃ of each pixel, (N, C+1, P)."""
    matrix = features.reshape(*features.shape[:2], -1).astype(np.float64)
    return np.concatenate([matrix, np.ones_like(matrix[:, :1])], axis=1)


@dataclass(frozen=True)
class Layout:
    """How a provider wants its products.

    Attributes:
        channels_last: features as (P, C) instead of (C, P).
        split_pixels: P is cut so that each partial product sums about this many pixels; 0 leaves
            it whole.
        rectified: each product passes a ReLU. Sums of products of features, which are not
            negative, are left as they are, but OpenVINO in bfloat16 then writes them in float32;
            rounded, they would leave little of M − T.
    """

    channels_last: bool = False
    split_pixels: int = 0
    rectified: bool = False


class FeatureMatrix:
    """A feature map (N, C, H, W) in a graph: its moments, and the way back."""

    def __init__(
        self,
        graph: Graph,
        features: str,
        shape: tuple[int, ...],
        layout: Layout,
        weights: str | None,
    ) -> None:
        """View the features as the layout's matrix.

        Args:
            graph: to add operators to.
            features: float32, (N, C, H, W).
            shape: of them.
            layout: of the matrix.
            weights: m, (N, 1, H, W); None: all 1.
        """
        self._graph, self._shape, self._layout = graph, shape, layout
        self._weights = None
        if weights is not None:
            self._weights = self._view(weights, 1)
        self._matrix = self._view(features, shape[1])
        self._weighted = self._matrix
        if self._weights is not None:
            self._weighted = graph.add("Mul", [self._matrix, self._weights])

    def moments(self, normalizers: str) -> str:
        """M, (N, C+1, C+1); ``normalizers`` are s, (N, 1, 1)."""
        graph, channels = self._graph, self._shape[1]
        gram = self._product((self._weighted, channels), (self._matrix, channels))
        # A product, too: OpenVINO would sum, and keep the features for that, in float32.
        mean = self._product((self._matrix, channels), (self._ones(), 1))
        # OpenVINO 2026.4 turns a Transpose behind a sum over parts into nothing.
        row = graph.add("Reshape", [mean, graph.shape_constant(self._shape[0], 1, channels)])
        top = graph.add("Concat", [gram, mean], axis=2)
        bottom = graph.add("Concat", [row, self._count()], axis=2)
        whole = graph.add("Concat", [top, bottom], axis=1)
        return graph.add("Mul", [whole, normalizers])

    def pull_back(self, derivative: str) -> str:
        """(A F + b 1ᵀ) diag(m), (N, C, H, W); ``derivative`` is [A b], (N, C, C+1)."""
        graph, last = self._graph, self._layout.channels_last
        A = self._columns(derivative, 0, self._shape[1])
        b = self._columns(derivative, self._shape[1], self._shape[1] + 1)
        # A is symmetric.
        product = graph.add("MatMul", [self._weighted, A] if last else [A, self._weighted])
        offset = graph.add("Transpose", [b], perm=[0, 2, 1]) if last else b
        if self._weights is not None:
            offset = graph.add("Mul", [offset, self._weights])
        return self._map(graph.add("Add", [product, offset]))

    def _view(self, array: str, channels: int) -> str:
        """(N, channels, H, W) as (N, P, channels) or (N, channels, P)."""
        n, _, height, width = self._shape
        shape: tuple[int, ...] = n, channels, height * width
        if self._layout.channels_last:
            array = self._graph.add("Transpose", [array], perm=[0, 2, 3, 1])
            shape = n, height * width, channels
        return self._graph.add("Reshape", [array, self._graph.shape_constant(*shape)])

    def _map(self, matrix: str) -> str:
        """Back to (N, C, H, W)."""
        n, channels, height, width = self._shape
        if not self._layout.channels_last:
            shape = self._graph.shape_constant(*self._shape)
            return self._graph.add("Reshape", [matrix, shape])
        shape = self._graph.shape_constant(n, height, width, channels)
        image = self._graph.add("Reshape", [matrix, shape])
        return self._graph.add("Transpose", [image], perm=[0, 3, 1, 2])

    def _product(self, left: tuple[str, int], right: tuple[str, int]) -> str:
        """Σ_p l rᵀ of two matrices with their channels; many pixels in parts, added in float32."""
        graph, last = self._graph, self._layout.channels_last
        n, _, height, width = self._shape
        pixels = height * width
        parts = _parts(pixels, self._layout.split_pixels) if last else 1
        pair = [left[0], right[0]]
        if parts > 1:
            pair = [
                graph.add("Reshape", [x, graph.shape_constant(n, parts, pixels // parts, channels)])
                for x, channels in (left, right)
            ]
        turned = 0 if last else 1
        perm = [0, 1, 3, 2] if parts > 1 else [0, 2, 1]
        pair[turned] = graph.add("Transpose", [pair[turned]], perm=perm)
        product = graph.add("MatMul", pair)
        if self._layout.rectified:
            product = graph.add("Relu", [product])
        if parts == 1:
            return product
        return graph.add("ReduceSum", [product, graph.shape_constant(1)], keepdims=0)

    def _ones(self) -> str:
        """The weights, or as many ones."""
        if self._weights is not None:
            return self._weights
        n, _, height, width = self._shape
        pixels = height * width
        shape = (n, pixels, 1) if self._layout.channels_last else (n, 1, pixels)
        return self._graph.constant(np.ones(shape, np.float32))

    def _count(self) -> str:
        """Σm, (N, 1, 1)."""
        n, _, height, width = self._shape
        if self._weights is None:
            return self._graph.constant(np.full((n, 1, 1), height * width, np.float32))
        axes = self._graph.shape_constant(1, 2)
        return self._graph.add("ReduceSum", [self._weights, axes], keepdims=1)

    def _columns(self, matrix: str, start: int, stop: int) -> str:
        bounds = [self._graph.shape_constant(v) for v in (start, stop, 2)]
        return self._graph.add("Slice", [matrix, *bounds])


def _parts(pixels: int, per_part: int) -> int:
    """Into how many equal parts to cut P: a power of two that divides it."""
    parts = 1
    while per_part and pixels // parts > per_part and pixels % (2 * parts) == 0:
        parts *= 2
    return parts
