"""Train ``vgg19-lite``: distil a narrow VGG from a teacher, layer by layer, then end to end.

The teacher is the quarter-width VGG-19 of Wang et al., "Collaborative Distillation for
Ultra-Resolution Universal Style Transfer", CVPR 2020, max pooling as in VGG. The student has its
layout, pads by zeros, and regresses the teacher's ReLU outputs, each layer divided by its root mean
square over the data, so that every tap has the same scale and its channels keep their shares.

Phase 1 gives every layer the teacher's features as input (hints: Romero et al., "FitNets",
2015), so that all layers learn at once; its ReLUs are leaky at first, so that no channel dies.
Phase 2 runs the student end to end and adds the Gram matrices at the taps, as they are and
through the teacher's 1×1 heads, to the loss. ``--optimised`` mixes in pictures that the student
itself led to (tools/optimised_pictures.py): there an optimiser looks for its faults.

Trained channel by channel like the teacher, the student ends with channels that never fire, as
the teacher has; tools/prune_encoder.py takes them out, down to the widths that ship.

``--start-from`` takes weights of an earlier run; where these have more channels, the strongest
stay. ``--learn`` changes some layers and keeps the others. Where the first layers are kept,
``--prepared`` runs them and the teacher once over so many crops, and every step takes some of
these: many more steps in the same time.

Run: python tools/train_encoder.py --data DIR --out DIR
where --data holds teacher.safetensors, photos/ and art/. Writes weights.safetensors, log.json,
curve.png and checkpoint.pt, from which ``--resume`` goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from student import (
    CONVS,
    HEADS,
    UNTAUGHT,
    Data,
    Sample,
    Student,
    as_stored,
    feature_errors,
    gram_errors,
    head_errors,
    layer_scale,
    teacher_taps,
)
from torch import Tensor

SCALE_BATCHES = 12  # of 16 crops, over which the size of each layer's outputs is taken


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """Learning rate that falls from ``first`` to ``last`` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))


