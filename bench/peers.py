"""The other side: the same loss and gradient by torch, in the three ways that people run it.

The network is the one of the encoder pack, cut after the deepest tap; autograd gives the
gradient. Whatever does not change from step to step is prepared before: targets, weights in
their memory format and precision, normalisation folded into the first convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from problem import Problem
from safetensors.torch import load_file
from torch import Tensor

from nst_fast.device import Float32
from nst_fast.encoders.manifest import WEIGHTS


class _Layer(NamedTuple):
    tap: str
    pooled: bool
    weight: Tensor
    bias: Tensor


class TorchStep:
    """Loss and gradient of one picture by eager torch.

    ``bf16`` runs under autocast with weights that are rounded already, which spares torch the
    casts. ``channels_last`` is the layout in which torch's bfloat16 convolutions are fastest.
    """

    def __init__(
        self, problem: Problem, *, channels_last: bool = False, bf16: bool = False
    ) -> None:
        """Copy the weights, the targets and the picture."""
        self._problem = problem
        self._bf16, self._channels_last = bf16, channels_last
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        weights = load_file(problem.encoder.path / WEIGHTS)
        kind = torch.bfloat16 if bf16 else torch.float32
        taps = list(problem.encoder.taps)
        self._layers = []
        for tap in taps[: 1 + max(map(taps.index, problem.objective.taps))]:
            place = tap.removeprefix("relu")
            weight, bias = (weights[f"conv{place}.{part}"].to(kind) for part in ("weight", "bias"))
            pooled = place.endswith("_1") and place != "1_1"
            weight = weight.contiguous(memory_format=self._format)
            self._layers.append(_Layer(tap, pooled, weight, bias))
        self._pool = F.avg_pool2d if problem.encoder.pooling == "average" else F.max_pool2d
        self._mean = weights["mean"]
        self._style = {k: torch.from_numpy(v[0]) for k, v in problem.targets.style.items()}
        self._content = {k: self._tensor(v) for k, v in problem.targets.content.items()}
        self._image = self._tensor(problem.image).requires_grad_()

    def step(self) -> float:
        """Evaluate; the gradient is in :attr:`gradient`."""
        self._image.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            loss = self._loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    @property
    def gradient(self) -> Float32:
        """Of the last step, (1, 3, H, W)."""
        assert self._image.grad is not None
        return np.ascontiguousarray(self._image.grad.numpy())

    def _tensor(self, array: Float32) -> Tensor:
        return torch.from_numpy(array.copy()).contiguous(memory_format=self._format)

    def _loss(self) -> Tensor:
        taps = self._features()
        terms = [
            (self._gram(taps[tap]) - gram).square().sum() for tap, gram in self._style.items()
        ] + [(taps[tap] - features).square().mean() for tap, features in self._content.items()]
        factors = map(float, self._problem.factors)
        return torch.stack([f * term for f, term in zip(factors, terms, strict=True)]).sum()

    def _features(self) -> dict[str, Tensor]:
        x = self._image - self._mean
        taps = {}
        for layer in self._layers:
            if layer.pooled:
                x = self._pool(x, 2)
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=1))
            taps[layer.tap] = x
        return taps

    def _gram(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        if self._channels_last:  # a view in either layout
            matrix = x.permute(0, 2, 3, 1).reshape(height * width, channels)
            return matrix.T @ matrix / matrix.numel()
        matrix = x.reshape(channels, height * width)
        return matrix @ matrix.T / matrix.numel()


PEERS: dict[str, Callable[[Problem], TorchStep]] = {
    "torch fp32": TorchStep,
    "torch fp32 channels_last": partial(TorchStep, channels_last=True),
    "torch bf16 channels_last": partial(TorchStep, channels_last=True, bf16=True),
}
