"""Train the decoders of ``vgg19-lite``, which make pictures of its features (``--init transfer``).

There is one for every style tap; it leads from the features of its tap to those of the style tap
before it, that of relu1_1 to the picture. At run time (``nst_fast.transfer``) what a decoder reads
has first been given the style's mean and covariance, and so it is here.

Phase 1 gives every decoder the encoder's own features, so that all learn at once. Phase 2 runs the
whole transfer, every statistic a constant, and takes the loss of the decoded picture: style and
content as in an optimisation, squared differences of neighbours, range. One picture in four is its
own style, and is to come back as it was. How much of the content's features is mixed in, the
user's choice, is drawn for every picture.

Run: python tools/train_decoders.py --data DIR --out DIR [--pack FOLDER]
where --data holds photos/ and art/. Writes decoders.safetensors, log.json and curve.png, and at the
end gives the decoders to the pack that ships, or to FOLDER, whose encoder they are for. The same
data and options give the same file on the same kind of machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pack_lite import FOLDER
from safetensors.torch import load_file, save_file
from student import Data, pixels, training_pictures
from torch import Tensor, nn
from train_encoder import cosine

from nst_fast import StyleSettings, encoders
from nst_fast.canvas import Canvas
from nst_fast.encoders.manifest import WEIGHTS, Encoder
from nst_fast.export.vgg import VGG19_LITE, Vgg
from nst_fast.host import one_blas_thread
from nst_fast.losses import Objective
from nst_fast.losses.space import style_space
from nst_fast.transfer import colouring, falling

CONTENT_WEIGHT = 0.08
SMOOTHNESS = 0.05  # weight of the squared differences of neighbours
TAPS = ("relu5_1", "relu4_1", "relu3_1", "relu2_1", "relu1_1")
CONTENT = "relu4_2"
# Outputs of the convolutions of each decoder; the last reads a map of twice the size where the tap
# it leads to has one.
WIDTHS: dict[str, tuple[int, ...]] = {
    "relu5_1": (128, 112, 80),
    "relu4_1": (96, 64, 64),
    "relu3_1": (64, 48, 32),
    "relu2_1": (32, 24, 16),
    "relu1_1": (16, 3),
}
MARGIN = 8  # pixels, of the mirrored border
STYLE_CROP = 256
SHARE = (0.3, 0.9)  # from least to most
ENCODED = {layer.tap: layer for layer in VGG19_LITE.layers()}
NEXT: dict[str, str | None] = dict(zip(TAPS, (*TAPS[1:], None), strict=True))
Taps = dict[str, Tensor]


class Decoders(nn.Module):
    """The decoders of all style taps.

    Attributes:
        convs: by tap, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict()
        for tap, widths in WIDTHS.items():
            inputs = ENCODED[tap].out_channels
            layers = nn.ModuleList()
            for width in widths:
                layers.append(nn.Conv2d(inputs, width, 3))
                nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
                nn.init.zeros_(layers[-1].bias)
                inputs = width
            self.convs[tap] = layers
        nn.init.constant_(self.convs["relu1_1"][-1].bias, 0.5)
        with torch.no_grad():
            self.convs["relu1_1"][-1].weight *= 0.1

    def decode(self, tap: str, x: Tensor) -> Tensor:
        """From a tap's features, (N, C, H/s, W/s), to those of the one before, or a picture."""
        stride, after = ENCODED[tap].stride, NEXT[tap]
        *inner, last = self.convs[tap]
        for conv in inner:
            x = F.relu(conv(padded(x, stride)))
        if after is None:
            return last(padded(x, 1))
        if ENCODED[after].stride < stride:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.relu(last(padded(x, ENCODED[after].stride)))

    def arrays(self) -> dict[str, Tensor]:
        """What a pack holds, in float16."""
        return {
            f"{tap}.{index}.{part}": getattr(conv, part).detach().half().contiguous()
            for tap, layers in self.convs.items()
            for index, conv in enumerate(layers)
            for part in ("weight", "bias")
        }

    @torch.no_grad()
    def take(self, arrays: Mapping[str, Tensor]) -> None:
        """Start from such weights."""
        for name, value in arrays.items():
            tap, index, part = name.split(".")
            getattr(self.convs[tap][int(index)], part).copy_(value)


