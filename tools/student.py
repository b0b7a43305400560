"""The student of tools/train_encoder.py, its teacher, the data and the losses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nst_fast.errors import EncoderError
from nst_fast.export.vgg import VGG19_LITE, Layer

TEACHER_LAYERS = ("11", "12", "21", "22", "31", "32", "33", "34", "41", "42", "43", "44", "51")
# The layout that learns: the teacher's widths but for relu3_3's.
TRAINED = replace(VGG19_LITE, blocks=((16,) * 2, (32,) * 2, (64, 64, 48, 64), (128,) * 4, (128,)))
LAYERS = list(TRAINED.layers())
CONVS = [layer.conv for layer in LAYERS]
# Maps of other sizes than the teacher's, which pools before each block and has these widths.
TEACHER_WIDTHS = (16, 32, 64, 128, 128)
UNTAUGHT = [
    y.tap
    for y in LAYERS
    if y.stride != 2 ** (y.block - 1) or y.out_channels != TEACHER_WIDTHS[y.block - 1]
]
TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu4_2", "relu5_1")  # with a Gram loss
HEADS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
POOL_BEFORE = ("21", "31", "41", "51")
OPTIMISED_SHARE = 0.5
HELD_OUT_EVERY = 40  # one image in forty is never trained on
Weights = dict[str, Tensor]
Taps = dict[str, Tensor]


def conv(x: Tensor, weight: Tensor, bias: Tensor, padding: str = "reflect") -> Tensor:
    """3×3 convolution; the teacher pads by reflection, the graphs that are shipped by zeros."""
    if padding == "zeros":
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)


@torch.no_grad()
def teacher_taps(weights: Weights, image: Tensor) -> Taps:
    """Taps of the teacher for a (N, 3, H, W) image in [0, 1]."""
    x = F.conv2d(image, weights["conv0.weight"], weights["conv0.bias"])
    taps: Taps = {}
    for name in TEACHER_LAYERS:
        if name in POOL_BEFORE:
            x = F.max_pool2d(x, 2)
        x = F.relu(conv(x, weights[f"conv{name}.weight"], weights[f"conv{name}.bias"]))
        taps[f"relu{name[0]}_{name[1]}"] = x
    return taps


def narrowed(arrays: Weights) -> Weights:
    """Trained weights without the channels that the student has fewer of.

    Those stay whose filters have the largest L1 norms (Li et al., "Pruning Filters for Efficient
    ConvNets", 2017), here times that of what the next layer reads them with.

    Raises:
        EncoderError: there are fewer channels than the student has, as in pruned weights.
    """
    arrays = {name: value.float() for name, value in arrays.items()}
    for layer, after in pairwise(LAYERS):
        own, read = arrays[f"{layer.conv}.weight"], arrays[f"{after.conv}.weight"]
        if len(own) < layer.out_channels:
            raise EncoderError(
                f"--start-from: {layer.conv} has {len(own)} channels, not {layer.out_channels} or "
                "more: weights from before the pruning are what learns"
            )
        norms = own.abs().sum((1, 2, 3)) * read.abs().sum((0, 2, 3))
        kept = norms.topk(layer.out_channels).indices.sort().values
        for part in ("weight", "bias"):
            arrays[f"{layer.conv}.{part}"] = arrays[f"{layer.conv}.{part}"][kept]
        arrays[f"{after.conv}.weight"] = read[:, kept]
    return arrays


class Student:
    """The student's weights, and its two ways to run: by stage and end to end.

    Attributes:
        weights: by name; those of the layers that learn have gradients.
        learning: the same, the latter only.
        kept: the layers before the first one that learns.
        taught: the others.
    """

    def __init__(
        self, seed: int, padding: str, device: torch.device, learning: Collection[str]
    ) -> None:
        self.padding = padding
        generator = torch.Generator().manual_seed(seed)
        self.weights: Weights = {}
        for layer in LAYERS:
            shape = (layer.out_channels, layer.in_channels, 3, 3)
            scale = (2.0 / (layer.in_channels * 9)) ** 0.5
            self.weights[f"{layer.conv}.weight"] = torch.randn(shape, generator=generator) * scale
            self.weights[f"{layer.conv}.bias"] = torch.zeros(layer.out_channels)
        for name, value in self.weights.items():
            learns = name.partition(".")[0] in learning
            self.weights[name] = as_stored(value.to(device)).requires_grad_(learns)
        self.learning = [weight for weight in self.weights.values() if weight.requires_grad]
        first = next(i for i, layer in enumerate(LAYERS) if layer.conv in learning)
        self.kept, self.taught = LAYERS[:first], LAYERS[first:]
        self.mean = torch.tensor(TRAINED.mean, device=device).view(1, 3, 1, 1)

    @torch.no_grad()
    def take(self, arrays: Weights) -> None:
        """Start from trained weights, if need be of wider layers."""
        arrays = narrowed(arrays)
        for name, weight in self.weights.items():
            weight.copy_(arrays[name])

    def layer(self, layer: Layer, x: Tensor, slope: float) -> Tensor:
        if layer.pooled:
            x = F.max_pool2d(x, 2)
        weight, bias = (self.weights[f"{layer.conv}.{part}"] for part in ("weight", "bias"))
        return F.leaky_relu(conv(x, weight, bias, self.padding), slope)

    @torch.no_grad()
    def enter(self, image: Tensor) -> Tensor:
        """What the first layer that learns reads, for a (N, 3, H, W) image in [0, 1]."""
        x = image - self.mean
        for layer in self.kept:
            x = self.layer(layer, x, 0.0)
        return x

    def taps(self, x: Tensor, targets: Taps | None, slope: float) -> Taps:
        """ReLU outputs from there on; a layer reads the one before, or its target."""
        taps: Taps = {}
        for layer in self.taught:
            x = self.layer(layer, x, slope)
            taps[layer.tap] = x
            if targets is not None:
                x = targets.get(layer.tap, x)
        return taps


@dataclass
class Sample:
    """Crops as the layers that learn see them, and what the teacher makes of them.

    Attributes:
        entered: (N, C, H, W), what the first of these layers reads.
        targets: by tap.
    """

    entered: Tensor
    targets: Taps

    def map(self, change: Callable[[Tensor], Tensor]) -> Sample:
        return Sample(change(self.entered), {tap: change(x) for tap, x in self.targets.items()})

    @staticmethod
    def join(samples: Sequence[Sample]) -> Sample:
        entered = torch.cat([sample.entered for sample in samples])
        taps = samples[0].targets
        return Sample(entered, {t: torch.cat([s.targets[t] for s in samples]) for t in taps})


@dataclass
class Data:
    """Images held in memory as uint8, and random augmented crops of them.

    Attributes:
        images: photographs and works of art.
        optimised: pictures that an optimiser made; cropped, never resized.
        crop: side of a crop in pixels.
    """

    images: list[np.ndarray]
    optimised: list[np.ndarray]
    crop: int

    @staticmethod
    def load(folder: Path, crop: int, held_out: bool, optimised: Path | None = None) -> Data:
        photos, art = (training_pictures(folder, kind, held_out) for kind in ("photos", "art"))
        chosen = photos + 2 * art
        made = sorted(optimised.glob("*.png")) if optimised else []
        large = [x for x in map(pixels, made) if min(x.shape[:2]) >= crop]
        return Data([pixels(p) for p in chosen], large, crop)

    def made(self, rng: np.random.Generator) -> np.ndarray:
        image = self.optimised[rng.integers(len(self.optimised))]
        top = rng.integers(image.shape[0] - self.crop + 1)
        left = rng.integers(image.shape[1] - self.crop + 1)
        out = image[top : top + self.crop, left : left + self.crop].astype(np.float32) / 255.0
        return out[:, ::-1] if rng.random() < 0.5 else out

    def one(self, rng: np.random.Generator) -> np.ndarray:
        image = self.images[rng.integers(len(self.images))]
        side = int(min(image.shape[0], image.shape[1], self.crop * rng.uniform(1.0, 2.2)))
        top = rng.integers(image.shape[0] - side + 1)
        left = rng.integers(image.shape[1] - side + 1)
        patch = Image.fromarray(image[top : top + side, left : left + side])
        resized = np.asarray(patch.resize((self.crop, self.crop), Image.Resampling.BILINEAR))
        out = resized.astype(np.float32) / 255.0
        if rng.random() < 0.5:
            out = out[:, ::-1]
        if rng.random() < 0.3:  # contrast, brightness, colour
            out = (out - 0.5) * rng.uniform(0.5, 1.5) + 0.5 + rng.uniform(-0.15, 0.15, 3)
        return out

    def batch(self, rng: np.random.Generator, size: int) -> Tensor:
        """(size, 3, crop, crop) float32; some blended or noisy, as half-optimised images are."""
        rows = []
        for _ in range(size):
            if self.optimised and rng.random() < OPTIMISED_SHARE:
                rows.append(self.made(rng).transpose(2, 0, 1).astype(np.float32))
                continue
            patch = self.one(rng)
            kind = rng.random()
            if kind < 0.15:
                share = rng.uniform(0.2, 0.8)
                patch = share * patch + (1 - share) * self.one(rng)
            if kind < 0.30:
                patch = patch + rng.normal(0, rng.uniform(0.01, 0.25), patch.shape)
            rows.append(patch.astype(np.float32).transpose(2, 0, 1))
        batch = torch.from_numpy(np.stack(rows)).clamp_(-0.1, 1.1)
        return batch.contiguous(memory_format=torch.channels_last)


def training_pictures(folder: Path, kind: str, held_out: bool = False) -> list[Path]:
    """Pictures of ``folder``/``kind`` to train on, or those that are held out."""
    paths = sorted((folder / kind).iterdir())
    return [p for i, p in enumerate(paths) if (i % HELD_OUT_EVERY == 0) == held_out]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def layer_scale(teacher: Weights, batches: Iterable[Tensor]) -> dict[str, float]:
    """Root mean square of each layer's outputs over the batches."""
    squares: dict[str, list[float]] = {}
    for batch in batches:
        for tap, x in teacher_taps(teacher, batch).items():
            squares.setdefault(tap, []).append(float(x.double().square().mean()))
    return {tap: float(np.sqrt(np.mean(values))) for tap, values in squares.items()}


def gram(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C, C), F Fᵀ / (C·P)."""
    f = x.flatten(2).float()
    return f @ f.transpose(1, 2) / (f.shape[1] * f.shape[2])


def feature_errors(taps: Taps, targets: Taps) -> Tensor:
    """Squared error of the features as a share of their second moment, one value a layer."""
    return torch.stack(
        [F.mse_loss(taps[t].float(), x) / x.square().mean() for t, x in targets.items()]
    )


def _share(found: Tensor, want: Tensor) -> Tensor:
    """‖found − want‖² as a share of ‖want‖², mean over the images of (N, C, C)."""
    return ((found - want).square().sum((1, 2)) / want.square().sum((1, 2))).mean()


def gram_errors(taps: Taps, targets: Taps) -> Tensor:
    """Squared error of the Gram matrices as a share of their norm, one value a tap."""
    return torch.stack(
        [_share(gram(taps[tap]), gram(targets[tap])) for tap in TAPS if tap in targets]
    )


def head_errors(teacher: Weights, scale: Mapping[str, float], taps: Taps, targets: Taps) -> Tensor:
    """The same through the teacher's 1×1 heads, which approximate VGG-19's own features.

    Without the heads' ReLUs, so that their Gram matrix is W G Wᵀ, G that of the features and 1.
    """
    rows = []
    for tap in (tap for tap in HEADS if tap in targets):
        name = f"conv{tap[4]}{tap[6]}_aux"
        weight, bias = teacher[f"{name}.weight"], teacher[f"{name}.bias"]
        head = torch.cat([weight.flatten(1) * scale[tap], bias[:, None]], dim=1)
        found, want = (
            head @ gram(F.pad(x[tap].float(), (0, 0, 0, 0, 0, 1), value=1.0)) @ head.T
            for x in (taps, targets)
        )
        rows.append(_share(found, want))
    return torch.stack(rows)


def as_stored(value: Tensor) -> Tensor:
    """Weights in the layout that convolutions run fastest in."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
