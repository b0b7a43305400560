"""Encoders with random weights: for time, which does not depend on them, and as a bad example."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from nst_fast.export import build_pack
from nst_fast.export.vgg import ARCHITECTURES


def random_pack(folder: Path, architecture: str) -> Path:
    """Build a pack in ``folder`` with weights as in He et al. 2015; return the pack's folder."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in ARCHITECTURES[architecture].layers():
        shape = (layer.out_channels, layer.in_channels, 3, 3)
        deviation = (2 / (9 * layer.in_channels)) ** 0.5
        weights[f"{layer.conv}.weight"] = deviation * torch.randn(shape, generator=generator)
        weights[f"{layer.conv}.bias"] = 0.01 * torch.randn(layer.out_channels, generator=generator)
    checkpoint, pack = folder / "random.safetensors", folder / architecture
    save_file(weights, checkpoint)
    pack.mkdir()
    build_pack(
        pack,
        checkpoint,
        name=architecture,
        architecture=architecture,
        source="random",
        licence="none",
    )
    return pack


def random_vgg19(folder: Path) -> Path:
    """VGG-19 where its weights are not at hand."""
    return random_pack(folder, "vgg19")