def padded(x: Tensor, stride: int) -> Tensor:
    """A border of one cell: zeros at full size, where the margin hides it; else the outermost."""
    return F.pad(x, (1, 1, 1, 1), mode="replicate" if stride > 1 else "constant")


def moments(x: Tensor, weights: Tensor) -> Tensor:
    """M of features (N, C, h, w) with weights (h, w), as ``nst_fast.losses.moments`` defines it."""
    channels = x.shape[1]
    extended = torch.cat([x.float(), torch.ones_like(x[:, :1])], 1).flatten(2)
    return (extended * weights.flatten()) @ extended.mT / (channels * weights.sum())


def mapped(x: Tensor, maps: Tensor) -> Tensor:
    """A f + b of features (N, C, h, w) for maps [A b], (N, C, C+1)."""
    flat = torch.baddbmm(maps[:, :, -1:], maps[:, :, :-1], x.float().flatten(2))
    return flat.view(x.shape)


@dataclass
class Style:
    """Moments T of N styles by tap, and the metric K of the loss over the root of its scale."""

    targets: Taps
    metric: Taps

    @classmethod
    def of(cls, encoder: Encoder, objective: Objective, targets: Taps) -> Style:
        metric: Taps = {}
        for tap in objective.style:
            T = targets[tap].double().numpy()
            H = style_space(encoder.style_map(tap), T, objective.shift)
            constants = objective.distance.constants(T, H)
            power, _ = objective.distance.evaluate(np.zeros_like(T), constants)
            root = np.sqrt(np.where(power > 0, power, 1.0))[:, None, None]
            metric[tap] = torch.from_numpy(constants["K"] / root).float()
        return cls(targets, metric)

    def error(self, tap: str, M: Tensor) -> Tensor:
        """The style term of a tap, relative, (N,)."""
        R, K = M - self.targets[tap], self.metric[tap]
        return (R * (K @ R @ K)).sum((1, 2))

    def rows(self, which: slice | Sequence[int]) -> Style:
        targets, metric = (
            {t: x[which] for t, x in xs.items()} for xs in (self.targets, self.metric)
        )
        return Style(targets, metric)


def share_left(found: Tensor, want: Tensor, middle: Tensor | float = 0.0) -> Tensor:
    """‖found − want‖² of each image as a share of ‖want − middle‖², (N,)."""
    error, whole = (x.square().sum((1, 2, 3)) for x in (found - want, want - middle))
    return error / whole


