"""What a Plan evaluates with: one session for the whole step, or sessions around our kernels."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np

from nst_fast.backend import Backend
from nst_fast.encoders import Encoder
from nst_fast.graph.forms import FORMS, fused_graph, round_maxima, split_image, step_graphs
from nst_fast.graph.parts import IMAGE, gradient_name
from nst_fast.host import Float32, Float64, aligned_zeros, one_blas_thread
from nst_fast.kernels import Kernels
from nst_fast.losses import Goal, Objective, StyleLoss
from nst_fast.losses.head import TERMS, goal_inputs
from nst_fast.runtime import Session
from nst_fast.tiles import Tile, own_weights
from nst_fast.windows import Windows


class Evaluator(Protocol):
    """What computes the terms at the taps and their gradient, into a Plan's buffers."""

    def set_goal(self, goal: Goal) -> None:
        """Copy the goal in."""

    def run(self, terms: Float64) -> None:
        """Write the weighted terms (N, K), and overwrite the gradient of the image."""


class Fused:
    """One session for the whole step."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        backend: Backend,
        windows: Windows,
        weighted: bool,
    ) -> None:
        """Open the session.

        Args:
            encoder: the pack to run.
            objective: terms and weights.
            backend: of the CPU.
            windows: the pictures, on a canvas that is seen as a whole.
            weighted: whether cells have weights.
        """
        n, _, height, width = windows.ends[IMAGE].shape
        form = FORMS[backend.provider, backend.precision]
        graph = fused_graph(encoder, objective, (n, height, width), form, weighted=weighted)
        self._session = Session(
            graph,
            provider=backend.provider,
            precision=backend.precision,
            threads=backend.threads,
            buffers=windows.ends,
        )
        self._windows = windows
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
        self._windows.show(0)
        self._session.run()
        self._windows.take_gradient(0)
        np.multiply(self._session.outputs[TERMS], self._factors, out=terms)


class Split:
    """Forward session, our kernels, backward session; features stay in shared buffers.

    In windows, a first round adds their moments up, a second one makes each window's gradient; of
    whole canvases there is one window, which both rounds see.
    """

    def __init__(
        self, encoder: Encoder, objective: Objective, backend: Backend, windows: Windows
    ) -> None:
        """Open the sessions; arguments as for ``Fused``, the canvas in any number of windows."""
        n, _, height, width = windows.ends[IMAGE].shape
        self._windows, self._tiles = windows, windows.tiles
        forward, backward = step_graphs(encoder, objective.taps, (n, height, width))
        form = FORMS[backend.provider, backend.precision]
        if form.split_image:
            split_image(forward)
        if form.rounded_maxima:
            round_maxima(backward)
        session = partial(
            Session,
            provider=backend.provider,
            precision=backend.precision,
            threads=backend.threads,
        )
        self._forward = session(forward, buffers=windows.ends)
        features = self._forward.outputs
        self._backward = session(backward, buffers={**features, **windows.ends})
        self._taps = [
            _Tap(
                (tap, encoder.taps[tap].stride),
                (features[tap], self._backward.inputs[gradient_name(tap)]),
                objective,
                backend.kernels,
            )
            for tap in objective.taps
        ]

    def set_goal(self, goal: Goal) -> None:
        """See ``Evaluator.set_goal``."""
        for tap in self._taps:
            tap.set_goal(goal)
            tap.show(self._tiles[0])

    def run(self, terms: Float64) -> None:
        """See ``Evaluator.run``."""
        terms.fill(0)
        *others, last = range(len(self._tiles))
        for index in (*others, last):
            self._show(index)
            for tap in self._taps:
                tap.add_moments(first=index == 0)
        with one_blas_thread():
            for tap in self._taps:
                tap.evaluate(terms)
        self._pull_back(last, terms, first=True)
        for index in others:
            self._show(index)
            self._pull_back(index, terms, first=False)

    def _show(self, index: int) -> None:
        """Run the forward pass on a window."""
        self._windows.show(index)
        self._forward.run()
        for tap in self._taps:
            tap.show(self._tiles[index])

    def _pull_back(self, index: int, terms: Float64, *, first: bool) -> None:
        """Make the gradient of the window on show."""
        for tap in self._taps:
            tap.pull_back(terms)
        self._backward.run()
        self._windows.take_gradient(index, first=first)


class _Tap:
    """The terms of one tap on our kernels: features in, gradient and weighted terms out.

    ``place`` is its name and stride, ``maps`` the features and their gradient.
    """

    def __init__(
        self,
        place: tuple[str, int],
        maps: tuple[Float32, Float32],
        objective: Objective,
        kernels: Kernels,
    ) -> None:
        n, channels = maps[0].shape[:2]
        self._name, self._stride = place
        self._features, self._gradient = (array.reshape(n, channels, -1) for array in maps)
        self._kernels = kernels
        columns = {term: index for index, term in enumerate(objective.terms)}
        self._sites = [
            _Site(site, columns["style", site], self._features, objective.distance)
            for site in objective.sites(self._name)
        ]
        self._content = columns.get(("content", self._name))
        self._losses = np.zeros(n)
        self._shown: Tile | None = None
        self._weights: dict[str, Float32 | None] = {}

    def set_goal(self, goal: Goal) -> None:
        """Take this tap's part of the goal; no window is on show after that."""
        self._goal, self._shown = goal, None
        for site in self._sites:
            site.set_goal(goal)
        if self._content is not None:
            scaled = goal.factors[:, self._content] * goal.normalizers[:, self._content]
            self._content_factors = np.ascontiguousarray(scaled)

    def show(self, tile: Tile) -> None:
        """Cut weights and content to a window, where it is not the one that was on show before."""
        if tile is self._shown:
            return
        self._shown = tile
        for name in {self._name, *(site.name for site in self._sites)}:
            own = own_weights(self._goal.weights[name], tile, self._stride)
            self._weights[name] = self._per_pixel(own)
        if self._content is not None:
            content = self._goal.content[self._name][:, :, *tile.window(self._stride)]
            content = content.reshape(*content.shape[:2], -1)
            self._target = np.broadcast_to(content, self._features.shape).copy(order="C")

    def _per_pixel(self, weights: Float32) -> Float32 | None:
        """Weights (N or 1, h, w) as the kernels take them; None where all are 1."""
        if (weights == 1).all():
            return None
        n = len(self._features)
        every = np.broadcast_to(weights, (n, *weights.shape[1:]))
        return np.ascontiguousarray(every.reshape(n, -1))

    def add_moments(self, *, first: bool) -> None:
        """Take the moments of the window on show, and add them to those of the ones before."""
        for site in self._sites:
            self._kernels.moments(
                self._features,
                site.normalizers,
                site.moments,
                pixel_weights=self._weights[site.name],
                accumulate=not first,
            )

    def evaluate(self, terms: Float64) -> None:
        """From the moments: the style terms, and what the way back is made with."""
        for site in self._sites:
            site.evaluate(terms)

    def pull_back(self, terms: Float64) -> None:
        """Write the gradient at the features on show, and add their content term."""
        left = self._content is not None
        for number, site in enumerate(self._sites):
            # In one pass where both see the picture through the same weights.
            both = left and site.name == self._name
            self._kernels.pull_back(
                self._features,
                site.derivative,
                self._gradient,
                pixel_weights=self._weights[site.name],
                accumulate=number > 0,
                content=self._target if both else None,
                content_factors=self._content_factors if both else None,
                content_losses=self._losses if both else None,
            )
            left = left and not both
        if left:
            self._kernels.content_pull_back(
                self._features,
                self._target,
                self._content_factors,
                self._gradient,
                self._losses,
                pixel_weights=self._weights[self._name],
                accumulate=bool(self._sites),
            )
        if self._content is not None:
            terms[:, self._content] += self._losses


class _Site:
    """A style term: the moments at its site, and their derivative."""

    def __init__(self, name: str, column: int, features: Float32, distance: StyleLoss) -> None:
        n, channels = features.shape[:2]
        self.name = name
        self._column, self._distance = column, distance
        self.moments = aligned_zeros((n, channels + 1, channels + 1))
        self.derivative = aligned_zeros((n, channels, channels + 1))

    def set_goal(self, goal: Goal) -> None:
        self._constants = goal.constants[self.name]
        self.normalizers = np.ascontiguousarray(goal.normalizers[:, self._column])
        self._pulls = goal.pulls[:, self._column, None, None]
        self._factors = goal.factors[:, self._column]

    def evaluate(self, terms: Float64) -> None:
        """From the moments, which are whole: the term and [A b]."""
        found, D = self._distance.evaluate(self.moments.astype(np.float64), self._constants)
        terms[:, self._column] = self._factors * found
        np.multiply(self._pulls, D[:, :-1], out=self.derivative, casting="same_kind")
