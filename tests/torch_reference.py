"""The objective once more: torch autograd in float64, a plain VGG, the formulas as published."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
        pooling: str = "average",
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

    def clear_image(self, image: Array, seed: int, margin: float = 1e-6) -> Array:
        """The image, moved a little (in float32) until it is clear of every kink."""
        rng = np.random.default_rng(seed)
        for _ in range(40):
            moved = (image + 0.01 * rng.standard_normal(image.shape)).astype(np.float32)
            if self.clearance(moved) > margin:
                return moved
        raise AssertionError(f"no image clear of kinks by {margin} in 40 tries from seed {seed}")


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


def gram(features: Tensor) -> Tensor:
    """G = F Fᵀ / (C·H·W) of (N, C, H, W)."""
    n, channels, height, width = features.shape
    matrix = features.reshape(n, channels, height * width)
    return torch.einsum("ncp,ndp->ncd", matrix, matrix) / (channels * height * width)


def style_targets(network: Network, image: Array, taps: Mapping[str, Any]) -> dict[str, Array]:
    """Gram matrices of a style image, rounded to float32 as the product keeps them."""
    features = network(tensor(image))
    return {tap: gram(features[tap]).numpy().astype(np.float32) for tap in taps}


def content_targets(network: Network, image: Array, taps: Mapping[str, Any]) -> dict[str, Array]:
    """Taps of a content image, rounded to float32."""
    features = network(tensor(image))
    return {tap: features[tap].numpy().astype(np.float32) for tap in taps}


def scale(normalization: str, power: Tensor) -> Tensor:
    """Factor of a term, given ‖T‖² of its target, or mean F_c²."""
    return {"relative": 1 / power, "gram": torch.ones_like(power)}.get(
        normalization, torch.full_like(power, 0.25)
    )


def total_variation(image: Tensor) -> Tensor:
    """Squared differences to the right and lower neighbour, over the values of an image."""
    across = (image[..., 1:] - image[..., :-1]).square().sum(dim=(1, 2, 3))
    down = (image[:, :, 1:] - image[:, :, :-1]).square().sum(dim=(1, 2, 3))
    return (across + down) / image[0].numel()


def range_penalty(image: Tensor) -> Tensor:
    """Squared distance to [0, 1], mean over the values of an image."""
    return (image - image.clamp(0, 1)).square().mean(dim=(1, 2, 3))


def terms(
    network: Network,
    objective: Any,
    image: Tensor,
    style: Mapping[str, Array],
    content: Mapping[str, Array],
) -> dict[str, Tensor]:
    """Weighted terms (N,) by name; ``objective`` gives the weights and the normalisation."""
    features = network(image)
    result = {}
    for tap, weight in objective.style.items():
        target = tensor(style[tap])
        factor = scale(objective.normalization, target.square().sum(dim=(1, 2)))
        residual = gram(features[tap]) - target
        result[f"style/{tap}"] = weight * factor * residual.square().sum(dim=(1, 2))
    for tap, weight in objective.content.items():
        target = tensor(content[tap])
        factor = scale(objective.normalization, target.square().mean(dim=(1, 2, 3)))
        difference = features[tap] - target
        result[f"content/{tap}"] = weight * factor * difference.square().mean(dim=(1, 2, 3))
    result["tv"] = objective.tv * total_variation(image)
    result["range"] = objective.range * range_penalty(image)
    return result


def evaluate(
    network: Network,
    objective: Any,
    image: Array,
    style: Mapping[str, Array],
    content: Mapping[str, Array],
) -> tuple[Array, Array]:
    """Weighted terms (N, K) in the order of ``objective.names()``, and the gradient of their sum.

    The images of a batch do not depend on each other: the gradient is each one's own.
    """
    x = tensor(image).requires_grad_()
    found = terms(network, objective, x, style, content)
    stacked = torch.stack([found[name] for name in objective.names()], dim=1)
    (gradient,) = torch.autograd.grad(stacked.sum(), x)
    return stacked.detach().numpy(), gradient.numpy()
