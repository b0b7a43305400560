"""A start that already looks like a style transfer, made in one pass of a small network.

After Li et al. 2017, "Universal Style Transfer via Feature Transforms": give the content's features
the style's mean and covariance, tap by tap from coarse to fine, and decode them. Here a decoder
makes the features of the next tap instead of a picture to encode again, so that the content is
encoded once and decoded once; and as the decoders forget where things are, the content's own
features f are mixed in on the way:

    x ← f_5;   for l = 5 … 1:   x ← decode_l(A_l x + b_l),   x ← x + d_l·(f_{l−1} − x)

[A_l b_l] gives x the style's moments (``colouring``). The shares d_l fall to 0 (``falling``): what
is where comes from the content, and the finest strokes from the style.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.encoders import Decoder, Encoder
from nst_fast.errors import SettingsError
from nst_fast.graph.graph import Graph
from nst_fast.graph.parts import IMAGE, feature_graph
from nst_fast.host import Float32, Float64, one_blas_thread
from nst_fast.losses import Weights, tap_of
from nst_fast.losses import moments as reference
from nst_fast.losses.wasserstein import RESOLVED, symmetric_power
from nst_fast.runtime import Session

FEATURES = "features"
CONTENT = "content"
SHARE = "share"
DECODED = "decoded"
RIDGE = 0.01  # ε over the larger of the mean eigenvalues, at least


def colouring(M: Float64, T: Float64) -> Float64:
    """The map [A b] from features of moments M to those of moments T, (N, C, C+1) in float64.

    The one that moves them least in the mean square if both are Gaussian (Dowson and Landau 1982;
    for style transfer Mroueh 2019, "Wasserstein Style Transfer"):

        A = P (P Σ_M P)^(−1/2) P,   P = Σ_T^(1/2),   b = μ_T − A μ_M

    symmetric, where the whitening and colouring of Li et al. turns the features as well. Both Σ get
    the same ridge ε·I: what neither has more of than that stays as it is.

    Args:
        M: moments of features as ``losses.moments`` defines them, (N, C+1, C+1).
        T: the style's, (N or 1, C+1, C+1).
    """
    C = M.shape[1] - 1
    (mean, covariance), (goal, wanted) = (_gaussian(moments) for moments in (M, T))
    spread, power = (
        np.maximum(*(np.trace(S, axis1=1, axis2=2) for S in pair)) / C
        for pair in ((covariance, wanted), (C * M[:, :C, :C], C * T[:, :C, :C]))
    )
    ridge = np.maximum(RIDGE * spread, RESOLVED * power)
    ridge = np.where(ridge > 0, ridge, RIDGE)[:, None, None] * np.eye(C)  # nothing but zeros
    P = symmetric_power(wanted + ridge, 0.5)
    A = P @ symmetric_power(P @ (covariance + ridge) @ P, -0.5) @ P
    A = 0.5 * (A + A.transpose(0, 2, 1))  # to the last bit
    return np.concatenate([A, goal - A @ mean], axis=2)


def falling(decoders: int) -> list[float]:
    """d_l over d_4 for what each of so many decoders makes: 1 first, 0 at the last tap."""
    mixed = max(decoders - 2, 1)
    return [max(mixed - index, 0) / mixed for index in range(decoders)]


def _gaussian(M: Float64) -> tuple[Float64, Float64]:
    """Mean (N, C, 1) and covariance (N, C, C) of features with moments M."""
    C = M.shape[1] - 1
    mean = C * M[:, :C, C:]
    covariance: Float64 = C * M[:, :C, :C] - mean @ mean.transpose(0, 2, 1)
    return mean, covariance


class Transfer:
    """The sessions that make starts of N pictures in one canvas; on a CPU, whatever the backend."""

    def __init__(
        self, encoder: Encoder, canvas: Canvas, backend: Backend, pictures: int = 1
    ) -> None:
        """Create the sessions.

        Args:
            encoder: a pack with decoders.
            canvas: where the pictures lie in what the encoder sees; its sides are multiples of the
                stride of the deepest tap with a decoder.
            backend: the provider to use; a GPU's leaves the work to onnxruntime's CPU provider.
            pictures: N.

        Raises:
            SettingsError: the pack has no decoders.
            ProviderError: a session could not be created.
        """
        if not encoder.decoders:
            raise SettingsError(f"init transfer: encoder {encoder.name} has no decoders")
        self._canvas, self._kernels = canvas, backend.kernels
        on_cpu = backend.launcher is None

        def session(graph: Graph, buffers: Mapping[str, Float32]) -> Session:
            return Session(
                graph,
                provider=backend.provider if on_cpu else "cpu",
                precision=backend.precision if on_cpu else "fp32",
                threads=backend.threads,
                buffers=buffers,
            )

        taps = [decoder.tap for decoder in encoder.decoders]
        self._encode = session(feature_graph(encoder, taps, (pictures, *canvas.size)), {})
        self._features = self._encode.outputs
        self._decode: dict[str, Session] = {}
        self._mixed = dict(zip(taps, falling(len(taps)), strict=True))
        for decoder in encoder.decoders:
            shape, mixed = self._features[decoder.tap].shape, self._mixed[decoder.tap] > 0
            graph = decoder_graph(encoder, decoder, shape, mixed=mixed)
            buffers = {CONTENT: self._features[decoder.after]} if mixed and decoder.after else {}
            self._decode[decoder.tap] = session(graph, buffers)

    @one_blas_thread()
    def __call__(
        self,
        contents: Float32,
        style: Mapping[str, Float32],
        weights: Weights,
        share: float,
        regions: Mapping[str, Float32] | None = None,
    ) -> Float32:
        """Make the starts, (N, 3, H, W) in [0, 1]; the array is new.

        Args:
            contents: (N, 3, H, W) in [0, 1].
            style: moments by site, (N or 1, C+1, C+1), as in ``Targets``.
            weights: of the cells of each site, (N or 1, H'/s, W'/s) in [0, 1].
            share: d_4, of the content's features in what the first decoder makes, from 0 to 1.
            regions: how much of a site's map each cell gets, (H'/s, W'/s) in [0, 1]; what they
                leave of a cell stays as it is. None: all of the one map of its tap.
        """
        self._kernels.extend(
            contents, self._canvas.rows, self._canvas.columns, self._encode.inputs[IMAGE]
        )
        self._encode.run()
        x = self._features[next(iter(self._decode))]
        for tap, session in self._decode.items():
            self._colour(x, tap, (style, weights, regions), session.inputs[FEATURES])
            if SHARE in session.inputs:
                session.inputs[SHARE].fill(share * self._mixed[tap])
            session.run()
            x = session.outputs[DECODED]
        top, left = self._canvas.top, self._canvas.left
        height, width = contents.shape[2:]
        return x[:, :, top : top + height, left : left + width].clip(0.0, 1.0)

    def _colour(
        self,
        x: Float32,
        tap: str,
        goal: tuple[Mapping[str, Float32], Weights, Mapping[str, Float32] | None],
        out: Float32,
    ) -> None:
        """Write A x + b, for features (N, C, h, w) and the moments that they are to have.

        ``goal`` is style, weights and regions; of several sites, the sum by their shares.
        """
        style, weights, regions = goal
        n, channels = x.shape[:2]
        flat, made = x.reshape(n, channels, -1), out.reshape(n, channels, -1)
        M = np.empty((n, channels + 1, channels + 1), np.float32)
        sites = [site for site in style if tap_of(site) == tap]
        for number, site in enumerate(sites):
            cells = np.broadcast_to(weights[site], (n, *weights[site].shape[1:])).reshape(n, -1)
            cells = np.ascontiguousarray(cells)
            normalizers = reference.normalizer(channels, cells)
            self._kernels.moments(flat, normalizers, M, pixel_weights=cells)
            maps = colouring(M.astype(np.float64), style[site].astype(np.float64))
            shares = None if regions is None else regions[site].reshape(-1)
            self._add_map(flat, maps, made, shares, onto=number > 0)
        if regions is None:
            return
        left = 1 - sum((regions[site] for site in sites), np.zeros(x.shape[2:], np.float32))
        same = np.broadcast_to(np.eye(channels, channels + 1), (n, channels, channels + 1))
        self._add_map(flat, same, made, left.reshape(-1), onto=bool(sites))

    def _add_map(
        self, flat: Float32, maps: Float64, made: Float32, shares: Float32 | None, *, onto: bool
    ) -> None:
        """Write, or add ``onto`` what is there, shares∘(A F + b 1ᵀ).

        By the kernel of the way back from moments, where A is symmetric, too.
        """
        narrow = np.ascontiguousarray(maps, np.float32)
        self._kernels.pull_back(flat, narrow, made, pixel_weights=shares, accumulate=onto)


def decoder_graph(
    encoder: Encoder, decoder: Decoder, shape: tuple[int, ...], *, mixed: bool
) -> Graph:
    """From ``features`` of a tap, (N, C, h, w), to ``decoded``: those of the next tap, or a canvas.

    Where they are to be ``mixed``, ``share`` (N, 1, 1, 1) is that of ``content``, the
    content's own features. Convolutions pad with the outermost cells, but at full size with zeros:
    that is cheaper, and reaches no farther than the margin.
    """
    stride = encoder.taps[decoder.tap].stride
    to = 1 if decoder.after is None else encoder.taps[decoder.after].stride
    graph = Graph([], {}, {FEATURES: shape}, {})
    x, *_, last = FEATURES, *decoder.layers
    for weight, bias in decoder.layers:
        if weight is last[0] and to < stride:
            scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
            x = graph.add(
                "Resize",
                [x, "", scales],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            stride = to
        border = 0 if stride > 1 else 1
        if stride > 1:
            pads = graph.shape_constant(0, 0, 1, 1, 0, 0, 1, 1)
            x = graph.add("Pad", [x, pads], mode="edge")
        x = graph.add("Conv", [x, graph.constant(weight), graph.constant(bias)], pads=[border] * 4)
        if weight is not last[0] or decoder.after is not None:
            x = graph.add("Relu", [x])
    n, _, height, width = shape
    factor = encoder.taps[decoder.tap].stride // to
    end = (n, len(last[1]), factor * height, factor * width)
    graph.outputs = {DECODED: end}
    if not mixed:
        graph.add("Identity", [x], DECODED)
        return graph
    graph.inputs |= {CONTENT: end, SHARE: (n, 1, 1, 1)}
    change = graph.add("Mul", [graph.add("Sub", [CONTENT, x]), SHARE])
    graph.add("Add", [x, change], DECODED)
    return graph
