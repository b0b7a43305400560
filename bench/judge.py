"""Networks in torch that optimise and judge pictures: the teacher of vgg19-lite, or any pack.

:class:`TorchWorkspace` stands in for the engine's, so that a picture optimised against a torch
network goes through the very driver, schedule and optimiser that nst-fast uses.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from nst_fast.device import Float32, Float64
from nst_fast.encoders import Encoder
from nst_fast.encoders.manifest import WEIGHTS, Tap
from nst_fast.graphs import Shape
from nst_fast.losses import Objective, Targets
from nst_fast.plan import Backend, Evaluator, Plan

TEACHER_LAYERS = ("11", "12", "21", "22", "31", "32", "33", "34", "41", "42", "43", "44", "51")
Features = dict[str, Tensor]
Value = TypeVar("Value")


class Network(Protocol):
    """A VGG in torch.

    Attributes:
        name: for tables.
        taps: channels and stride by tap, in network order.
    """

    name: str
    taps: Mapping[str, Tap]

    def features(self, image: Tensor) -> Features:
        """Taps of (N, 3, H, W) in [0, 1]: what an optimisation compares."""

    def judged(self, image: Tensor) -> Features:
        """Features that a verdict compares, by tap."""


def _tap(name: str) -> str:
    return f"relu{name[0]}_{name[1]}"


class Teacher:
    """The quarter-width VGG-19 of Wang et al. 2020, with average pooling.

    Its verdict goes through its 1×1 heads, which approximate the features of VGG-19 itself.
    """

    name = "teacher"

    def __init__(self, path: Path) -> None:
        """Read ``teacher.safetensors``."""
        self._weights = load_file(path)
        self.taps = {
            _tap(name): Tap(self._weights[f"conv{name}.bias"].numel(), 2 ** (int(name[0]) - 1))
            for name in TEACHER_LAYERS
        }

    def features(self, image: Tensor) -> Features:
        """Every ReLU output; padding by reflection, as it was trained."""
        x = self._conv("0", image)
        taps: Features = {}
        for name in TEACHER_LAYERS:
            if name[0] != "1" and name[1] == "1":
                x = F.avg_pool2d(x, 2)
            x = F.relu(self._conv(name, F.pad(x, (1, 1, 1, 1), mode="reflect")))
            taps[_tap(name)] = x
        return taps

    def judged(self, image: Tensor) -> Features:
        """The heads' outputs: 64 to 512 channels at relu1_1 to relu5_1."""
        taps = self.features(image)
        heads = [name for name in TEACHER_LAYERS if f"conv{name}_aux.weight" in self._weights]
        return {_tap(n): F.relu(self._conv(f"{n}_aux", taps[_tap(n)])) for n in heads}

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, self._weights[f"conv{name}.weight"], self._weights[f"conv{name}.bias"])


class PackNetwork:
    """The network of an encoder pack; its verdict is on its own taps."""

    def __init__(self, encoder: Encoder) -> None:
        """Read the weights of the pack."""
        self.name = encoder.name
        self.taps = encoder.taps
        self._weights = {k: v.float() for k, v in load_file(encoder.path / WEIGHTS).items()}
        self._pool = F.avg_pool2d if encoder.pooling == "average" else F.max_pool2d

    def features(self, image: Tensor) -> Features:
        """Every ReLU output."""
        x = image - self._weights["mean"]
        taps: Features = {}
        stride = 1
        for tap, info in self.taps.items():
            place = tap.removeprefix("relu")
            if info.stride > stride:
                x = self._pool(x, 2)
                stride = info.stride
            weight, bias = (self._weights[f"conv{place}.{part}"] for part in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            taps[tap] = x
        return taps

    def judged(self, image: Tensor) -> Features:
        """relu1_1 to relu5_1."""
        return {tap: x for tap, x in self.features(image).items() if tap.endswith("_1")}


def gram(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C, C), F Fᵀ / (C·P)."""
    f = x.flatten(2)
    return f @ f.transpose(1, 2) / (f.shape[1] * f.shape[2])


class TorchWorkspace:
    """What :class:`nst_fast.engine.Run` needs of a workspace, computed by torch."""

    def __init__(self, network: Network, backend: Backend) -> None:
        """Compute with ``network``; ``backend`` lends its kernels."""
        self._network = network
        self.encoder = SimpleNamespace(name=network.name, taps=network.taps, digest="")
        self.backend = backend

    def fit(self, objective: Objective, shape: Shape, make: Callable[[int | None], Value]) -> Value:
        """Make something for whole images: they are small."""
        return make(None)

    def take_plan(self, objective: Objective, shape: Shape, side: int | None) -> Plan:
        """A Plan whose loss and gradient at the taps are torch's."""
        return TorchPlan(self._network, objective, shape, self.backend)

    def give_plan(self, plan: Plan) -> None:
        """Nothing is kept."""

    def style_grams(
        self, key: Hashable, compute: Callable[[], dict[str, Float32]]
    ) -> dict[str, Float32]:
        """Gram matrices of a style, computed anew."""
        return compute()

    def measure(self, image: Float32, objective: Objective) -> Targets:
        """What an image (N, 3, H, W) has at the taps; pictures of a judge have no alpha."""
        with torch.no_grad():
            found = self._network.features(torch.from_numpy(image))
            grams = {tap: gram(found[tap]).numpy() for tap in objective.style}
        return Targets(grams, {tap: found[tap].contiguous().numpy() for tap in objective.content})


class TorchPlan(Plan):
    """A Plan with torch's autograd in place of the sessions."""

    def __init__(
        self, network: Network, objective: Objective, shape: Shape, backend: Backend
    ) -> None:
        """Build for images of one shape, N, H, W."""
        self._network = network
        super().__init__(SimpleNamespace(taps=network.taps), objective, shape, backend)
        self.kind = "torch"

    def _make_evaluator(self, encoder: Encoder, shape: Shape, backend: Backend) -> Evaluator:
        return _Autograd(self._network, self)


class _Autograd:
    """Terms at the taps of one image, and their gradient, by autograd."""

    def __init__(self, network: Network, plan: Plan) -> None:
        self._network, self._plan = network, plan

    def set_targets(self, targets: Targets, factors: Float64) -> None:
        self._targets = [
            *((tap, True, torch.from_numpy(t)) for tap, t in targets.style.items()),
            *((tap, False, torch.from_numpy(t)) for tap, t in targets.content.items()),
        ]
        self._factors = torch.from_numpy(factors[0])

    def run(self, terms: Float64) -> None:
        image = torch.from_numpy(self._plan.image).requires_grad_()
        taps = self._network.features(image)
        values = [
            (gram(taps[tap]) - target).square().sum()
            if style
            else (taps[tap] - target).square().mean()
            for tap, style, target in self._targets
        ]
        weighted = torch.stack(values) * self._factors
        (gradient,) = torch.autograd.grad(weighted.sum(), image)
        self._plan.gradient[:] = gradient.numpy()
        terms[0] = weighted.detach().numpy()
