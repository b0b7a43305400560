"""Plan: all that depends on encoder, canvas, objective, provider and precision; built once.

A Plan owns the picture being optimised and its gradient, and evaluates the loss and the gradient of
N pictures at once. It knows moments and the way back from them, and no loss (``nst_fast.losses``).
Two kinds give the same numbers: "fused" runs forward, loss head and backward as one graph; "split"
runs forward, our kernels, and backward, for pictures that are too large for the memory in windows.
Which one is the default for a provider is what was measured (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from nst_fast.canvas import Canvas
from nst_fast.config import PlanName
from nst_fast.cuda import Launcher
from nst_fast.device import Float32, Float64, aligned_zeros, one_blas_thread
from nst_fast.encoders import Encoder
from nst_fast.errors import SettingsError
from nst_fast.forms import FORMS, fused_graph, split_image, statistics_graph
from nst_fast.graphs import (
    IMAGE,
    IMAGE_GRADIENT,
    Graph,
    Shape,
    backward_graph,
    feature_graph,
    gradient_name,
)
from nst_fast.kernels import Kernels
from nst_fast.losses import Goal, Objective, PictureTerms, Targets, Weights, make_goal
from nst_fast.losses import moments as reference
from nst_fast.losses.head import (
    SCALES,
    TERMS,
    content_name,
    goal_inputs,
    moments_name,
    weights_name,
)
from nst_fast.runtime import DeviceSession, Precision, Provider, Session
from nst_fast.tiles import Tile, cut, halo


@dataclass(frozen=True)
class Backend:
    """Where a Plan computes.

    Attributes:
        provider: that runs the encoder.
        precision: of the encoder.
        threads: for the provider, and the kernels' own, on the CPU.
        kernels: of the CPU.
        launcher: the GPU that the provider runs on; None on the CPU.
    """

    provider: Provider
    precision: Precision
    threads: int
    kernels: Kernels
    launcher: Launcher | None = None

    @property
    def device(self) -> str:
        """Name of the device: "cpu", or that of the GPU."""
        return "cpu" if self.launcher is None else self.launcher.name


class Evaluator(Protocol):
    """What computes the terms at the taps and their gradient, into a Plan's buffers."""

    def set_goal(self, goal: Goal) -> None:
        """Copy the goal in."""

    def run(self, terms: Float64) -> None:
        """Write the weighted terms (N, K), and overwrite the gradient of the image."""


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


def single_precision(provider: Provider) -> Precision:
    """What a provider has for float32."""
    return "tf32" if provider == "tensorrt" else "fp32"


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

        ``weights`` are those of the cells of each tap.
        """
        objective, taps = self._objective, self._encoder.taps
        scales = np.zeros((len(image), len(objective.terms)), np.float32)
        for index, tap in enumerate(objective.style):
            scales[:, index] = reference.scale(taps[tap].channels, weights[tap])
        moments: dict[str, Float64] = {}
        content: dict[str, Float32] = {}
        for tile in self._tiling.tiles:
            found = self._forward.run(self._inputs(image, weights, tile) | {SCALES: scales})
            if len(self._tiling.tiles) == 1:
                return Targets(
                    {tap: found[moments_name(tap)] for tap in objective.style},
                    {tap: found[content_name(tap)] for tap in objective.content},
                )
            for tap in objective.style:
                moments[tap] = moments.get(tap, 0) + found[moments_name(tap)].astype(np.float64)
            for tap in objective.content:
                features, stride = found[content_name(tap)], taps[tap].stride
                shape = *features.shape[:2], *(side // stride for side in image.shape[2:])
                whole = content.setdefault(tap, np.empty(shape, np.float32))
                whole[:, :, *tile.own(stride)] = features[:, :, *tile.inside(stride)]
        return Targets({tap: M.astype(np.float32) for tap, M in moments.items()}, content)

    def _inputs(self, image: Float32, weights: Weights, tile: Tile) -> dict[str, Float32]:
        """A window, and the weights of its own cells."""
        inputs = {IMAGE: image[:, :, *tile.window()]}
        for tap in self._objective.style:
            own = own_weights(weights[tap], tile, self._encoder.taps[tap].stride)
            shape = len(image), 1, *own.shape[1:]
            inputs[weights_name(tap)] = np.broadcast_to(own[:, None], shape)
        return inputs


def own_weights(weights: Float32, tile: Tile, stride: int) -> Float32:
    """Weights (N, h, w) of a window's cells, from those of the canvas: 0 where not its own."""
    whole = weights[:, *tile.window(stride)]
    own = np.zeros_like(whole)
    own[:, *tile.inside(stride)] = whole[:, *tile.inside(stride)]
    return own


