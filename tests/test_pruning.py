"""The pruning of vgg19-lite, on random weights some of whose channels are made silent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch_reference import LITE_POOLED, Network, he_weights

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))  # programs, not a package

import prune_encoder

from nst_fast.errors import EncoderError
from nst_fast.export.vgg import VGG19_LITE


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Noise, one of them of odd sides."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index, size in enumerate([(48, 64), (49, 71)]):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def silenced(layers_silent: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
    """Weights of the layout that learns, so many channels of each layer silent; all others fire."""
    rng = np.random.default_rng(seed)
    widths = {layer.conv: layer.out_channels for layer in prune_encoder.LAYERS}
    arrays = {k: torch.from_numpy(v) for k, v in he_weights(widths, seed=seed).items()}
    for conv, count in layers_silent.items():
        weight, bias = (arrays[f"{conv}.{part}"] for part in ("weight", "bias"))
        quiet = rng.choice(len(bias), count, replace=False)
        for array, sign in ((weight, 0.0), (bias, -1.0)):
            array.abs_()
            array[quiet] *= sign
    return arrays


def surplus() -> dict[str, int]:
    """How many channels of each layer have to go."""
    pairs = zip(prune_encoder.LAYERS, VGG19_LITE.layers(), strict=True)
    return {a.conv: a.out_channels - b.out_channels for a, b in pairs}


def test_features_stay_and_silent_channels_go(pictures, tmp_path, monkeypatch, capsys, seed):
    """More of them are silent than have to go: the rest fills the layers up."""
    more = {conv: count + 1 for conv, count in surplus().items()}
    weights = silenced(more, seed)
    save_file(weights, tmp_path / "trained.safetensors")
    words = [tmp_path / "trained.safetensors", pictures, "--out", tmp_path / "pruned.safetensors"]
    monkeypatch.setattr(sys, "argv", ["prune_encoder.py", *map(str, words), "--threads", "1"])
    capsys.readouterr()  # the seed
    prune_encoder.main()
    lines = capsys.readouterr().out.splitlines()
    pruned = load_file(tmp_path / "pruned.safetensors")
    image = np.random.default_rng(seed).random((1, 3, 32, 48))
    before = Network(weights, pooled=LITE_POOLED).features(image)
    after = Network(pruned, pooled=LITE_POOLED).features(image)
    for layer, line in zip(VGG19_LITE.layers(), lines, strict=True):
        width = layer.out_channels
        had = width + surplus()[layer.conv]
        assert line == f"{layer.conv}: {had} channels, {width - 1} fire, {width} kept"
        old, new = (np.asarray(taps[layer.tap])[0] for taps in (before, after))
        fires, found = (w[f"{layer.conv}.bias"].numpy() > 0 for w in (weights, pruned))
        np.testing.assert_allclose(new[found], old[fires], rtol=1e-12)
        assert (new[~found] == 0).all()


def test_channels_that_fire_are_not_taken(pictures):
    counts = surplus()
    counts["conv3_3"] -= 1
    paths = sorted(pictures.iterdir())
    found = prune_encoder.peaks(silenced(counts, 1), prune_encoder.views(paths))
    width = VGG19_LITE.blocks[2][2]
    expected = f"conv3_3: {width + 1} channels fire and VGG19_LITE has {width}"
    with pytest.raises(EncoderError, match=expected):
        prune_encoder.channels_to_keep(found)
