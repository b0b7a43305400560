"""Train ``vgg19-lite``: distil a narrow VGG from a teacher, stage by stage, then end to end.

The teacher is the quarter-width VGG-19 of Wang et al., "Collaborative Distillation for
Ultra-Resolution Universal Style Transfer", CVPR 2020, with average pooling. The student
regresses the teacher's own taps, each channel divided by its standard deviation over the
data, so that every tap of the student has the same scale.

Phase 1 gives every stage (the convolutions between two taps) the teacher's features as
input, so that all stages learn at once; its ReLUs are leaky at first, so that no channel
dies. Phase 2 runs the student end to end and adds the Gram matrices to the loss.

Run: python tools/train_encoder.py --data DIR --out FILE.safetensors
where DIR holds teacher.safetensors, photos/ and art/.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from nst_fast.export.vgg import VGG19_LITE, Layer

TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu4_2", "relu5_1")
TEACHER_LAYERS = ("11", "12", "21", "22", "31", "32", "33", "34", "41", "42", "43", "44", "51")
POOL_BEFORE = ("21", "31", "41", "51")
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
            x = F.avg_pool2d(x, 2)
        x = F.relu(conv(x, weights[f"conv{name}.weight"], weights[f"conv{name}.bias"]))
        tap = f"relu{name[0]}_{name[1]}"
        if tap in TAPS:
            taps[tap] = x
    return taps


def stages() -> list[list[Layer]]:
    """The student's layers grouped by the tap that they end in."""
    groups: list[list[Layer]] = [[]]
    for layer in VGG19_LITE.layers():
        groups[-1].append(layer)
        if layer.tap in TAPS:
            groups.append([])
    return groups[:-1]


class Student:
    """The student's weights, and its two ways to run: by stage and end to end."""

    def __init__(self, seed: int, padding: str) -> None:
        self.padding = padding
        generator = torch.Generator().manual_seed(seed)
        self.weights: Weights = {}
        for layer in VGG19_LITE.layers():
            shape = (layer.out_channels, layer.in_channels, 3, 3)
            scale = (2.0 / (layer.in_channels * 9)) ** 0.5
            self.weights[f"{layer.conv}.weight"] = torch.randn(shape, generator=generator) * scale
            self.weights[f"{layer.conv}.bias"] = torch.zeros(layer.out_channels)
        for name, value in self.weights.items():
            self.weights[name] = (
                value.contiguous(memory_format=torch.channels_last) if (value.ndim == 4) else value
            )
            self.weights[name].requires_grad_()
        self.mean = torch.tensor(VGG19_LITE.mean).view(1, 3, 1, 1)

    @torch.no_grad()
    def take(self, arrays: Weights) -> None:
        """Start from trained weights; layers that they lack start as the identity."""
        for layer in VGG19_LITE.layers():
            weight, bias = f"{layer.conv}.weight", f"{layer.conv}.bias"
            if weight in arrays:
                self.weights[weight].copy_(arrays[weight])
                self.weights[bias].copy_(arrays[bias])
            else:
                torch.nn.init.dirac_(self.weights[weight])

    def stage(self, layers: list[Layer], x: Tensor, slope: float) -> Tensor:
        for layer in layers:
            if layer.pooled:
                x = F.avg_pool2d(x, 2)
            weight, bias = (self.weights[f"{layer.conv}.{part}"] for part in ("weight", "bias"))
            x = conv(x, weight, bias, self.padding)
            x = F.leaky_relu(x, slope)
        return x

    def taps(self, image: Tensor, targets: Taps | None, slope: float) -> Taps:
        """Every tap; each stage reads ``targets`` of the tap before when they are given."""
        x = image - self.mean
        taps: Taps = {}
        for layers in stages():
            x = self.stage(layers, x, slope)
            tap = layers[-1].tap
            taps[tap] = x
            if targets is not None:
                x = targets[tap]
        return taps


@dataclass
class Data:
    """Images held in memory as uint8, and random augmented crops of them."""

    images: list[np.ndarray]
    crop: int

    @staticmethod
    def load(folder: Path, crop: int, held_out: bool) -> Data:
        paths = sorted((folder / "photos").iterdir()) + sorted((folder / "art").iterdir()) * 2
        chosen = [p for i, p in enumerate(paths) if (i % HELD_OUT_EVERY == 0) == held_out]
        return Data([np.asarray(Image.open(p).convert("RGB")) for p in chosen], crop)

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


def channel_scale(teacher: Weights, data: Data, rng: np.random.Generator) -> Taps:
    """Standard deviation of each channel of each tap over the data, (1, C, 1, 1)."""
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}
    for _ in range(24):
        for tap, x in teacher_taps(teacher, data.batch(rng, 16)).items():
            s, q, n = sums.get(tap, (torch.zeros(1), torch.zeros(1), 0))
            sums[tap] = (
                s + x.double().sum((0, 2, 3)),
                q + x.double().square().sum((0, 2, 3)),
                n + x.numel() // x.shape[1],
            )
    return {
        tap: ((q / n - (s / n).square()).clamp_min(0).sqrt() + 1e-3 * (q / n).mean().sqrt())
        .float()
        .view(1, -1, 1, 1)
        for tap, (s, q, n) in sums.items()
    }