class Plan:
    """Loss and gradient of N pictures of one size, in buffers allocated once.

    Attributes:
        kind: "fused", "split" or "tiled".
        image: (N, 3, H, W) float32, nominally in [0, 1]; write it, then call
            :meth:`value_and_grad`.
        gradient: (N, 3, H, W) float32, overwritten by :meth:`value_and_grad`.
        terms: (N, K) float64, the weighted terms of the last evaluation, in the order of
            ``objective.names()``.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        canvas: Canvas,
        backend: Backend,
        kind: PlanName = "auto",
        *,
        pictures: int = 1,
        weighted: bool | None = None,
        side: int | None = None,
    ) -> None:
        """Build sessions and buffers.

        Args:
            encoder: the pack to run.
            objective: terms and weights.
            canvas: where the pictures lie in what the encoder sees.
            backend: where to compute.
            kind: "auto" takes the faster one, which is "fused" on every CPU provider where it can
                evaluate the style loss.
            pictures: N.
            weighted: whether cells have weights; None: where the pictures do not fill the canvas.
            side: of the windows that the encoder sees, in pixels, whatever the kind; None: whole
                canvases.

        Raises:
            ProviderError: a session could not be created.
            SettingsError: one graph cannot evaluate the style loss on this provider.
        """
        self.objective, self.canvas = objective, canvas
        self.weighted = not canvas.whole if weighted is None else weighted
        self.kind = _kind(kind, objective, backend.provider) if side is None else "tiled"
        self.image = aligned_zeros((pictures, 3, canvas.height, canvas.width))
        self.gradient = aligned_zeros(self.image.shape)
        self.terms = np.zeros((pictures, len(objective.names())))
        self._encoder, self._kernels = encoder, backend.kernels
        ends = {IMAGE: self.image, IMAGE_GRADIENT: self.gradient}
        if not canvas.whole:
            self._tables = canvas.rows, canvas.columns
            ends = {name: aligned_zeros((pictures, 3, *canvas.size)) for name in ends}
        self._ends = ends
        self._picture_terms = PictureTerms(objective, self.image.shape, backend.kernels)
        self._evaluator = self._make_evaluator(backend, side)

    def _make_evaluator(self, backend: Backend, side: int | None) -> Evaluator:
        if self.kind == "fused":
            return _Fused(self._encoder, self.objective, backend, self._ends, self.weighted)
        return _Split(self._encoder, self.objective, backend, self._ends, side)

    def set_targets(self, targets: Targets, weights: Weights) -> Goal:
        """Derive the goal from targets and the weights of the taps' cells, and copy it in."""
        goal = make_goal(self.objective, self._encoder, targets, weights, len(self.image))
        self._evaluator.set_goal(goal)
        return goal

    def gradient_at(self, image: Float32) -> Float32:
        """Gradient at pictures (N, 3, H, W), overwritten by the next evaluation."""
        np.copyto(self.image, image)
        self.value_and_grad()
        return self.gradient

    def value_and_grad(self) -> Float64:
        """Evaluate at ``image``: fill ``gradient`` and ``terms``, return the loss (N,)."""
        at_taps = len(self.objective.terms)
        if not self.canvas.whole:
            self._kernels.extend(self.image, *self._tables, self._ends[IMAGE])
        self._evaluator.run(self.terms[:, :at_taps])
        if not self.canvas.whole:
            self._kernels.fold(self._ends[IMAGE_GRADIENT], *self._tables, self.gradient)
        self._picture_terms.add(self.image, self.gradient, self.terms[:, at_taps:])
        total: Float64 = self.terms.sum(axis=1)
        return total


