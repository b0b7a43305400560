"""Networks in torch that optimise and judge pictures: the teacher of vgg19-lite, or any pack.

:class:`Judge` scores pictures by such a network. :class:`TorchWorkspace` stands in for the
engine's, so that a picture optimised against a torch network goes through the very driver, schedule
and optimiser that nst-fast uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from nst_fast import images
from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.encoders import Encoder
from nst_fast.encoders.manifest import WEIGHTS, Tap
from nst_fast.evaluators import Evaluator
from nst_fast.graph.parts import IMAGE, IMAGE_GRADIENT
from nst_fast.host import Float32, Float64
from nst_fast.images import Picture
from nst_fast.losses import Goal, Objective, Targets, Weights, at_tap, moments
from nst_fast.plan import Plan
from nst_fast.windows import Windows
from nst_fast.workspace import Workspace

TEACHER_LAYERS = ("11", "12", "21", "22", "31", "32", "33", "34", "41", "42", "43", "44", "51")
CONTENT_TAP = "relu4_2"
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
        """What a verdict compares, by tap: contents at ``CONTENT_TAP``, styles at the others."""

    def style_map(self, tap: str) -> Float64:
        """H, (D, C+1), to the space in which an optimisation compares styles."""


def _tap(name: str) -> str:
    return f"relu{name[0]}_{name[1]}"


class Teacher:
    """The quarter-width VGG-19 of Wang et al. 2020, padding by reflection, as it was trained.

    With max pooling, too. Its verdict is through its 1×1 heads, which map its features to those of
    VGG-19. The heads are linear: no ReLU follows them.
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
        """Every ReLU output."""
        x = self._conv("0", image)
        taps: Features = {}
        for name in TEACHER_LAYERS:
            if name[0] != "1" and name[1] == "1":
                x = F.max_pool2d(x, 2)
            # One cell has no mirror image.
            mode = "reflect" if min(x.shape[2:]) > 1 else "replicate"
            x = F.relu(self._conv(name, F.pad(x, (1, 1, 1, 1), mode=mode)))
            taps[_tap(name)] = x
        return taps

    def judged(self, image: Tensor) -> Features:
        """The heads' outputs, 64 to 512 channels at relu1_1 to relu5_1, and relu4_2 as it is."""
        taps = self.features(image)
        heads = [name for name in TEACHER_LAYERS if f"conv{name}_aux.weight" in self._weights]
        found = {_tap(n): self._conv(f"{n}_aux", taps[_tap(n)]) for n in heads}
        return found | {CONTENT_TAP: taps[CONTENT_TAP]}

    def style_map(self, tap: str) -> Float64:
        """The head, in whose space the verdict is, and to which vgg19-lite's maps are fitted.

        An optimisation in the teacher's own channels would leave some of that to be had, and so
        flatter the routes that are measured against it.
        """
        name = f"conv{tap.removeprefix('relu').replace('_', '')}_aux"
        if f"{name}.weight" not in self._weights:
            channels = self.taps[tap].channels
            return np.eye(channels, channels + 1)
        weight, bias = (self._weights[f"{name}.{part}"].double() for part in ("weight", "bias"))
        found: Float64 = torch.cat([weight.flatten(1), bias[:, None]], dim=1).numpy()
        return found

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, self._weights[f"conv{name}.weight"], self._weights[f"conv{name}.bias"])


class PackNetwork:
    """The network of an encoder pack; its verdict is on its own taps."""

    def __init__(self, encoder: Encoder) -> None:
        """Read the weights of the pack."""
        self.name = encoder.name
        self.style_map = encoder.style_map
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
        """relu1_1 to relu5_1 in the style space of the pack, and relu4_2 as it is."""
        taps = self.features(image)
        found = {tap: self._mapped(tap, x) for tap, x in taps.items() if tap.endswith("_1")}
        return found | {CONTENT_TAP: taps[CONTENT_TAP]}

    def _mapped(self, tap: str, x: Tensor) -> Tensor:
        H = torch.from_numpy(self.style_map(tap)).float()
        return F.conv2d(x, H[:, :-1, None, None], H[:, -1])


def gram(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C, C), F Fᵀ / (C·P)."""
    f = x.flatten(2)
    return f @ f.transpose(1, 2) / (f.shape[1] * f.shape[2])


@dataclass(frozen=True)
class Score:
    """A judge's verdict on a picture: relative losses, 0 for a perfect match."""

    style: float
    content: float


