"""A stand-in for the teacher of vgg19-lite: its layout, random weights, heads of a few channels."""

from __future__ import annotations

from pathlib import Path

import torch
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