def gram(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C, C), F Fᵀ / (C·P)."""
    f = x.flatten(2).float()
    return f @ f.transpose(1, 2) / (f.shape[1] * f.shape[2])


def feature_errors(taps: Taps, targets: Taps) -> Tensor:
    """Squared error of the features as a share of their second moment, one value a tap."""
    return torch.stack(
        [F.mse_loss(taps[tap].float(), targets[tap]) / targets[tap].square().mean() for tap in TAPS]
    )


def gram_errors(taps: Taps, targets: Taps) -> Tensor:
    """Squared error of the Gram matrices as a share of their norm, one value a tap."""
    rows = []
    for tap in TAPS:
        want = gram(targets[tap])
        residual = (gram(taps[tap]) - want).square().sum((1, 2))
        rows.append((residual / want.square().sum((1, 2))).mean())
    return torch.stack(rows)


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """Learning rate that falls from ``first`` to ``last`` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))


class Trainer:
    """One run: teacher, student, optimiser, log and checkpoint."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        self.options = options
        self.rng = np.random.default_rng(options.seed)
        self.teacher = load_file(options.data / "teacher.safetensors")
        for name, value in self.teacher.items():
            if value.ndim == 4:
                self.teacher[name] = value.contiguous(memory_format=torch.channels_last)
        self.data = Data.load(options.data, options.crop, held_out=False)
        held = Data.load(options.data, options.crop, held_out=True)
        held_rng = np.random.default_rng(1)
        self.held = [held.batch(held_rng, 16) for _ in range(3)]
        self.scale = channel_scale(self.teacher, self.data, self.rng)
        self.student = Student(options.seed, options.padding)
        if options.start_from is not None:
            self.student.take(load_file(options.start_from))
        self.optimizer = torch.optim.Adam(list(self.student.weights.values()), lr=1e-3)
        self.log: list[dict[str, object]] = []
        self.started = time.time()

    def targets(self, image: Tensor) -> Taps:
        return {tap: x / self.scale[tap] for tap, x in teacher_taps(self.teacher, image).items()}

    def step(self, phase: int, rate: float, slope: float) -> None:
        image = self.data.batch(self.rng, self.options.batch)
        targets = self.targets(image)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            taps = self.student.taps(image, targets if phase == 1 else None, slope)
        loss = feature_errors(taps, targets).sum()
        if phase == 2:
            loss = loss + self.options.gram_weight * gram_errors(taps, targets).sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.student.weights.values()), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, phase: int, step: int, slope: float) -> None:
        total = torch.zeros(2, len(TAPS))
        for image in self.held:
            targets = self.targets(image)
            taps = self.student.taps(image, targets if phase == 1 else None, slope)
            pair = (feature_errors(taps, targets), gram_errors(taps, targets))
            total += torch.stack(pair) / len(self.held)
        row = {
            "phase": phase,
            "step": step,
            "seconds": round(time.time() - self.started),
            "slope": round(slope, 3),
            "feature": [round(v, 4) for v in total[0].tolist()],
            "gram": [round(v, 4) for v in total[1].tolist()],
        }
        self.log.append(row)
        print(json.dumps(row), flush=True)
        self.options.out.with_suffix(".log.json").write_text(json.dumps(self.log, indent=1))

    def save(self) -> None:
        arrays = {k: v.detach().half().contiguous() for k, v in self.student.weights.items()}
        partial = self.options.out.with_suffix(".partial")
        save_file(arrays, partial)
        partial.replace(self.options.out)

    def run_phase(self, phase: int, steps: int, first: float, last: float) -> None:
        for step in range(steps):
            slope = max(0.0, 0.2 * (1 - step / (0.8 * steps))) if phase == 1 else 0.0
            warm = min(1.0, (step + 1) / 50)
            self.step(phase, warm * cosine(step, steps, first, last), slope)
            if step % self.options.report == 0 or step == steps - 1:
                self.evaluate(phase, step, slope)
                self.save()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=(4000, 6000), metavar=("P1", "P2"))
    parser.add_argument("--start-from", type=Path, help="weights of an earlier run")
    parser.add_argument(
        "--padding",
        choices=("reflect", "zeros"),
        default="reflect",
        help="of the student; a last run with zeros teaches it the borders it will meet",
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--rate", type=float, default=6e-4, help="first learning rate of phase 2")
    parser.add_argument("--gram-weight", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast for the student")
    return parser.parse_args()


def main() -> None:
    options = parse()
    trainer = Trainer(options)
    trainer.run_phase(1, options.steps[0], 5e-3, 2.5e-4)
    trainer.run_phase(2, options.steps[1], options.rate, 1e-5)


if __name__ == "__main__":
    main()