def _kind(asked: PlanName, objective: Objective, provider: Provider) -> str:
    """The kind of a Plan for whole canvases on the CPU."""
    able = provider == "cpu" or not objective.distance.exact
    if asked == "fused" and not able:
        raise SettingsError(
            f"plan fused: style loss {objective.style_loss} needs float64, which provider "
            f"{provider} does not have; use --plan split, or --provider cpu"
        )
    if asked == "auto":
        return "fused" if able else "split"
    return asked


class _Fused:
    """One session for the whole step."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        backend: Backend,
        ends: Mapping[str, Float32],
        weighted: bool,
    ) -> None:
        n, _, height, width = ends[IMAGE].shape
        form = FORMS[backend.provider, backend.precision]
        graph = fused_graph(encoder, objective, (n, height, width), form, weighted=weighted)
        self._session = Session(
            graph,
            provider=backend.provider,
            precision=backend.precision,
            threads=backend.threads,
            buffers=ends,
        )
        self._factors = np.zeros((n, len(objective.terms)))

    def set_goal(self, goal: Goal) -> None:
        """See ``Evaluator.set_goal``."""
        values = goal_inputs(goal)
        for name, array in self._session.inputs.items():
            if name != IMAGE:
                np.copyto(array, values[name], casting="same_kind")
        np.copyto(self._factors, goal.factors)

    def run(self, terms: Float64) -> None:
        """See ``Evaluator.run``."""
        self._session.run()
        np.multiply(self._session.outputs[TERMS], self._factors, out=terms)


class _Split:
    """Forward session, our kernels, backward session; features stay in shared buffers.

    In windows, a first round adds their moments up, a second one makes each window's gradient; of
    whole canvases there is one window, which both rounds see.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        backend: Backend,
        ends: Mapping[str, Float32],
        side: int | None,
    ) -> None:
        n, _, height, width = ends[IMAGE].shape
        self._ends = self._window = ends
        side = max(height, width) if side is None else side
        tiling = cut(height, width, side, halo(encoder, objective.taps))
        self._tiles = tiling.tiles
        if len(self._tiles) > 1:
            self._window = {name: aligned_zeros((n, 3, *tiling.window)) for name in ends}
        shape = n, *tiling.window
        backward = backward_graph(encoder, objective.taps, shape)
        activations = [name for name in backward.inputs if name in encoder.taps]
        forward = feature_graph(encoder, dict.fromkeys((*activations, *objective.taps)), shape)
        if FORMS[backend.provider, backend.precision].split_image:
            split_image(forward)
        session = partial(
            Session,
            provider=backend.provider,
            precision=backend.precision,
            threads=backend.threads,
        )
        self._forward = session(forward, buffers=self._window)
        features = self._forward.outputs
        self._backward = session(backward, buffers={**features, **self._window})
        columns = {term: index for index, term in enumerate(objective.terms)}
        self._taps = [
            _Tap(
                (tap, encoder.taps[tap].stride),
                (features[tap], self._backward.inputs[gradient_name(tap)]),
                (columns.get(("style", tap)), columns.get(("content", tap))),
                objective,
                backend.kernels,
            )
            for tap in objective.taps
        ]

    def set_goal(self, goal: Goal) -> None:
        """See ``Evaluator.set_goal``."""
        for tap in self._taps:
            tap.set_goal(goal, self._tiles)

    def run(self, terms: Float64) -> None:
        """See ``Evaluator.run``."""
        terms.fill(0)
        *others, last = range(len(self._tiles))
        for index in (*others, last):
            self._show(index)
            for tap in self._taps:
                tap.add_moments(index)
        with one_blas_thread():
            for tap in self._taps:
                tap.evaluate(terms)
        self._pull_back(last, terms)
        if not others:
            return
        self._ends[IMAGE_GRADIENT].fill(0)
        self._add_gradient(last)
        for index in others:
            self._show(index)
            self._pull_back(index, terms)
            self._add_gradient(index)

    def _show(self, index: int) -> None:
        """Run the forward pass on a window."""
        if len(self._tiles) > 1:
            window = self._tiles[index].window()
            np.copyto(self._window[IMAGE], self._ends[IMAGE][:, :, *window])
        self._forward.run()

    def _pull_back(self, index: int, terms: Float64) -> None:
        """Make the gradient of the window on show."""
        for tap in self._taps:
            tap.pull_back(index, terms)
        self._backward.run()

    def _add_gradient(self, index: int) -> None:
        window = self._tiles[index].window()
        self._ends[IMAGE_GRADIENT][:, :, *window] += self._window[IMAGE_GRADIENT]


