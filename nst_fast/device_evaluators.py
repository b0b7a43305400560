"""What a DevicePlan evaluates with: one session, two around our kernels, or the same in windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from nst_fast.cuda import DeviceArray, Launcher
from nst_fast.device import Float64
from nst_fast.encoders import Encoder
from nst_fast.forms import (
    COEFFICIENTS,
    FORMS,
    LOSS_SCALE,
    TERMS,
    fused_graph,
    target_name,
)
from nst_fast.graphs import (
    IMAGE,
    IMAGE_GRADIENT,
    Graph,
    Shape,
    backward_graph,
    feature_graph,
    gradient_name,
)
from nst_fast.half import read_parts, to_half
from nst_fast.kernels.taps import Tap, TapKernels
from nst_fast.losses import Objective, Targets, as_matrix, term_kinds
from nst_fast.plan import Backend
from nst_fast.runtime import DeviceSession
from nst_fast.tiles import Area, Tile, cut, halo

THREADS = 128  # of a block that weighs terms


class DeviceEvaluator(Protocol):
    """What computes the terms at the taps and the provider's gradient, in a DevicePlan's arrays.

    Attributes:
        terms: (N, K) float64, weighted.
    """

    terms: DeviceArray

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        """Copy the targets and the factor of each term, (N, K), in."""

    def run(self) -> None:
        """Enqueue one evaluation."""


def make_evaluator(
    encoder: Encoder,
    objective: Objective,
    shape: Shape,
    backend: Backend,
    ends: Mapping[str, DeviceArray],
    *,
    fused: bool = False,
    side: int | None = None,
) -> DeviceEvaluator:
    """Open the sessions of an evaluation.

    Args:
        encoder: the pack to run.
        objective: terms and weights.
        shape: N, H, W of the images.
        backend: of a GPU.
        ends: the arrays that the provider reads, ``image`` and ``loss_scale``, and writes,
            ``d_image``; the last is float32 where there is a ``side``.
        fused: one session instead of two.
        side: of the windows that the encoder sees, in pixels; None: whole images.
    """
    if side is not None:
        return _Tiled(encoder, objective, shape, backend, ends, side=side)
    make = _Fused if fused else _Split
    return make(encoder, objective, shape, backend, ends)


class _Split:
    """Forward session, our kernels, backward session; feature maps stay where they are."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        ends: Mapping[str, DeviceArray],
    ) -> None:
        launcher = backend.launcher
        assert launcher is not None
        self._launcher = launcher
        taps = _in_order(encoder, objective)
        self._forward, self._backward = _sessions(encoder, taps, shape, backend, ends)
        features = self._forward.outputs
        self._taps = {
            tap: _tap(launcher, objective, tap, features[tap], self._backward.inputs)
            for tap in taps
        }
        kernels = TapKernels(
            launcher, list(self._taps.values()), backend.precision, ends[LOSS_SCALE]
        )
        self._factors, self.terms = kernels.factors, kernels.terms
        self._run_kernels: Callable[[], None] = launcher.capture(kernels.run)

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        upload = self._launcher.upload
        upload(factors, self._factors)
        for tap, gram in targets.style.items():
            upload(gram, self._taps[tap].style)
        for tap, features in targets.content.items():
            content = self._taps[tap].content
            assert content is not None
            upload(as_matrix(features).astype(content.dtype), content)

    def run(self) -> None:
        self._forward.run()
        self._run_kernels()
        self._backward.run()


