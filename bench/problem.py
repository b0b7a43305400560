"""What is timed: one picture, one objective, one encoder, the same for us and for the peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from nst_fast import encoders, images
from nst_fast.config import PrecisionName, StyleSettings
from nst_fast.device import Float32, Float64
from nst_fast.encoders import Encoder
from nst_fast.errors import EncoderError
from nst_fast.kernels import cpu_kernels
from nst_fast.losses import Objective, Targets, coefficients, style_target
from nst_fast.optimizers import Lbfgs
from nst_fast.plan import Backend, FeatureExtractor, Plan
from nst_fast.runtime import choose

HISTORY = 10  # pairs of L-BFGS
SETTINGS = StyleSettings(
    style_layers={f"relu{block}_1": 0.2 for block in range(1, 6)},
    content_layers={"relu4_2": 1.0},
    tv_weight=0.0,
)


@dataclass(frozen=True)
class Problem:
    """An evaluation of loss and gradient, without total variation.

    Attributes:
        encoder: the network.
        objective: style at relu1_1 to relu5_1, content at relu4_2.
        targets: from two other pictures.
        factors: (K,), of the unweighted terms, style before content.
        image: (1, 3, H, W) float32 in [0, 1].
    """

    encoder: Encoder
    objective: Objective
    targets: Targets
    factors: Float64
    image: Float32


class Step(Protocol):
    """One side of a comparison."""

    def step(self) -> float:
        """Evaluate and return the loss."""

    @property
    def gradient(self) -> Float32:
        """Of the last step, (1, 3, H, W)."""


def backend(precision: PrecisionName, threads: int) -> Backend:
    """What nst-fast itself chooses here for this precision."""
    return Backend(*choose("auto", precision), threads, cpu_kernels(threads))


def smooth_picture(size: int, seed: int) -> Float32:
    """Random blobs of colour, (size, size, 3) in [0, 1]."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    large = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    return images.load(large).pixels


def make_problem(encoder: Encoder, size: int, threads: int) -> Problem:
    """Pose the problem for a square picture; ``size`` is a multiple of 16 pixels."""
    objective = Objective.from_settings(SETTINGS, encoder)
    chosen = backend("fp32", threads)
    extract = FeatureExtractor(
        encoder, objective.taps, (1, size, size), chosen.provider, chosen.threads
    )
    image, content, style = (images.to_tensor(smooth_picture(size, seed)) for seed in range(3))
    grams = style_target(extract(style), list(objective.style), chosen.kernels)
    features = extract(content)
    targets = Targets(grams, {tap: features[tap].copy() for tap in objective.content})
    return Problem(encoder, objective, targets, coefficients(objective, targets)[0], image)


class OurStep:
    """Loss and gradient by a Plan."""

    def __init__(self, problem: Problem, chosen: Backend) -> None:
        """Build the Plan that nst-fast takes by default."""
        self.plan = Plan(problem.encoder, problem.objective, (1, *problem.image.shape[2:]), chosen)
        self.plan.set_targets(problem.targets)
        np.copyto(self.plan.image, problem.image)

    def step(self) -> float:
        """Evaluate; the gradient is in :attr:`gradient`."""
        return float(self.plan.value_and_grad()[0])

    @property
    def gradient(self) -> Float32:
        """Of the last step, (1, 3, H, W)."""
        return self.plan.gradient


def with_lbfgs(ours: OurStep, chosen: Backend) -> Callable[[], object]:
    """Make a whole step of optimisation, its history full."""
    optimizer = Lbfgs(ours.plan.image.reshape(-1), chosen.kernels, history=HISTORY)

    def step() -> None:
        optimizer.step(ours.step(), ours.gradient.reshape(-1))

    for _ in range(HISTORY + 2):
        step()
    return step


def vgg19(folder: Path) -> tuple[Encoder, str]:
    """Load VGG-19 from the cache, or build it in ``folder`` with random weights; and say which."""
    try:
        return encoders.load("vgg19"), "from the cache"
    except EncoderError:
        return random_pack(
            folder, "vgg19"
        ), "random (He et al. 2015): speed does not depend on them"


def random_pack(folder: Path, architecture: str) -> Encoder:
    """Build a pack in ``folder`` with random weights (He et al. 2015)."""
    import torch
    from safetensors.torch import save_file

    from nst_fast.export import build_pack
    from nst_fast.export.vgg import ARCHITECTURES

    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in ARCHITECTURES[architecture].layers():
        shape = (layer.out_channels, layer.in_channels, 3, 3)
        deviation = (2 / (9 * layer.in_channels)) ** 0.5
        weights[f"{layer.conv}.weight"] = deviation * torch.randn(shape, generator=generator)
        weights[f"{layer.conv}.bias"] = 0.01 * torch.randn(layer.out_channels, generator=generator)
    checkpoint, pack = folder / "random.safetensors", folder / "pack"
    save_file(weights, checkpoint)
    pack.mkdir()
    build_pack(
        pack, checkpoint, name=architecture, architecture=architecture, source="random",
        licence="none",
    )  # fmt: skip
    return encoders.load(pack)