class Trainer:
    """One run: teacher, student, optimiser, log and checkpoint."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        self.options = options
        self.device = torch.device(options.device)
        self.rng = np.random.default_rng(options.seed)
        self.teacher = {
            name: as_stored(value.to(self.device))
            for name, value in load_file(options.data / "teacher.safetensors").items()
        }
        self.data = Data.load(options.data, options.crop, False, options.optimised)
        held = Data.load(options.data, options.crop, held_out=True)
        held_rng = np.random.default_rng(1)
        self.held = [held.batch(held_rng, options.batch).to(self.device) for _ in range(4)]
        self.scale = self._layer_scale()
        self.student = Student(options.seed, options.padding, self.device, options.learn)
        if options.start_from is not None:
            self.student.take(load_file(options.start_from))
        self.prepared: Sample | None = None
        if options.prepared:
            self.prepare(options.prepared)
        self.optimizer = torch.optim.Adam(self.student.learning, lr=1e-3)
        self.log: list[dict[str, Any]] = []
        self.done = {1: 0, 2: 0}
        if options.resume:
            self._restore(torch.load(self._checkpoint, weights_only=False))

    @property
    def _checkpoint(self) -> Path:
        return Path(self.options.out) / "checkpoint.pt"

    def _layer_scale(self) -> dict[str, float]:
        natural = Data(self.data.images, [], 128)
        rng = np.random.default_rng(0)
        batches = (natural.batch(rng, 16).to(self.device) for _ in range(SCALE_BATCHES))
        return layer_scale(self.teacher, batches)

    @torch.no_grad()
    def sample(self, image: Tensor) -> Sample:
        """What a step learns from, of (N, 3, H, W) crops."""
        image = image.to(self.device)
        found = teacher_taps(self.teacher, image)
        taught = [layer.tap for layer in self.student.taught if layer.tap not in UNTAUGHT]
        targets = {tap: found[tap] / self.scale[tap] for tap in taught}
        with self._autocast():
            entered = self.student.enter(image)
        return Sample(entered.float(), targets)

    def prepare(self, count: int) -> None:
        """Let every step take some of so many crops, which are held in float16."""
        rng = np.random.default_rng(self.options.seed + 1)
        size = self.options.batch
        self.prepared = Sample.join(
            [self.sample(self.data.batch(rng, size)).map(Tensor.half) for _ in range(count // size)]
        )

    def _next(self) -> Sample:
        size = self.options.batch
        if self.prepared is None:
            return self.sample(self.data.batch(self.rng, size))
        rows = torch.from_numpy(self.rng.integers(len(self.prepared.entered), size=size))
        return self.prepared.map(lambda x: as_stored(x[rows.to(x.device)].float()))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16)

    def step(self, phase: int, rate: float, slope: float) -> None:
        sample = self._next()
        targets = sample.targets
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self._autocast():
            taps = self.student.taps(sample.entered, targets if phase == 1 else None, slope)
        loss = feature_errors(taps, targets).sum()
        if phase == 2:
            judged = head_errors(self.teacher, self.scale, taps, targets).sum()
            grams = gram_errors(taps, targets).sum()
            loss = loss + self.options.gram_weight * (grams + judged)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.learning, 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, phase: int, step: int, slope: float) -> None:
        features: dict[str, float] = {}
        grams: dict[str, float] = {}
        for image in self.held:
            sample = self.sample(image)
            targets = sample.targets
            taps = self.student.taps(sample.entered, targets if phase == 1 else None, slope)
            judged = head_errors(self.teacher, self.scale, taps, targets)
            heads = [tap for tap in HEADS if tap in targets]
            for sums, names, errors in (
                (features, targets, feature_errors(taps, targets)),
                (grams, heads, judged),
            ):
                for tap, error in zip(names, errors.tolist(), strict=True):
                    sums[tap] = sums.get(tap, 0.0) + error / len(self.held)
        row = {
            "phase": phase,
            "step": step,
            "slope": round(slope, 3),
            "features": {tap: round(error, 5) for tap, error in features.items()},
            "grams": {tap: round(error, 5) for tap, error in grams.items()},
        }
        self.log.append(row)
        print(json.dumps({"at": time.strftime("%H:%M:%S"), **row}), flush=True)

    def save(self) -> None:
        """Weights in float16, and what ``--resume`` needs; each file complete or not there."""
        arrays = {k: v.detach().half().cpu().contiguous() for k, v in self.student.weights.items()}
        out = Path(self.options.out)
        save_file(arrays, out / "weights.partial")
        (out / "weights.partial").replace(out / "weights.safetensors")
        state = {
            "weights": {k: v.detach() for k, v in self.student.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "log": self.log,
            "done": self.done,
        }
        torch.save(state, out / "checkpoint.partial")
        (out / "checkpoint.partial").replace(self._checkpoint)
        (out / "log.json").write_text(json.dumps(self.log, indent=1))

    def _restore(self, state: dict[str, Any]) -> None:
        self.student.take(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]
        self.log, self.done = state["log"], state["done"]

    def run_phase(self, phase: int, steps: int, first: float, last: float) -> None:
        for step in range(self.done[phase], steps):
            slope = max(0.0, 0.2 * (1 - step / (0.6 * steps))) if phase == 1 else 0.0
            warm = min(1.0, (step + 1) / 50)
            self.step(phase, warm * cosine(step, steps, first, last), slope)
            self.done[phase] = step + 1
            if step % self.options.report == 0 or step == steps - 1:
                self.evaluate(phase, step, slope)
                self.save()


def draw(log: Sequence[dict[str, Any]], path: Path) -> None:
    """The learning curve: held-out errors of features (left) and Gram matrices (right)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("features", "grams"), strict=True):
        for tap in (tap for tap in HEADS if tap in log[0][key]):
            axes.semilogy([row[key][tap] for row in log], label=tap)
        start = next((i for i, row in enumerate(log) if row["phase"] == 2), 0)
        axes.axvline(start, color="grey", linestyle=":")
        axes.set(title=f"held-out error of the {key}", xlabel="report; dotted: end to end begins")
        axes.legend()
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--steps", type=int, nargs=2, default=(3000, 6000), metavar=("P1", "P2"))
    parser.add_argument("--start-from", type=Path, help="weights of an earlier run")
    parser.add_argument("--learn", nargs="+", choices=CONVS, default=CONVS, metavar="CONV",
                        help="these layers alone; the others stay as they start")  # fmt: skip
    parser.add_argument("--prepared", type=int, default=0, help="crops; 0: new ones every step")
    parser.add_argument("--resume", action="store_true", help="go on from --out/checkpoint.pt")
    parser.add_argument("--optimised", type=Path, help="folder of PNGs that an optimiser made")
    parser.add_argument("--padding", choices=("reflect", "zeros"), default="zeros")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--crop", type=int, default=208)
    parser.add_argument("--rates", type=float, nargs=2, default=(5e-3, 4e-4), metavar=("P1", "P2"))
    parser.add_argument("--gram-weight", type=float, default=0.5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast for the student")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    for phase, last in ((1, 2e-4), (2, 1e-5)):
        trainer.run_phase(phase, options.steps[phase - 1], options.rates[phase - 1], last)
    draw(trainer.log, options.out / "curve.png")


if __name__ == "__main__":
    main()