class _Tiled:
    """The split evaluation, window after window: the same sums, and a second forward pass.

    The kernels see a window's features with zeros in place of those that are not its own, so that
    Gram matrices of windows add up to the picture's; the backward pass reads them all. In a first
    round over the windows T falls to T − Σ G, in a second one each gradient is made with that.
    The kernels divide by a window's pixels; the factors make up for it.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        ends: Mapping[str, DeviceArray],
        *,
        side: int,
    ) -> None:
        launcher = backend.launcher
        assert launcher is not None
        self._launcher = launcher
        n, height, width = shape
        taps = _in_order(encoder, objective)
        self._strides = {tap: encoder.taps[tap].stride for tap in taps}
        self._tiling = tiling = cut(height, width, side, halo(encoder, taps))
        self._image, self._gradient = ends[IMAGE], ends[IMAGE_GRADIENT]
        stored = self._image.dtype
        self._window = launcher.zeros((*self._image.shape[:2], *tiling.window), stored)
        self._d_window = launcher.zeros((*self._gradient.shape[:2], *tiling.window), stored)
        at_window = {IMAGE: self._window, IMAGE_GRADIENT: self._d_window}
        self._forward, self._backward = _sessions(
            encoder, taps, (n, *tiling.window), backend, at_window
        )
        self._features = {tap: self._forward.outputs[tap] for tap in taps}
        self._own = {tap: launcher.zeros(x.shape, x.dtype) for tap, x in self._features.items()}
        self._taps = {
            tap: _tap(launcher, objective, tap, own, self._backward.inputs)
            for tap, own in self._own.items()
        }
        self._style = {
            tap: launcher.zeros(arrays.style.shape)
            for tap, arrays in self._taps.items()
            if arrays.style is not None
        }
        self._content = {
            tap: launcher.zeros(
                (n, x.shape[1], height // self._strides[tap], width // self._strides[tap]), x.dtype
            )
            for tap, x in self._features.items()
            if tap in objective.content
        }
        self._kernels = TapKernels(
            launcher, list(self._taps.values()), backend.precision, ends[LOSS_SCALE]
        )
        self.terms = launcher.zeros(self._kernels.terms.shape, np.float64)

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        upload, share = self._launcher.upload, self._tiling.share
        styles = len(self._style)
        shares = np.repeat([share**2, share], [styles, factors.shape[1] - styles])
        upload(factors * shares, self._kernels.factors)
        for tap, gram in targets.style.items():
            upload(gram / share, self._style[tap])
        for tap, features in targets.content.items():
            upload(features.astype(self._content[tap].dtype), self._content[tap])

    def run(self) -> None:
        launcher = self._launcher
        for tap, wanted in self._style.items():
            launcher.copy(wanted, self._taps[tap].style)
        *others, last = self._tiling.tiles
        for tile in others:
            self._show(tile)
            self._kernels.reduce()
            for tap, residual in zip(self._style, self._kernels.residuals, strict=True):
                launcher.copy(residual, self._taps[tap].style, factor=-1.0)
        self._show(last)
        self._kernels.reduce()
        launcher.fill(self._gradient, 0.0)
        launcher.fill(self.terms, 0.0)
        self._add_gradient(last)
        for tile in others:
            self._show(tile)
            self._add_gradient(tile)
        styles = len(self._style)
        launcher.copy(self._kernels.terms[:, :styles], self.terms[:, :styles])

    def _show(self, tile: Tile) -> None:
        """Run the forward pass on a window, and cut out the features that are its own."""
        self._launcher.copy(self._image[:, :, *tile.window()], self._window)
        self._forward.run()
        for tap, features in self._features.items():
            self._cut_out(features, tile.inside(self._strides[tap]), tap, tile, self._own[tap])

    def _cut_out(
        self, source: DeviceArray, area: Area, tap: str, tile: Tile, out: DeviceArray
    ) -> None:
        self._launcher.fill(out, 0.0)
        inside = tile.inside(self._strides[tap])
        self._launcher.copy(source[:, :, *area], out[:, :, *inside])

    def _add_gradient(self, tile: Tile) -> None:
        """Add what the window on show gives to the gradient and to the content terms."""
        for tap, content in self._content.items():
            out = self._taps[tap].content
            assert out is not None
            shown = out.reshape(self._features[tap].shape)
            self._cut_out(content, tile.own(self._strides[tap]), tap, tile, shown)
        self._kernels.write_gradients()
        self._kernels.add_terms()
        self._launcher.add(self._kernels.terms, self.terms)
        self._backward.run()
        self._launcher.add(self._d_window, self._gradient[:, :, *tile.window()])


def _in_order(encoder: Encoder, objective: Objective) -> list[str]:
    """The objective's taps in network order."""
    return [tap for tap in encoder.taps if tap in objective.taps]


def _sessions(
    encoder: Encoder,
    taps: Sequence[str],
    shape: Shape,
    backend: Backend,
    ends: Mapping[str, DeviceArray],
) -> tuple[DeviceSession, DeviceSession]:
    """The forward and the backward session, the activations shared."""
    backward = backward_graph(encoder, taps, shape)
    activations = [name for name in backward.inputs if name in encoder.taps]
    forward = feature_graph(encoder, dict.fromkeys((*activations, *taps)), shape)
    if backend.precision == "fp16":
        read_parts(forward)
        to_half(forward)
        to_half(backward)
    first = _session(forward, backend, ends)
    return first, _session(backward, backend, {**first.outputs, **ends})


def _tap(
    launcher: Launcher,
    objective: Objective,
    tap: str,
    features: DeviceArray,
    gradients: Mapping[str, DeviceArray],
) -> Tap:
    n, channels = features.shape[:2]
    matrix = as_matrix(features)
    has_style, has_content = tap in objective.style, tap in objective.content
    return Tap(
        features=matrix,
        gradient=as_matrix(gradients[gradient_name(tap)]),
        style=launcher.zeros((n, channels, channels)) if has_style else None,
        content=launcher.zeros(matrix.shape, matrix.dtype) if has_content else None,
    )


class _Fused:
    """One session for forward, loss head and backward."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        ends: Mapping[str, DeviceArray],
    ) -> None:
        launcher = backend.launcher
        assert launcher is not None
        self._launcher = launcher
        form = FORMS[backend.provider, backend.precision]
        graph = fused_graph(encoder, list(objective.style), list(objective.content), shape, form)
        self._session = _session(graph, backend, ends)
        count = len(term_kinds(objective))
        self._factors = launcher.zeros((shape[0], count), np.float64)
        self.terms = launcher.zeros((shape[0], count), np.float64)

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        upload, inputs = self._launcher.upload, self._session.inputs
        upload(factors, self._factors)
        upload(factors.astype(np.float32), inputs[COEFFICIENTS])
        for tap, gram in targets.style.items():
            upload(gram, inputs[target_name(tap, "style")])
        for tap, features in targets.content.items():
            upload(features, inputs[target_name(tap, "content")])

    def run(self) -> None:
        self._session.run()
        count = self.terms.size
        arguments: list[Any] = [self._session.outputs[TERMS], self._factors, self.terms]
        self._launcher.launch(
            "weigh_terms",
            (-(-count // THREADS), 1, 1),
            THREADS,
            [*arguments, np.int32(count)],
        )


def _session(graph: Graph, backend: Backend, buffers: Mapping[str, DeviceArray]) -> DeviceSession:
    assert backend.launcher is not None
    return DeviceSession(
        graph,
        provider=backend.provider,
        precision=backend.precision,
        launcher=backend.launcher,
        buffers=buffers,
    )