class Trainer:
    """One run: encoder, decoders, data, optimiser and log."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        self.options = options
        self.encoder = encoders.load(options.pack)
        self.objective = Objective.from_settings(
            StyleSettings(content_weight=CONTENT_WEIGHT), self.encoder
        )
        self.vgg = Vgg(VGG19_LITE).requires_grad_(False)
        self.vgg.load_arrays(load_file(self.encoder.path / WEIGHTS))
        self.decoders = Decoders()
        if options.start_from is not None:
            self.decoders.take(load_file(options.start_from))
        self.optimizer = torch.optim.Adam(self.decoders.parameters(), lr=1e-3)
        self.rng = np.random.default_rng(options.seed)
        self.canvas = Canvas.around(options.crop, options.crop, margin=MARGIN, stride=16)
        self.weights = {
            tap: torch.from_numpy(self.canvas.weights(layer.stride))
            for tap, layer in ENCODED.items()
        }
        self.data = Data.load(options.data, options.crop, held_out=False)
        held = Data.load(options.data, options.crop, held_out=True)
        rng = np.random.default_rng(1)
        self.held = [held.batch(rng, options.batch) for _ in range(options.held)]
        self.styles = self.find_styles(options.styles, False, self.rng)
        self.held_styles = self.find_styles(options.batch * options.held, True, rng)
        self.log: list[dict[str, Any]] = []

    def find_styles(self, count: int, held_out: bool, rng: np.random.Generator) -> Style:
        """Styles of random crops, three in four of them of works of art."""
        kinds = [
            Data(
                [pixels(p) for p in training_pictures(self.options.data, kind, held_out)],
                [],
                STYLE_CROP,
            )
            for kind in ("photos", "art")
        ]
        canvas = Canvas.around(STYLE_CROP, STYLE_CROP, margin=MARGIN, stride=16)
        found: dict[str, list[Tensor]] = {tap: [] for tap in TAPS}
        for _ in range(count):
            crop = kinds[int(rng.random() < 0.75)].one(rng).astype(np.float32).transpose(2, 0, 1)
            taps = self.encode(torch.from_numpy(canvas.extend(crop[None])))
            for tap in TAPS:
                weights = torch.from_numpy(canvas.weights(ENCODED[tap].stride))
                found[tap].append(moments(taps[tap], weights))
        return Style.of(
            self.encoder, self.objective, {t: torch.cat(rows) for t, rows in found.items()}
        )

    def encode(self, canvas: Tensor) -> Taps:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            return {tap: x.float() for tap, x in self.vgg(canvas).items()}

    def decode(self, tap: str, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            return self.decoders.decode(tap, x).float()

    def shown(self, picture: Tensor) -> Tensor:
        """The canvas of pictures (N, 3, H, W)."""
        rows, columns = (
            torch.from_numpy(x).long() for x in (self.canvas.rows, self.canvas.columns)
        )
        return picture[:, :, rows][..., columns]

    def inside(self, canvas: Tensor) -> Tensor:
        """The pictures of a canvas."""
        top, left, side = self.canvas.top, self.canvas.left, self.options.crop
        return canvas[:, :, top : top + side, left : left + side]

    def stagewise(self, content: Tensor) -> dict[str, Tensor]:
        """What every decoder misses of the encoder's features, given the encoder's own."""
        canvas = self.shown(content)
        with torch.no_grad():
            taps = self.encode(canvas)
        errors = {}
        for tap, after in NEXT.items():
            found = self.decode(tap, taps[tap])
            if after is None:
                left = share_left(self.inside(found), content, content.mean())
            else:
                left = share_left(found, taps[after])
            errors[tap] = left.mean()
        return errors

    def transfer(self, taps: Taps, style: Style, share: Tensor) -> list[Tensor]:
        """What each decoder makes of a content's features, as ``nst_fast.transfer`` calls them.

        ``share`` of the content's features is that of each picture, (N,).
        """
        x, made = taps[TAPS[0]], []
        for tap, mixed in zip(TAPS, (0.0, *falling(len(TAPS))), strict=False):
            x = torch.lerp(x, taps[tap], mixed * share.view(-1, 1, 1, 1))
            M = moments(x.detach(), self.weights[tap]).double().numpy()
            maps = colouring(M, style.targets[tap].double().numpy())
            x = self.decode(tap, mapped(x, torch.from_numpy(maps).float()))
            made.append(x)
        return made

    def terms(self, taps: Taps, found: Taps, picture: Tensor, style: Style) -> dict[str, Tensor]:
        """Terms of the objective, weighted, (N,) each, of pictures transferred to N styles."""
        objective, terms = self.objective, {}
        terms["style"] = sum(
            weight * style.error(tap, moments(found[tap], self.weights[tap]))
            for tap, weight in objective.style.items()
        )
        terms["content"] = objective.content[CONTENT] * share_left(found[CONTENT], taps[CONTENT])
        steps = (picture.diff(dim=axis).square().sum((1, 2, 3)) for axis in (2, 3))
        terms["smoothness"] = SMOOTHNESS * sum(steps) / picture[0].numel()
        outside = picture - picture.clamp(0, 1)
        terms["range"] = objective.range * outside.square().mean((1, 2, 3))
        return terms

    def run(
        self, content: Tensor, style: Style, share: Tensor, own: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Terms of the pictures that have a style, and what is left of the ``own`` first.

        These are their own style; what they miss is taken at every decoder, and at every tap of
        the picture.
        """
        canvas = self.shown(content)
        with torch.no_grad():
            taps = self.encode(canvas)
            targets = {
                tap: torch.cat([moments(taps[tap][:own], self.weights[tap]), T[own:]])
                for tap, T in style.targets.items()
            }
        made = self.transfer(taps, Style(targets, style.metric), share)
        picture = self.inside(made[-1])
        found = self.encode(self.shown(picture))
        left = share_left(picture[:own], content[:own], content.mean())
        for x, tap in zip(made[:-1], TAPS[1:], strict=True):
            left = left + share_left(x[:own], taps[tap][:own])
        for tap in TAPS:
            left = left + share_left(found[tap][:own], taps[tap][:own]) / len(TAPS)
        styled = slice(own, None)
        terms = self.terms(
            {tap: x[styled] for tap, x in taps.items()},
            {tap: x[styled] for tap, x in found.items()},
            picture[styled],
            style.rows(styled),
        )
        return terms, left

    def loss(self, phase: int) -> Tensor:
        size = self.options.batch
        content = self.data.batch(self.rng, size)
        if phase == 1:
            return torch.stack(list(self.stagewise(content).values())).sum()
        share = torch.from_numpy(self.rng.uniform(*SHARE, size)).float()
        style = self.styles.rows(self.rng.integers(self.options.styles, size=size).tolist())
        terms, left = self.run(content, style, share, own=max(size // 4, 1))
        # Roots, lest a few pictures with a rare style lead all others.
        return sum(terms.values()).sqrt().mean() + 0.1 * left.sqrt().mean()

    @torch.no_grad()
    def evaluate(self, phase: int, step: int) -> None:
        decoded: dict[str, float] = {}
        transferred: dict[str, float] = {}
        size = self.options.batch
        for index, content in enumerate(self.held):
            style = self.held_styles.rows(range(index * size, (index + 1) * size))
            found, _ = self.run(content, style, torch.full((size,), np.mean(SHARE)), own=0)
            terms = {name: term.mean() for name, term in found.items()}
            for sums, errors in ((decoded, self.stagewise(content)), (transferred, terms)):
                for name, error in errors.items():
                    sums[name] = sums.get(name, 0.0) + float(error) / len(self.held)
        row: dict[str, Any] = {"phase": phase, "step": step}
        row |= {"decoded": rounded(decoded), "transferred": rounded(transferred)}
        self.log.append(row)
        print(json.dumps({"at": time.strftime("%H:%M:%S"), **row}), flush=True)

    def save(self) -> None:
        out = Path(self.options.out)
        save_file(self.decoders.arrays(), out / "decoders.partial")
        (out / "decoders.partial").replace(out / "decoders.safetensors")
        (out / "log.json").write_text(json.dumps(self.log, indent=1))

    def run_phase(self, phase: int) -> None:
        steps, rate = self.options.steps[phase - 1], self.options.rates[phase - 1]
        for step in range(steps):
            warm = min(1.0, (step + 1) / 100)
            for group in self.optimizer.param_groups:
                group["lr"] = warm * cosine(step, steps, rate, 0.02 * rate)
            loss = self.loss(phase)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.decoders.parameters(), 1.0)
            self.optimizer.step()
            if step % self.options.report == 0 or step == steps - 1:
                self.evaluate(phase, step)
                self.save()


def draw(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The learning curve on pictures held out: what decoders miss, and the loss of transfers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    titles = {"decoded": "missed by a decoder alone", "transferred": "terms of the loss"}
    start = next((i for i, row in enumerate(log) if row["phase"] == 2), 0)
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name in log[0][key]:
            axes.semilogy([row[key][name] for row in log], label=name)
        axes.axvline(start, color="grey", linestyle=":")
        axes.set(title=title, xlabel="report; dotted: the whole transfer begins")
        axes.legend()
    figure.savefig(path, dpi=110)


def rounded(errors: Mapping[str, float]) -> dict[str, float]:
    return {name: round(error, 5) for name, error in errors.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--pack", type=Path, default=FOLDER, help="by default the one that ships")
    parser.add_argument("--start-from", type=Path, help="decoders of an earlier run")
    parser.add_argument("--steps", type=int, nargs=2, default=(400, 4000), metavar=("P1", "P2"))
    parser.add_argument("--rates", type=float, nargs=2, default=(3e-3, 4e-4), metavar=("P1", "P2"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=176)
    parser.add_argument("--styles", type=int, default=600, help="crops that styles are taken from")
    parser.add_argument("--held", type=int, default=4, help="batches that are never trained on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    return parser.parse_args()


@one_blas_thread()
def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    for phase in (1, 2):
        trainer.run_phase(phase)
    draw(trainer.log, options.out / "curve.png")
    decoders = {name: x.numpy() for name, x in trainer.decoders.arrays().items()}
    encoders.write_decoders(options.pack, decoders)


if __name__ == "__main__":
    main()
