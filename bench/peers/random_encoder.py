"""VGG-19 where its weights are not at hand: the time of a step does not depend on their values."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from nst_fast.export import build_pack
from nst_fast.export.vgg import VGG19


def random_vgg19(folder: Path) -> Path:
    """Build a pack in ``folder`` with weights as in He et al. 2015; return the pack's folder."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in VGG19.layers():
        shape = (layer.out_channels, layer.in_channels, 3, 3)
        deviation = (2 / (9 * layer.in_channels)) ** 0.5
        weights[f"{layer.conv}.weight"] = deviation * torch.randn(shape, generator=generator)
        weights[f"{layer.conv}.bias"] = 0.01 * torch.randn(layer.out_channels, generator=generator)
    checkpoint, pack = folder / "random.safetensors", folder / "vgg19"
    save_file(weights, checkpoint)
    pack.mkdir()
    build_pack(
        pack, checkpoint, name="vgg19", architecture="vgg19", source="random", licence="none"
    )
    return pack
