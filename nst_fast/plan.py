"""Plan: all that depends on encoder, shape, objective, provider and precision; built once.

A Plan owns the image being optimised and its gradient, and evaluates the loss and the
gradient of N images at once. Two kinds give the same numbers: "fused" runs forward, loss head
and backward as one graph; "split" runs forward, our Gram kernel, and backward. Which one is
the default for a provider is what was measured (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from nst_fast.config import PlanName
from nst_fast.cuda import Launcher
from nst_fast.device import Float32, Float64, aligned_zeros
from nst_fast.encoders import Encoder
from nst_fast.forms import (
    COEFFICIENTS,
    FORMS,
    TERMS,
    fused_graph,
    mask_name,
    split_image,
    statistics_graph,
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
from nst_fast.kernels import Kernels
from nst_fast.losses import (
    Objective,
    PictureTerms,
    Targets,
    as_matrix,
    coefficients,
    term_kinds,
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

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        """Copy the targets and the factor of each term, (N, K), in."""

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
                precision=_single(backend.provider),
                launcher=backend.launcher,
            )

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, Float32]:
        """Outputs on the host, overwritten by the next call."""
        if self._launcher is None:
            for name, array in inputs.items():
                np.copyto(self._session.inputs[name], array)
            self._session.run()
            return self._session.outputs
        for name, array in inputs.items():
            self._launcher.upload(array, self._session.inputs[name])
        self._session.run()
        return {name: self._launcher.download(a) for name, a in self._session.outputs.items()}


def _single(provider: Provider) -> Precision:
    """What a provider has for float32."""
    return "tf32" if provider == "tensorrt" else "fp32"


class FeatureExtractor:
    """Feature maps in float32 of images of one shape."""

    def __init__(
        self, encoder: Encoder, taps: Sequence[str], shape: Shape, backend: Backend
    ) -> None:
        """Create the session; ``shape`` is N, H, W with H and W multiples of the stride."""
        self._forward = _Forward(feature_graph(encoder, taps, shape), backend)

    def __call__(self, image: Float32) -> dict[str, Float32]:
        """Taps of an image (N, 3, H, W) in [0, 1]; the arrays are overwritten by the next call."""
        return self._forward.run({IMAGE: image})


class TargetExtractor:
    """What images of one shape have at the taps, in float32: for targets, and the loss reported.

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
        """Create the session; arguments as for :class:`FeatureExtractor`.

        With a ``side`` the encoder sees the images in windows of so many pixels a side.
        """
        self._style, self._content = list(objective.style), list(objective.content)
        self._strides = {tap: encoder.taps[tap].stride for tap in objective.taps}
        n, height, width = shape
        margin = halo(encoder, objective.taps)
        self._tiling = cut(height, width, max(height, width) if side is None else side, margin)
        graph = statistics_graph(
            encoder,
            self._style,
            self._content,
            (n, *self._tiling.window),
            FORMS[backend.provider, _single(backend.provider)],
            masked=len(self._tiling.tiles) > 1,
        )
        self._forward = _Forward(graph, backend)

    def __call__(self, image: Float32) -> Targets:
        """Of an image (N, 3, H, W) in [0, 1]; the arrays are overwritten by the next call."""
        if len(self._tiling.tiles) == 1:
            return self._targets(self._forward.run({IMAGE: image}))
        n, _, *size = image.shape
        grams: dict[str, Float64] = {}
        content: dict[str, Float32] = {}
        for tile in self._tiling.tiles:
            found = self._targets(self._forward.run(self._inputs(image, tile)))
            for tap, gram in found.style.items():
                grams[tap] = grams.get(tap, 0) + self._tiling.share * gram.astype(np.float64)
            for tap, features in found.content.items():
                stride = self._strides[tap]
                shape = (n, features.shape[1], *(length // stride for length in size))
                whole = content.setdefault(tap, np.empty(shape, np.float32))
                whole[:, :, *tile.own(stride)] = features[:, :, *tile.inside(stride)]
        return Targets({tap: gram.astype(np.float32) for tap, gram in grams.items()}, content)

    def _inputs(self, image: Float32, tile: Tile) -> dict[str, Float32]:
        """A window, and masks of its own cells."""
        inputs = {IMAGE: image[:, :, *tile.window()]}
        for tap in self._style:
            stride = self._strides[tap]
            mask = np.zeros([1, 1, *(length // stride for length in self._tiling.window)])
            mask[:, :, *tile.inside(stride)] = 1.0
            inputs[mask_name(tap)] = mask.astype(np.float32)
        return inputs

    def _targets(self, found: Mapping[str, Float32]) -> Targets:
        return Targets(
            style={tap: found[target_name(tap, "style")] for tap in self._style},
            content={tap: found[target_name(tap, "content")] for tap in self._content},
        )


class Plan:
    """Loss and gradient of N images of one shape, in buffers allocated once.

    Attributes:
        kind: "fused" or "split".
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
        shape: Shape,
        backend: Backend,
        kind: PlanName = "auto",
    ) -> None:
        """Build sessions and buffers.

        Args:
            encoder: the pack to run.
            objective: terms and weights.
            shape: N, H, W of the images; H and W are multiples of the deepest tap's stride.
            backend: where to compute.
            kind: "auto" takes the faster one, which is "fused" on every CPU provider.

        Raises:
            ProviderError: a session could not be created.
        """
        n, height, width = shape
        self.objective = objective
        self.kind = "fused" if kind == "auto" else kind
        self.image = aligned_zeros((n, 3, height, width))
        self.gradient = aligned_zeros((n, 3, height, width))
        self.terms = np.zeros((n, len(objective.names())))
        self._kernels = backend.kernels
        self._coefficients = np.zeros((n, len(term_kinds(objective))))
        self._picture_terms = PictureTerms(objective, self.image.shape, backend.kernels)
        self._evaluator = self._make_evaluator(encoder, shape, backend)

    def _make_evaluator(self, encoder: Encoder, shape: Shape, backend: Backend) -> Evaluator:
        make = _Fused if self.kind == "fused" else _Split
        ends = {IMAGE: self.image, IMAGE_GRADIENT: self.gradient}
        return make(encoder, self.objective, shape, backend, ends)

    def set_targets(self, targets: Targets) -> None:
        """Copy the targets in and derive the factor of each term from them."""
        self._coefficients[:] = coefficients(self.objective, targets)
        self._evaluator.set_targets(targets, self._coefficients)

    def gradient_at(self, image: Float32) -> Float32:
        """Gradient at an image (N, 3, H, W), overwritten by the next evaluation."""
        np.copyto(self.image, image)
        self.value_and_grad()
        return self.gradient

    def value_and_grad(self) -> Float64:
        """Evaluate at ``image``: fill ``gradient`` and ``terms``, return the loss (N,)."""
        at_taps = self._coefficients.shape[1]
        self._evaluator.run(self.terms[:, :at_taps])
        self._picture_terms.add(self.image, self.gradient, self.terms[:, at_taps:])
        total: Float64 = self.terms.sum(axis=1)
        return total


class _Fused:
    """One session for the whole step."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        ends: Mapping[str, Float32],
    ) -> None:
        form = FORMS[backend.provider, backend.precision]
        graph = fused_graph(encoder, list(objective.style), list(objective.content), shape, form)
        self._session = Session(
            graph,
            provider=backend.provider,
            precision=backend.precision,
            threads=backend.threads,
            buffers=ends,
        )

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        inputs = self._session.inputs
        np.copyto(inputs[COEFFICIENTS], factors, casting="same_kind")
        for tap, gram in targets.style.items():
            np.copyto(inputs[target_name(tap, "style")], gram)
        for tap, features in targets.content.items():
            np.copyto(inputs[target_name(tap, "content")], features)
        self._factors = factors

    def run(self, terms: Float64) -> None:
        self._session.run()
        np.multiply(self._session.outputs[TERMS], self._factors, out=terms)


class _Split:
    """Forward session, Gram kernel, backward session; features stay in shared buffers."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        shape: Shape,
        backend: Backend,
        ends: Mapping[str, Float32],
    ) -> None:
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
        self._forward = session(forward, buffers=ends)
        features = self._forward.outputs
        self._backward = session(backward, buffers={**features, **ends})
        columns = {kind: i for i, kind in enumerate(term_kinds(objective))}
        self._taps = [
            _TapTerms(
                tap,
                as_matrix(features[tap]),
                as_matrix(self._backward.inputs[gradient_name(tap)]),
                (columns.get(("style", tap)), columns.get(("content", tap))),
                backend.kernels,
            )
            for tap in objective.taps
        ]

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        for tap in self._taps:
            tap.set_targets(targets, factors)

    def run(self, terms: Float64) -> None:
        self._forward.run()
        for tap in self._taps:
            tap.run(terms)
        self._backward.run()


class _TapTerms:
    """The terms of one tap on our kernels: features in, gradient and weighted terms out.

    ``columns`` are those of its style and content term, None where the tap has no such term.
    """

    def __init__(
        self,
        tap: str,
        features: Float32,
        gradient: Float32,
        columns: tuple[int | None, int | None],
        kernels: Kernels,
    ) -> None:
        n, channels, _ = features.shape
        style, content = columns
        self._tap, self._features, self._gradient = tap, features, gradient
        self._style, self._content, self._kernels = style, content, kernels
        self._style_factor, self._content_factor = np.zeros(n), np.zeros(n)
        self._style_losses, self._content_losses = np.zeros(n), np.zeros(n)
        if style is not None:
            self._gram = aligned_zeros((n, channels, channels))
            self._target = aligned_zeros((n, channels, channels))
        if content is not None:
            self._target_features = aligned_zeros(features.shape)

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        if self._style is not None:
            np.copyto(self._target, targets.style[self._tap])
            np.copyto(self._style_factor, factors[:, self._style])
        if self._content is not None:
            _, channels, pixels = self._features.shape
            np.copyto(self._target_features, as_matrix(targets.content[self._tap]))
            # The term is a mean over elements, the kernel's a sum.
            np.copyto(self._content_factor, factors[:, self._content] / (channels * pixels))

    def run(self, terms: Float64) -> None:
        if self._style is None:
            self._kernels.content_gradient(
                self._features,
                self._target_features,
                self._content_factor,
                self._gradient,
                self._content_losses,
            )
        else:
            self._kernels.gram(self._features, self._gram)
            self._kernels.style_residual(
                self._gram, self._target, self._style_factor, self._style_losses
            )
            both = self._content is not None
            self._kernels.gram_gradient(
                self._features,
                self._gram,
                self._style_factor,
                self._gradient,
                content=self._target_features if both else None,
                content_coefficients=self._content_factor if both else None,
                content_losses=self._content_losses if both else None,
            )
            terms[:, self._style] = self._style_losses
        if self._content is not None:
            terms[:, self._content] = self._content_losses
