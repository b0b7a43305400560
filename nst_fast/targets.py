"""What pictures have at the taps, in float32: for targets, and for the loss that is reported."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nst_fast.backend import Backend
from nst_fast.encoders import Encoder
from nst_fast.gpu.session import DeviceSession
from nst_fast.graph.forms import FORMS, statistics_graph
from nst_fast.graph.graph import Graph
from nst_fast.graph.parts import IMAGE, Shape
from nst_fast.host import Float32, Float64
from nst_fast.library import single_precision
from nst_fast.losses import Objective, Targets, Weights, tap_of
from nst_fast.losses import moments as reference
from nst_fast.losses.head import NORMALIZERS, content_name, moments_name, weights_name
from nst_fast.runtime import Session
from nst_fast.tiles import Tile, cut, halo, own_weights


class _Forward:
    """A forward graph in float32 for images of one shape; TensorRT multiplies in TF32."""

    def __init__(self, graph: Graph, backend: Backend) -> None:
        self._launcher = backend.launcher
        self._session: Session | DeviceSession
        if backend.launcher is None:
            self._session = Session(
                graph, provider=backend.provider, precision="fp32", threads=backend.threads
            )
        else:
            self._session = DeviceSession(
                graph,
                provider=backend.provider,
                precision=single_precision(backend.provider),
                launcher=backend.launcher,
            )

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, Float32]:
        """Outputs on the host, overwritten by the next call; reads those inputs that there are."""
        if self._launcher is None:
            for name, array in self._session.inputs.items():
                np.copyto(array, inputs[name])
            self._session.run()
            return self._session.outputs
        for name, buffer in self._session.inputs.items():
            self._launcher.upload(inputs[name], buffer)
        self._session.run()
        return {name: self._launcher.download(a) for name, a in self._session.outputs.items()}


class TargetExtractor:
    """What canvases of one size have at the taps, in float32: for targets, and the loss reported.

    Feature maps stay in the provider, but for those of the content terms.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        *,
        side: int | None = None,
    ) -> None:
        """Create the session.

        Args:
            encoder: the pack to run.
            objective: names the taps.
            shape: N, H, W of the canvases, H and W multiples of the deepest tap's stride.
            backend: where to compute.
            side: of the windows that the encoder sees, in pixels; None: whole canvases.
        """
        self._encoder, self._objective = encoder, objective
        n, height, width = shape
        margin = halo(encoder, objective.taps)
        self._tiling = cut(height, width, max(height, width) if side is None else side, margin)
        form = FORMS[backend.provider, single_precision(backend.provider)]
        graph = statistics_graph(encoder, objective, (n, *self._tiling.window), form)
        self._forward = _Forward(graph, backend)

    def __call__(self, image: Float32, weights: Weights) -> Targets:
        """Of canvases (N, 3, H, W) in [0, 1]; the arrays are overwritten by the next call.

        ``weights`` are those of the cells of each style site.
        """
        objective, taps = self._objective, self._encoder.taps
        normalizers = np.zeros((len(image), len(objective.terms)), np.float32)
        for index, site in enumerate(objective.style):
            channels = taps[tap_of(site)].channels
            normalizers[:, index] = reference.normalizer(channels, weights[site])
        moments: dict[str, Float64] = {}
        content: dict[str, Float32] = {}
        for tile in self._tiling.tiles:
            found = self._forward.run(
                self._inputs(image, weights, tile) | {NORMALIZERS: normalizers}
            )
            if len(self._tiling.tiles) == 1:
                return Targets(
                    {site: found[moments_name(site)] for site in objective.style},
                    {tap: found[content_name(tap)] for tap in objective.content},
                )
            for site in objective.style:
                moments[site] = moments.get(site, 0) + found[moments_name(site)].astype(np.float64)
            for tap in objective.content:
                features, stride = found[content_name(tap)], taps[tap].stride
                shape = *features.shape[:2], *(side // stride for side in image.shape[2:])
                whole = content.setdefault(tap, np.empty(shape, np.float32))
                whole[:, :, *tile.own(stride)] = features[:, :, *tile.inside(stride)]
        return Targets({site: M.astype(np.float32) for site, M in moments.items()}, content)

    def _inputs(self, image: Float32, weights: Weights, tile: Tile) -> dict[str, Float32]:
        """A window, and the weights of its own cells."""
        inputs = {IMAGE: image[:, :, *tile.window()]}
        for site in self._objective.style:
            own = own_weights(weights[site], tile, self._encoder.taps[tap_of(site)].stride)
            shape = len(image), 1, *own.shape[1:]
            inputs[weights_name(site)] = np.broadcast_to(own[:, None], shape)
        return inputs