class Judge:
    """Scores pictures for one pair, at one size.

    With h the features that a network judges by at a tap, h_s those of the style picture and s the
    root mean square of h_s, the style term of the tap is the one with the activation shift of
    Novak and Nikulin, "Improving the Neural Algorithm of Artistic Style", 2016::

        ‖G(h - s) - G(h_s - s)‖² / ‖G(h_s - s)‖²,    G(x) = x xᵀ / (C·P)

    The content loss is mean((h - h_c)²) / mean(h_c²) at ``CONTENT_TAP``, h_c the content picture's.
    Pictures are taken as they are, neither padded nor cropped: a pooling leaves out an odd line.
    """

    def __init__(self, network: Network, content: Picture, style: Picture) -> None:
        """Measure both pictures, which have the same longest side."""
        self._network = network
        found = self._features(style)
        self._shifts = {
            tap: x.square().mean().sqrt() for tap, x in found.items() if tap != CONTENT_TAP
        }
        self._style = self._grams(found)
        self._content = self._features(content)[CONTENT_TAP]

    @torch.no_grad()
    def _features(self, picture: Picture) -> Features:
        return self._network.judged(torch.from_numpy(images.to_tensor(picture.pixels)))

    def _grams(self, found: Features) -> Features:
        return {tap: gram(found[tap] - shift) for tap, shift in self._shifts.items()}

    def losses(self, picture: Picture) -> tuple[dict[str, float], float]:
        """The style term of every tap, and the content loss, of a picture of the content's size."""
        found = self._features(picture)
        grams = self._grams(found)
        style = {
            tap: float((grams[tap] - want).square().sum() / want.square().sum())
            for tap, want in self._style.items()
        }
        difference = (found[CONTENT_TAP] - self._content).square().mean()
        return style, float(difference / self._content.square().mean())

    def score(self, picture: Picture) -> Score:
        """The mean of the style terms, and the content loss."""
        style, content = self.losses(picture)
        return Score(sum(style.values()) / len(style), content)


@dataclass(frozen=True)
class TorchEncoder:
    """What the driver asks of an encoder pack."""

    network: Network
    digest: str = ""

    @property
    def name(self) -> str:
        """See ``Network``."""
        return self.network.name

    @property
    def taps(self) -> Mapping[str, Tap]:
        """See ``Network``."""
        return self.network.taps

    def style_map(self, tap: str) -> Float64:
        """See ``Network``."""
        return self.network.style_map(tap)


class TorchWorkspace(Workspace):
    """A workspace whose Plans and measurements torch computes."""

    def __init__(self, network: Network, backend: Backend) -> None:
        """Compute with ``network``; ``backend`` lends its kernels."""
        super().__init__(TorchEncoder(network), backend, "split")

    def take_plan(
        self, objective: Objective, canvas: Canvas, pictures: int, weighted: bool, side: int | None
    ) -> Plan:
        """A Plan whose loss and gradient at the taps are torch's."""
        return TorchPlan(self.encoder, objective, canvas, self.backend)

    def prepare_plan(
        self, objective: Objective, canvas: Canvas, pictures: int, weighted: bool
    ) -> None:
        """Nothing takes long to make."""

    def give_plan(self, plan: Plan) -> None:
        """Nothing is kept."""

    def budget(self, *run: object, **others: object) -> None:
        """What torch takes is not known."""

    def measure(
        self, image: Float32, objective: Objective, weights: Weights, side: int | None = None
    ) -> Targets:
        """What canvases (N, 3, H, W) have at the taps; seen as a whole."""
        with torch.no_grad():
            found = self.encoder.network.features(torch.from_numpy(image))
        features = {tap: found[tap].numpy() for tap in objective.taps}
        return Targets(
            {tap: _moments(features[tap], weights[tap]) for tap in objective.style},
            {tap: features[tap] for tap in objective.content},
        )


def _moments(features: Float32, weights: Float32) -> Float32:
    normalizers = moments.normalizer(features.shape[1], weights)
    return moments.moments(features, weights, normalizers).astype(np.float32)


class TorchPlan(Plan):
    """A Plan with torch in place of the sessions, and the losses' own references."""

    def __init__(
        self, encoder: TorchEncoder, objective: Objective, canvas: Canvas, backend: Backend
    ) -> None:
        """Build for one picture."""
        super().__init__(encoder, objective, canvas, backend, "split")
        self.kind = "torch"

    def _make_evaluator(self, backend: Backend, windows: Windows) -> Evaluator:
        return _Autograd(self._encoder.network, self.objective, windows)


class _Autograd:
    """Terms at the taps of one picture; autograd takes their gradients back to its canvas."""

    def __init__(self, network: Network, objective: Objective, windows: Windows) -> None:
        self._network, self._objective, self._windows = network, objective, windows

    def set_goal(self, goal: Goal) -> None:
        self._goal = goal

    def run(self, terms: Float64) -> None:
        self._windows.show(0)
        image = torch.from_numpy(self._windows.ends[IMAGE]).requires_grad_()
        taps = self._network.features(image)
        at_taps = []
        for index, (_, tap) in enumerate(self._objective.terms):
            features = taps[tap].detach().numpy()
            term, gradient = at_tap(self._objective, self._goal, index, features)
            terms[:, index] = self._goal.factors[:, index] * term
            at_taps.append(torch.from_numpy(gradient.astype(np.float32)))
        outputs = [taps[tap] for _, tap in self._objective.terms]
        (at_canvas,) = torch.autograd.grad(outputs, image, at_taps)
        self._windows.ends[IMAGE_GRADIENT][:] = at_canvas.numpy()
        self._windows.take_gradient(0)
