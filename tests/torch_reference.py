"""The objective once more: torch autograd in float64, a plain VGG, the formulas as published."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
POOLED = ("conv2_1", "conv3_1", "conv4_1", "conv5_1")  # VGG: the first of each later block
LITE_POOLED = ("conv2_1", "conv3_1", "conv4_1", "conv4_3")
Taps = dict[str, Tensor]
Array = NDArray[Any]


def tensor(value: ArrayLike) -> Tensor:
    return torch.tensor(np.asarray(value, np.float64))


def he_weights(widths: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Random float32 weights of 3×3 convolutions, given the channels of each in order.

    Scaled as in He et al. 2015, so that the deepest tap is as large as the first.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    channels = 3
    for conv, width in widths.items():
        kernel = rng.standard_normal((width, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        weights[f"{conv}.weight"] = kernel.astype(np.float32)
        weights[f"{conv}.bias"] = (0.05 * rng.standard_normal(width)).astype(np.float32)
        channels = width
    return weights


class Network:
    """VGG by its weights ``convB_I.weight`` and ``convB_I.bias``: 3×3 convolutions, ReLU, pooling.

    ``pooled`` names the convolutions that read a pooled map. ``std`` is divided by here; a pack
    has it in its weights.
    """

    def __init__(
        self,
        weights: Mapping[str, ArrayLike],
        pooling: str = "max",
        mean: ArrayLike = IMAGENET_MEAN,
        std: ArrayLike = (1.0, 1.0, 1.0),
        pooled: Collection[str] = POOLED,
    ) -> None:
        self.weights = {name: tensor(value) for name, value in weights.items() if name != "mean"}
        self.convs = sorted(name[:-7] for name in self.weights if name.endswith(".weight"))
        self.taps = [conv.replace("conv", "relu") for conv in self.convs]
        self.pooling = pooling
        self.pooled = pooled
        self.mean, self.std = (tensor(v).reshape(1, 3, 1, 1) for v in (mean, std))

    def _layers(self, image: Tensor) -> tuple[Taps, Taps]:
        """Values before and after the ReLU of every layer."""
        before, after = {}, {}
        x = (image - self.mean) / self.std
        for conv, tap in zip(self.convs, self.taps, strict=True):
            if conv in self.pooled:
                x = F.avg_pool2d(x, 2) if self.pooling == "average" else F.max_pool2d(x, 2)
            before[tap] = F.conv2d(
                x, self.weights[f"{conv}.weight"], self.weights[f"{conv}.bias"], padding=1
            )
            x = after[tap] = F.relu(before[tap])
        return before, after

    def __call__(self, image: Tensor) -> Taps:
        return self._layers(image)[1]

    def features(self, image: Array) -> dict[str, Array]:
        return {tap: value.numpy() for tap, value in self(tensor(image)).items()}

    def vjp(self, image: Array, gradients: Mapping[str, ArrayLike]) -> Array:
        """Σ J_tapᵀ d_tap at the image, by autograd."""
        x = tensor(image).requires_grad_()
        taps = self(x)
        total = sum((tensor(d) * taps[tap]).sum() for tap, d in gradients.items())
        return torch.autograd.grad(total, x)[0].numpy()

    def clearance(self, image: Array) -> float:
        """How near the image is to a kink of a ReLU or of max pooling, in units of each layer.

        At a kink the gradient jumps, and no two precisions need agree.
        """
        before, after = self._layers(tensor(image))
        found = []
        for (tap, x), following in zip(before.items(), [*self.convs[1:], ""], strict=True):
            found.append(float(x.abs().min() / x.square().mean().sqrt()))
            if self.pooling == "max" and following in self.pooled:
                n, channels, height, width = x.shape
                cells = after[tap].reshape(n, channels, height // 2, 2, width // 2, 2)
                top = cells.transpose(3, 4).flatten(4).sort(dim=-1).values
                gap = (top[..., 3] - top[..., 2])[top[..., 3] > 0]
                found.append(float(gap.min() / x.square().mean().sqrt()))
        return min(found)

    def clear_image(
        self,
        image: Array,
        seed: int,
        margin: float = 3e-6,
        see: Callable[[Array], Array] = lambda image: image,
    ) -> Array:
        """The image, moved a little (in float32) until what the network sees is clear of kinks."""
        rng = np.random.default_rng(seed)
        for _ in range(100):
            moved = (image + 0.01 * rng.standard_normal(image.shape)).astype(np.float32)
            if self.clearance(see(moved)) > margin:
                return moved
        raise AssertionError(f"no image clear of kinks by {margin} in 100 tries from seed {seed}")


def waves(seed: int, *shape: int) -> Array:
    """Smooth random images (N, 3, H, W) in [0, 1], float32: low frequencies and a little noise."""
    rng = np.random.default_rng(seed)
    n, channels, height, width = shape
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    image = 0.5 + 0.02 * rng.standard_normal(shape)
    for order in range(1, 6):
        fx, fy = rng.uniform(-order, order, 2)
        phase = rng.uniform(0, 2 * np.pi, (n, channels, 1, 1))
        image += 0.15 / order * np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    return image.clip(0, 1).astype(np.float32)


def moments(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """M = Σ_p m f̃ f̃ᵀ / (C·Σm) of (N, C, H, W), f̃ = [f; 1]; weights (1 or N, H, W)."""
    n, channels, height, width = features.shape
    m = torch.ones(n, height, width, dtype=features.dtype) if weights is None else weights
    m = m.expand(n, height, width).flatten(1)
    matrix = torch.cat([features.flatten(2), torch.ones_like(features.flatten(2)[:, :1])], dim=1)
    outer = torch.einsum("ncp,np,ndp->ncd", matrix, m, matrix)
    return outer / (channels * m.sum(dim=1))[:, None, None]


def power(S: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(S)
    return vectors * values**exponent @ vectors.T


def gram_distance(G: Tensor, mean: Tensor, T: Tensor, target: Tensor, channels: int) -> Tensor:
    """‖G − T‖² (Gatys et al. 2016, equation 5)."""
    return (G - T).square().sum()


def whitened_distance(G: Tensor, mean: Tensor, T: Tensor, target: Tensor, channels: int) -> Tensor:
    """‖W (G − T) W‖², W = (T + 0.3·mean eigenvalue·I)^(−1/2)."""
    W = power(T + 0.3 * T.trace() / len(T) * torch.eye(len(T), dtype=T.dtype), -0.5)
    return (W @ (G - T) @ W).square().sum()


def wasserstein_distance(
    G: Tensor, mean: Tensor, T: Tensor, target: Tensor, channels: int
) -> Tensor:
    """(‖μ − μ_t‖² + tr(Σ' + Σ'_t − 2(Σ'_t^½ Σ' Σ'_t^½)^½))/D, Σ' = Σ + 0.01·tr Σ_t/C·I."""
    D = len(T)
    covariance, style = D * G - torch.outer(mean, mean), D * T - torch.outer(target, target)
    unit = torch.eye(D, dtype=T.dtype)
    ridge = 0.01 * style.trace() / channels * unit
    root = power(style + ridge, 0.5)
    cross = torch.linalg.eigvalsh(root @ (covariance + ridge) @ root).clamp_min(0).sqrt().sum()
    apart = (mean - target).square().sum() + (covariance + style + 2 * ridge).trace()
    return (apart - 2 * cross) / D


DISTANCES = {
    "gram": gram_distance,
    "whitened": whitened_distance,
    "wasserstein": wasserstein_distance,
}


def style_term(
    name: str, features: Tensor, weights: Tensor, T: Tensor, H: Tensor, shift: float
) -> tuple[Tensor, Tensor]:
    """Distance of one picture from a style, and its value where there are no features at all.

    The channels in which styles are compared are made for each pixel, h = H f̃ − s.

    Args:
        name: of the style loss.
        features: (C, P).
        weights: (P,).
        T: moments of the style, (C+1, C+1).
        H: to the space of styles, (D, C+1).
        shift: s over the root mean square of the style's h.
    """
    D, C = H.shape[0], H.shape[1] - 1
    matrix, offset = H[:, :C], H[:, C]
    squares = (H @ (C * T) @ H.T).trace() / D
    offset = offset - shift * squares.clamp_min(0).sqrt()
    shares = weights / weights.sum()
    h = matrix @ features + offset[:, None]
    whole = torch.cat([matrix, offset[:, None]], dim=1)
    target = whole @ (C * T) @ whole.T / D, whole @ (C * T)[:, C]
    distance = DISTANCES[name]
    term = distance((h * shares) @ h.T / D, h @ shares, *target, C)
    # Moments of 0 have no 1 in f̃ either: the mean, which no shift changes, is that of H f.
    empty = torch.zeros(D, D, dtype=T.dtype), torch.zeros(D, dtype=T.dtype)
    if name == "wasserstein":
        mean = matrix @ (C * T)[:C, C]
        covariance = D * target[0] - torch.outer(target[1], target[1])
        target = (covariance + torch.outer(mean, mean)) / D, mean
    return term, distance(*empty, *target, C)


def scale(normalization: str, power: Tensor) -> Tensor:
    """Factor of a term, given the term of a picture without features, or mean F_c²."""
    return {"relative": 1 / power, "gram": torch.ones_like(power)}.get(
        normalization, torch.full_like(power, 0.25)
    )


def total_variation(image: Tensor) -> Tensor:
    """Lengths of the differences to the right and lower neighbour, rounded; mean of an image."""
    right = image.diff(dim=3, append=image[..., -1:])
    below = image.diff(dim=2, append=image[:, :, -1:])
    return (0.02**2 + right**2 + below**2).sqrt().mean(dim=(1, 2, 3)) - 0.02


def range_penalty(image: Tensor) -> Tensor:
    """Squared distance to [0, 1], mean over the values of an image."""
    return (image - image.clamp(0, 1)).square().mean(dim=(1, 2, 3))


def mirrored(image: Tensor, canvas: Any) -> Tensor:
    """The canvas of images, by numpy's padding of positions."""
    sides = []
    for length, before, total in zip(
        (canvas.height, canvas.width), (canvas.top, canvas.left), canvas.size, strict=True
    ):
        around = before, total - length - before
        sides.append(torch.from_numpy(np.pad(np.arange(length), around, mode="reflect")))
    return image[..., sides[0], :][..., sides[1]]


def terms(
    network: Network,
    encoder: Any,
    objective: Any,
    image: Tensor,
    canvas: Any,
    targets: Any,
    weights: Mapping[str, Array],
) -> dict[str, Tensor]:
    """Weighted terms (N,) by name; ``objective`` gives weights, loss, space and normalisation.

    Targets and weights are of all pictures where their first dimension is 1.
    """
    features = network(mirrored(image, canvas))
    count = len(image)
    result = {}
    for site, weight in objective.style.items():
        tap = site.split("/")[0]
        C = features[tap].shape[1]
        H = tensor(encoder.style_map(tap) if objective.mapped else np.eye(C, C + 1))
        cells, whole = (tensor(weights[at]).flatten(1).expand(count, -1) for at in (site, tap))
        T = tensor(targets.style[site]).expand(count, C + 1, C + 1)
        found = [
            style_term(objective.style_loss, F.flatten(1), m, t, H, objective.shift)
            for F, m, t in zip(features[tap], cells, T, strict=True)
        ]
        term, reference = (torch.stack(values) for values in zip(*found, strict=True))
        of_area = weight * cells.sum(dim=1) / whole.sum(dim=1)
        result[f"style/{site}"] = of_area * scale(objective.normalization, reference) * term
    for tap, weight in objective.content.items():
        C = features[tap].shape[1]
        target, cells = tensor(targets.content[tap]), tensor(weights[tap])[:, None]
        total = C * cells.sum(dim=(1, 2, 3))
        of_target = (target.square() * cells).sum(dim=(1, 2, 3)) / total
        difference = (features[tap] - target).square() * cells
        factor = weight * scale(objective.normalization, of_target)
        result[f"content/{tap}"] = factor * difference.sum(dim=(1, 2, 3)) / total
    relative = objective.normalization == "relative"
    result["tv"] = objective.tv * total_variation(image) / (targets.variation if relative else 1)
    result["range"] = objective.range * range_penalty(image)
    return result


def evaluate(
    network: Network, encoder: Any, objective: Any, image: Array, *places: Any
) -> tuple[Array, Array]:
    """Weighted terms (N, K) in the order of ``objective.names()``, and the gradient of their sum.

    ``places`` are canvas, targets and weights. The images of a batch do not depend on each other:
    the gradient is each one's own.
    """
    x = tensor(image).requires_grad_()
    found = terms(network, encoder, objective, x, *places)
    stacked = torch.stack([found[name] for name in objective.names()], dim=1)
    (gradient,) = torch.autograd.grad(stacked.sum(), x)
    return stacked.detach().numpy(), gradient.numpy()
