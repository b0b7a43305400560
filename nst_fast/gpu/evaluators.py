"""What a DevicePlan evaluates with: one session, or sessions around our kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

from nst_fast.backend import Backend
from nst_fast.device import DeviceArray, Launcher
from nst_fast.encoders import Encoder
from nst_fast.gpu.layers import Pass, passes
from nst_fast.gpu.session import DeviceSession
from nst_fast.gpu.taps import Tap, TapKernels
from nst_fast.graph.forms import FORMS, chain_of, fused_graph, turned_graphs
from nst_fast.graph.graph import Graph
from nst_fast.graph.parts import (
    IMAGE,
    IMAGE_GRADIENT,
    Shape,
    gradient_name,
)
from nst_fast.host import Float32
from nst_fast.library import single_precision
from nst_fast.losses import Goal, Objective, loss_graph, tap_of
from nst_fast.losses.head import (
    LOSS_SCALE,
    TERMS,
    derivative_name,
    goal_inputs,
    moments_name,
)
from nst_fast.tiles import cut, halo, own_weights

THREADS = 128  # of a block that weighs terms


class DeviceEvaluator(Protocol):
    """What computes the terms at the taps and the provider's gradient, in a DevicePlan's arrays.

    Attributes:
        terms: (N, K) float64, weighted.
    """

    terms: DeviceArray

    def set_goal(self, goal: Goal) -> None:
        """Copy the goal in."""

    def run(self) -> None:
        """Enqueue one evaluation."""


class Fused:
    """``DeviceEvaluator``: one session for forward, loss head and backward."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        backend: Backend,
        ends: Mapping[str, DeviceArray],
        *,
        weighted: bool,
    ) -> None:
        """Open the session.

        Args:
            encoder: the pack to run.
            objective: terms and weights.
            backend: of a GPU.
            ends: the arrays that the provider reads, ``image`` and ``loss_scale``, and writes,
                ``d_image``.
            weighted: whether cells have weights.
        """
        assert backend.launcher is not None
        n, height, width, _ = ends[IMAGE].shape
        form = FORMS[backend.provider, backend.precision]
        graph = fused_graph(encoder, objective, (n, height, width), form, weighted=weighted)
        self._session = _session(graph, backend, ends)
        self._ends, self._launcher = ends, backend.launcher
        shape = n, len(objective.terms)
        self._factors = backend.launcher.zeros(shape, np.float64)
        self.terms = backend.launcher.zeros(shape, np.float64)

    def set_goal(self, goal: Goal) -> None:
        """See ``DeviceEvaluator.set_goal``."""
        values = goal_inputs(goal)
        for name, array in self._session.inputs.items():
            if name not in self._ends:
                self._launcher.upload(np.broadcast_to(values[name], array.shape), array)
        self._launcher.upload(goal.factors, self._factors)

    def run(self) -> None:
        """See ``DeviceEvaluator.run``."""
        self._session.run()
        _weigh(self._session.outputs[TERMS], self._factors, self.terms, self._launcher)


