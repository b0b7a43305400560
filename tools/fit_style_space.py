"""Fit the style maps of ``vgg19-lite``: from its taps to the channels of VGG-19.

The teacher of tools/train_encoder.py has 1×1 heads that map its features to those of VGG-19. At
every tap with a head, the map H (D, C+1) is the one that brings H [f; 1] nearest to what the head
makes of the teacher's features, in the mean over all pixels of all pictures: linear least squares
by the normal equations in float64,

    H = h̃ f̃ᵀ (f̃ f̃ᵀ + ridge·I)⁻¹,    f̃ = [f; 1], the means over the pixels.

The ridge, of f alone, is the noise that rounding to bfloat16 adds to a feature: where channels say
nearly the same, it keeps the map from large differences of them. Pictures are mirrored around, and
the margin is left out.

Run: python tools/fit_style_space.py DATA [--pack FOLDER]
where DATA holds teacher.safetensors, photos/ and art/. Writes style_space.safetensors into the pack
that ships, or into FOLDER, updates its manifest, and prints for every tap what is left on pictures
held out: ‖H f̃ - h‖² as a share of ‖h‖². The same data give the same file, byte by byte, on the
same kind of machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pack_lite import FOLDER
from safetensors.torch import load_file
from student import HEADS, Taps, Weights, teacher_taps, training_pictures
from torch import Tensor

from nst_fast import encoders, images
from nst_fast.encoders.manifest import WEIGHTS
from nst_fast.export.vgg import VGG19_LITE, Vgg
from nst_fast.host import Float64

STRIDE = 16  # pixels, of the deepest tap
MARGIN = 2 * STRIDE
RIDGE = 2.0**-18 / 3  # of the mean square: rounding errs by up to half a unit of 2^-8, evenly
Moments = dict[str, Float64]


def heads(teacher: Weights) -> Moments:
    """The teacher's heads by tap, (D, its channels + 1)."""
    found = {}
    for tap in HEADS:
        weight, bias = (teacher[f"conv{tap[4]}{tap[6]}_aux.{part}"] for part in ("weight", "bias"))
        found[tap] = torch.cat([weight.flatten(1), bias[:, None]], 1).double().numpy()
    return found


@torch.no_grad()
def joint_moments(
    teacher: Weights, student: Callable[[Tensor], Taps], pictures: Iterable[Path]
) -> Moments:
    """Mean of z zᵀ by tap, z = [f; 1; t; 1], f the student's features and t the teacher's."""
    sums: Moments = {}
    count = dict.fromkeys(HEADS, 0)
    for path in pictures:
        image = torch.from_numpy(images.to_tensor(images.load(path).pixels))
        height, width = (side // STRIDE * STRIDE for side in image.shape[2:])
        if min(height, width) <= MARGIN:
            continue  # too small to be mirrored
        image = F.pad(image[..., :height, :width], (MARGIN,) * 4, mode="reflect")
        ours, theirs = student(image), teacher_taps(teacher, image)
        for tap in HEADS:
            cut = MARGIN * ours[tap].shape[2] // image.shape[2]
            f, t = (taps[tap][0, :, cut:-cut, cut:-cut].flatten(1) for taps in (ours, theirs))
            one = torch.ones(1, f.shape[1])
            z = torch.cat([f, one, t, one]).double().numpy()
            sums[tap] = sums.get(tap, 0.0) + z @ z.T
            count[tap] += z.shape[1]
    return {tap: total / count[tap] for tap, total in sums.items()}


def fit(moments: Float64, head: Float64) -> Float64:
    """The map (D, C+1) nearest to a head, by the joint moments at its tap."""
    columns = len(moments) - head.shape[1]
    gram, cross = moments[:columns, :columns], moments[columns:, :columns]
    ridge = RIDGE * np.diag(gram)[:-1].mean() * np.eye(columns)
    ridge[-1, -1] = 0.0
    return np.linalg.solve(gram + ridge, (head @ cross).T).T


def residual(moments: Float64, head: Float64, fitted: Float64) -> float:
    """‖H f̃ - h‖² as a share of ‖h‖²."""
    error = np.hstack([fitted, -head])
    columns = fitted.shape[1]
    whole = np.trace(head @ moments[columns:, columns:] @ head.T)
    return float(np.trace(error @ moments @ error.T) / whole)


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """So many of the paths, evenly spread."""
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, count).round().astype(int))]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="holds teacher.safetensors, photos/ and art/")
    parser.add_argument("--pack", type=Path, default=FOLDER, help="by default the one that ships")
    parser.add_argument("--pictures", type=int, default=150, help="at most, of either kind")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)  # the order of sums is part of the result
    teacher = load_file(options.data / "teacher.safetensors")
    student = Vgg(VGG19_LITE)
    student.load_arrays(load_file(options.pack / WEIGHTS))
    kinds = [training_pictures(options.data, kind) for kind in ("photos", "art")]
    chosen = [path for paths in kinds for path in spread(paths, options.pictures)]
    moments, targets = joint_moments(teacher, student, chosen), heads(teacher)
    maps = {tap: fit(moments[tap], head) for tap, head in targets.items()}
    encoder = encoders.write_style_space(options.pack, maps)
    held = [p for kind in ("photos", "art") for p in training_pictures(options.data, kind, True)]
    moments = joint_moments(teacher, student, held)
    for tap, head in targets.items():
        share = residual(moments[tap], head, encoder.style_map(tap))
        print(f"{tap}: {100 * share:.2f} % left")


if __name__ == "__main__":
    main()
