"""The same loss and gradient by torch, in the ways that people run it.

The network is the one of the encoder pack, cut after the deepest tap; autograd gives the
gradient. Whatever does not change from step to step is prepared before: targets, the matrices of
the style loss, weights in their memory format and precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from nst_fast.bench.findings import Device
from nst_fast.bench.problem import Problem
from nst_fast.encoders import Encoder
from nst_fast.encoders.manifest import WEIGHTS
from nst_fast.host import Float32


def multiply_in_tf32(allowed: bool) -> None:
    """Let a GPU round float32 to TF32 in products and convolutions, or not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class _Layer(NamedTuple):
    tap: str
    pooled: bool
    weight: Tensor
    bias: Tensor


class Network:
    """An encoder pack's VGG on torch, up to the deepest of the taps asked for."""

    def __init__(
        self,
        encoder: Encoder,
        taps: Iterable[str],
        kind: torch.dtype,
        layout: torch.memory_format,
        device: Device = "cpu",
    ) -> None:
        """Read the weights; those rounded to ``kind`` beforehand spare autocast the casts."""
        weights = load_file(encoder.path / WEIGHTS, device)
        names = list(encoder.taps)
        self._layout = layout
        self._layers = []
        stride = 1
        for tap in names[: 1 + max(map(names.index, taps))]:
            place = tap.removeprefix("relu")
            weight, bias = (weights[f"conv{place}.{part}"].to(kind) for part in ("weight", "bias"))
            pooled = encoder.taps[tap].stride > stride
            stride = encoder.taps[tap].stride
            self._layers.append(_Layer(tap, pooled, weight.contiguous(memory_format=layout), bias))
        self._pool = F.avg_pool2d if encoder.pooling == "average" else F.max_pool2d
        self._mean = weights["mean"]

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Every tap of images (N, 3, H, W) in [0, 1]."""
        x = (image - self._mean).contiguous(memory_format=self._layout)
        taps = {}
        for layer in self._layers:
            if layer.pooled:
                x = self._pool(x, 2)
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=1))
            taps[layer.tap] = x
        return taps


def gram(x: Tensor) -> Tensor:
    """Gram matrices of features (N, C, H, W), over C·H·W; a product of views.

    (C, C) of one picture, (N, C, C) of several.
    """
    matrix = _matrix(x)
    return matrix @ matrix.mT / x[0].numel()


def moments(x: Tensor) -> Tensor:
    """Gram matrices with the mean beside them, in float32: Σ f̃ f̃ᵀ/(C·H·W) with f̃ = [f; 1].

    (C+1, C+1) of one picture, (N, C+1, C+1) of several.
    """
    channels, matrix = x.shape[1], _matrix(x)
    product = gram(x).float()
    mean = matrix.mean(dim=-1, dtype=torch.float32)[..., None] / channels
    corner = torch.full_like(mean[..., :1, :], 1 / channels)
    return torch.cat([torch.cat([product, mean], -1), torch.cat([mean.mT, corner], -1)], -2)


def _matrix(x: Tensor) -> Tensor:
    """Features (N, C, H, W) as (C, P), or (N, C, P) of several pictures, without a copy."""
    count, channels, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        matrices = x.permute(0, 2, 3, 1).reshape(count, height * width, channels).mT
    else:
        matrices = x.reshape(count, channels, height * width)
    return matrices[0] if count == 1 else matrices


class TorchStep:
    """Loss and gradient of pictures.

    ``bf16`` runs under autocast; ``tf32`` lets a GPU multiply float32 so. ``channels_last`` is the
    layout in which torch's bfloat16 convolutions are fastest. ``compiled`` puts network and loss
    through torch.compile, on a GPU with CUDA graphs.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        channels_last: bool = False,
        bf16: bool = False,
        tf32: bool = False,
        compiled: bool = False,
        device: Device = "cpu",
    ) -> None:
        """Copy the weights, the targets and the pictures."""
        torch.set_num_threads(problem.threads)
        self._bf16, self._tf32, self._device = bf16, tf32, device
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        kind = torch.bfloat16 if bf16 else torch.float32
        self._network = Network(problem.encoder, problem.objective.taps, kind, self._layout, device)
        self._factors = [float(factor) for factor in problem.goal.factors[0]]
        self._style = {
            tap: [torch.from_numpy(constants[name][0]).float().to(device) for name in ("T", "K")]
            for tap, constants in problem.goal.constants.items()
        }
        self._content = {k: self._tensor(v) for k, v in problem.goal.content.items()}
        self._image = self._tensor(problem.image).requires_grad_()
        mode = "reduce-overhead" if device == "cuda" else None  # CUDA graphs
        self._evaluate = (
            torch.compile(self._loss, dynamic=False, mode=mode) if compiled else self._loss
        )

    def step(self) -> float:
        """Evaluate; the gradient is in :attr:`gradient`. Waits for a GPU, as the loss is read."""
        return float(self._run())

    def run(self) -> None:
        """Evaluate; a GPU is handed the work and not waited for."""
        self._run()

    def _run(self) -> Tensor:
        self._image.grad = None
        if self._device == "cuda":
            multiply_in_tf32(self._tf32)
            torch.compiler.cudagraph_mark_step_begin()  # the last gradient may be overwritten
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
            loss = self._evaluate(self._image)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def place(self, image: Float32) -> None:
        """Evaluate there from now on."""
        with torch.no_grad():
            self._image.copy_(torch.from_numpy(image))

    @property
    def gradient(self) -> Float32:
        """Of the last step, (N, 3, H, W)."""
        assert self._image.grad is not None
        return np.ascontiguousarray(self._image.grad.cpu().numpy())

    def _tensor(self, array: Float32) -> Tensor:
        tensor = torch.from_numpy(array.copy()).to(self._device)
        return tensor.contiguous(memory_format=self._layout)

    def _loss(self, image: Tensor) -> Tensor:
        taps = self._network(image)
        terms = [self._distance(taps[tap], T, K) for tap, (T, K) in self._style.items()]
        count = len(image)  # every picture has the mean over its own features
        terms += [count * (taps[tap] - kept).square().mean() for tap, kept in self._content.items()]
        pairs = zip(self._factors, terms, strict=True)
        return torch.stack([factor * term for factor, term in pairs]).sum()

    def _distance(self, x: Tensor, T: Tensor, K: Tensor) -> Tensor:
        """tr(K R K R) of R = M − T, the squared distance of Gram matrices in the space of styles.

        These matrices are small, and bfloat16 would spoil their difference: no autocast.
        """
        M = moments(x)
        with torch.autocast(self._device, enabled=False):
            R = M - T
            return (R * (K @ R @ K)).sum()
