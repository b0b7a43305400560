"""A stand-in for the data of training: a teacher with random weights, pictures of noise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

LAYERS = ("11", "12", "21", "22", "31", "32", "33", "34", "41", "42", "43", "44", "51")
HEADS = ("11", "21", "31", "41", "51")
WIDTHS = (16, 16, 32, 32, 64, 64, 64, 64, 128, 128, 128, 128, 128)


def write_teacher(path: Path) -> Path:
    """Write ``teacher.safetensors`` with He's initialisation."""
    generator = torch.Generator().manual_seed(0)
    weights = {"conv0.weight": torch.eye(3).view(3, 3, 1, 1), "conv0.bias": torch.zeros(3)}
    inputs = 3
    for name, width in zip(LAYERS, WIDTHS, strict=True):
        shape = (width, inputs, 3, 3)
        weights[f"conv{name}.weight"] = torch.randn(shape, generator=generator)
        weights[f"conv{name}.weight"] *= (2 / (9 * inputs)) ** 0.5
        weights[f"conv{name}.bias"] = torch.zeros(width)
        if name in HEADS:
            shape = (8, width, 1, 1)
            weights[f"conv{name}_aux.weight"] = torch.randn(shape, generator=generator)
            weights[f"conv{name}_aux.bias"] = torch.zeros(8)
        inputs = width
    save_file(weights, path)
    return path


def write_data(folder: Path, sizes: Iterable[tuple[int, int]]) -> Path:
    """Write the teacher, and pictures of these heights and widths as photographs and as art."""
    write_teacher(folder / "teacher.safetensors")
    rng = np.random.default_rng(0)
    for kind in ("photos", "art"):
        (folder / kind).mkdir()
        for index, size in enumerate(sizes):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{index}.png")
    return folder