class Split:
    """``DeviceEvaluator``: forward pass, our kernels, backward pass, all in place.

    Between our kernels the style loss is a session of its own, on small matrices. In windows, a
    first round adds their moments up, a second one makes each window's gradient; of whole canvases
    there is one window, which both rounds see.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        backend: Backend,
        ends: Mapping[str, DeviceArray],
        *,
        weighted: bool,
        side: int | None,
    ) -> None:
        """Open the sessions; arguments as for ``Fused``.

        With a ``side`` the encoder sees windows of so many pixels a side, and ``d_image``, their
        sum, is float32.
        """
        assert backend.launcher is not None
        self._launcher = launcher = backend.launcher
        n, height, width, channels = ends[IMAGE].shape
        self._taps = {tap: i.stride for tap, i in encoder.taps.items() if tap in objective.taps}
        most = max(height, width) if side is None else side
        tiling = cut(height, width, most, halo(encoder, self._taps))
        self._tiles, self._ends, self._window = tiling.tiles, ends, ends
        if side is not None:
            stored = ends[IMAGE].dtype
            shape = n, *tiling.window, channels
            self._window = {name: launcher.zeros(shape, stored) for name in (IMAGE, IMAGE_GRADIENT)}
        self._forward, self._backward = _passes(
            encoder, list(self._taps), (n, *tiling.window), backend, self._window
        )
        features, gradients = self._forward.outputs, self._backward.inputs
        self._weighted = weighted or len(self._tiles) > 1
        self._places = [place for tap in self._taps for place in _places(objective, tap)]
        self._kernels = kernels = TapKernels(
            launcher,
            [
                Tap(
                    _matrix(features[tap]),
                    _matrix(gradients[gradient_name(tap)]),
                    style=place in objective.style,
                    content=place in objective.content,
                    turn=turn,
                )
                for tap in self._taps
                for turn, place in enumerate(_places(objective, tap))
            ],
            backend.precision,
            ends[LOSS_SCALE],
            weighted=self._weighted,
            windows=len(self._tiles),
        )
        self.terms = kernels.terms
        self._loss = _open_loss(objective, kernels, backend) if objective.style else None
        # Nothing that is recorded knows self: it would be a cycle, and keep the GPU's memory until
        # the next collection.
        windows = range(len(self._tiles))
        self._measure = [launcher.capture(partial(kernels.measure, w)) for w in windows]
        self._pull_back = [launcher.capture(partial(_pull_back, kernels, w)) for w in windows[:-1]]
        turn = partial(_turn, kernels, windows[-1], self._loss, launcher)
        self._pull_back.append(launcher.capture(turn))

    def set_goal(self, goal: Goal) -> None:
        """See ``DeviceEvaluator.set_goal``."""
        self._launcher.upload(goal.factors, self._kernels.factors)
        self._launcher.upload(goal.normalizers, self._kernels.normalizers)
        for index, place in enumerate(self._places):
            stride = self._taps[tap_of(place)]
            if self._weighted:
                parts = [own_weights(goal.weights[place], tile, stride) for tile in self._tiles]
                self._kernels.set_weights(index, np.stack([_rows(part) for part in parts]))
            if place in goal.content:
                content = np.moveaxis(goal.content[place], 1, -1)
                parts = [content[:, *tile.window(stride)] for tile in self._tiles]
                self._kernels.set_content(index, np.stack([_matrix(part) for part in parts]))
        if self._loss is None:
            return
        values = goal_inputs(goal)
        for name, array in self._loss.inputs.items():
            if name in values:
                self._launcher.upload(np.broadcast_to(values[name], array.shape), array)

    def run(self) -> None:
        """See ``DeviceEvaluator.run``."""
        *others, last = range(len(self._tiles))
        if self._loss is not None:
            for index in others:
                self._show(index)
                self._measure[index]()
        self._show(last)
        if self._loss is not None:
            self._measure[last]()
            self._loss.run()
        self._pull_back[last]()
        self._backward.run()
        if self._window is self._ends:
            return
        self._launcher.fill(self._ends[IMAGE_GRADIENT], 0.0)
        self._add_gradient(last)
        for index in others:
            self._show(index)
            self._pull_back[index]()
            self._backward.run()
            self._add_gradient(index)

    def _show(self, index: int) -> None:
        """Run the forward pass on a window."""
        if self._window is not self._ends:
            window = self._tiles[index].window()
            self._launcher.copy(self._ends[IMAGE][:, *window], self._window[IMAGE])
        self._forward.run()

    def _add_gradient(self, index: int) -> None:
        gradient = self._ends[IMAGE_GRADIENT][:, *self._tiles[index].window()]
        found = self._window[IMAGE_GRADIENT][..., : gradient.shape[-1]]  # of fewer bits, more zeros
        self._launcher.add(found, gradient)


def _places(objective: Objective, tap: str) -> list[str]:
    """The weights through which terms see a tap: of its style sites, and of a content term."""
    content = [tap] if tap in objective.content else []
    return list(dict.fromkeys([*objective.sites(tap), *content]))


def _pull_back(kernels: TapKernels, window: int) -> None:
    """Enqueue the way back of a window, and the content terms that there are by then."""
    kernels.pull_back(window)
    kernels.add_terms()


def _turn(kernels: TapKernels, window: int, loss: DeviceSession | None, launcher: Launcher) -> None:
    """Enqueue what follows the style loss, up to the way back of the window on show."""
    if loss is not None:
        _weigh(loss.outputs[TERMS], kernels.factors, kernels.terms, launcher)
        kernels.narrow()
    _pull_back(kernels, window)


def _weigh(
    terms: DeviceArray, factors: DeviceArray, weighted: DeviceArray, launcher: Launcher
) -> None:
    """Enqueue: a session's terms, (N, k), times their factors, as the first k of (N, K)."""
    count, (given, columns) = terms.size, (terms.shape[1], factors.shape[1])
    sizes = map(np.int32, (given, columns, count))
    launcher.launch(
        "weigh_terms",
        (-(-count // THREADS), 1, 1),
        THREADS,
        [terms, factors, weighted, *sizes],
    )


def _matrix(array: DeviceArray) -> DeviceArray:
    """(N, H, W, C) as (N, P, C)."""
    return array.reshape(array.shape[0], -1, array.shape[-1])


def _rows(weights: Float32) -> Float32:
    """(N, H, W) as (N, P)."""
    return weights.reshape(len(weights), -1)


def _passes(
    encoder: Encoder,
    taps: Sequence[str],
    shape: Shape,
    backend: Backend,
    ends: Mapping[str, DeviceArray],
) -> tuple[Pass, Pass]:
    """The forward and the backward pass, the activations shared."""
    half = backend.precision == "fp16"
    # TensorRT fuses what lies between convolutions itself.
    layers = None if backend.provider == "tensorrt" else chain_of(encoder, taps, shape, half=half)
    if layers is not None:
        return passes(layers, taps, backend, ends)
    forward, backward = turned_graphs(encoder, taps, shape, half=half)
    first = _session(forward, backend, ends)
    second = _session(backward, backend, {**first.outputs, **ends})
    return _pass(first), _pass(second)


def _pass(session: DeviceSession) -> Pass:
    return Pass(session.inputs, session.outputs, session.run)


def _open_loss(objective: Objective, kernels: TapKernels, backend: Backend) -> DeviceSession:
    """The style loss, from the kernels' moments to their derivatives.

    In float32 where the provider has it: the residual of two moments is small beside them, and
    meets a metric of a condition number of 10⁸.
    """
    names = list(objective.style)
    moments = {moments_name(tap): M for tap, M in zip(names, kernels.moments, strict=True)}
    derivatives = {
        derivative_name(tap): d for tap, d in zip(names, kernels.derivatives, strict=True)
    }
    channels = {tap: d.shape[1] for tap, d in zip(names, kernels.derivatives, strict=True)}
    graph = loss_graph(objective, channels, kernels.terms.shape[0])
    single = replace(backend, precision=single_precision(backend.provider))
    return _session(graph, single, moments | derivatives)


def _session(graph: Graph, backend: Backend, buffers: Mapping[str, DeviceArray]) -> DeviceSession:
    assert backend.launcher is not None
    return DeviceSession(
        graph,
        provider=backend.provider,
        precision=backend.precision,
        launcher=backend.launcher,
        buffers=buffers,
    )