class _Tap:
    """The terms of one tap on our kernels: features in, gradient and weighted terms out.

    ``place`` is its name and stride, ``maps`` the features and their gradient, ``columns`` those of
    its style and content term, None where the tap has no such term.
    """

    def __init__(
        self,
        place: tuple[str, int],
        maps: tuple[Float32, Float32],
        columns: tuple[int | None, int | None],
        objective: Objective,
        kernels: Kernels,
    ) -> None:
        n, channels = maps[0].shape[:2]
        self._name, self._stride = place
        self._features, self._gradient = (array.reshape(n, channels, -1) for array in maps)
        self._style, self._content = columns
        self._distance, self._kernels = objective.distance, kernels
        self._losses = np.zeros(n)
        self._moments = aligned_zeros((n, channels + 1, channels + 1))
        self._derivative = aligned_zeros((n, channels, channels + 1))

    def set_goal(self, goal: Goal, tiles: Sequence[Tile]) -> None:
        """Take this tap's part of the goal, cut into windows."""
        self._weights, self._targets = [], []
        for tile in tiles:
            own = own_weights(goal.weights[self._name], tile, self._stride)
            n = len(self._features)
            weights = np.broadcast_to(own, (n, *own.shape[1:])).reshape(n, -1)
            self._weights.append(None if (own == 1).all() else np.ascontiguousarray(weights))
            if self._content is not None:
                shown = goal.content[self._name][:, :, *tile.window(self._stride)]
                shown = shown.reshape(*shown.shape[:2], -1)
                shared = np.broadcast_to(shown, self._features.shape)
                self._targets.append(shared.copy(order="C"))
        if self._style is not None:
            self._constants = goal.constants[self._name]
            self._scales = np.ascontiguousarray(goal.scales[:, self._style])
            self._pulls = goal.pulls[:, self._style, None, None]
            self._factors = goal.factors[:, self._style]
        if self._content is not None:
            scaled = goal.factors[:, self._content] * goal.scales[:, self._content]
            self._content_factors = np.ascontiguousarray(scaled)

    def add_moments(self, index: int) -> None:
        """Add up the moments of the windows, the first of which has index 0."""
        if self._style is not None:
            self._kernels.moments(
                self._features,
                self._scales,
                self._moments,
                pixel_weights=self._weights[index],
                accumulate=index > 0,
            )

    def evaluate(self, terms: Float64) -> None:
        """From the moments: the style term, and what the way back is made with."""
        if self._style is None:
            return
        found, D = self._distance.evaluate(self._moments.astype(np.float64), self._constants)
        terms[:, self._style] = self._factors * found
        np.multiply(self._pulls, D[:, :-1], out=self._derivative, casting="same_kind")

    def pull_back(self, index: int, terms: Float64) -> None:
        """Write the gradient at the features on show, and add their content term."""
        weights, kernels = self._weights[index], self._kernels
        content = None if self._content is None else self._targets[index]
        if self._style is None:
            assert content is not None
            kernels.content_pull_back(
                self._features,
                content,
                self._content_factors,
                self._gradient,
                self._losses,
                pixel_weights=weights,
            )
        elif content is None:
            kernels.pull_back(
                self._features, self._derivative, self._gradient, pixel_weights=weights
            )
        else:
            kernels.pull_back(
                self._features,
                self._derivative,
                self._gradient,
                pixel_weights=weights,
                content=content,
                content_factors=self._content_factors,
                content_losses=self._losses,
            )
        if self._content is not None:
            terms[:, self._content] += self._losses
