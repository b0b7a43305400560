"""Take the channels that never fire out of trained weights of ``vgg19-lite``.

A channel whose ReLU is 0 wherever an image leads adds nothing to any feature, statistic or loss.
Without it, and without what the next layer reads it with, all others have the very same values, and
a step has fewer multiplications.

Every cell of every picture is looked at: as it is and, since optimised pixels leave [0, 1],
stretched to [-0.3, 1.3] and noisy. Each layer keeps as many channels as ``VGG19_LITE`` has, in
their order: all that fire and, where its width is more than that, those that came closest to it.
That more of them fire than its width is an error: ``VGG19_LITE`` is too narrow for these weights.

Run: python tools/prune_encoder.py TRAINED.safetensors FOLDER... --out PRUNED.safetensors
where the folders hold pictures. Prints for each layer how many channels it had, fire and are kept.
The same pictures give the same file on the same kind of machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from student import LAYERS, TRAINED, Weights, conv
from torch import Tensor

from nst_fast import images
from nst_fast.errors import EncoderError
from nst_fast.export.vgg import VGG19_LITE

BEYOND = 0.3  # optimised pixels go so far outside [0, 1]
NOISE = 0.2  # standard deviation


def views(paths: Iterable[Path]) -> Iterator[Tensor]:
    """Each picture as it is, and stretched and noisy: (1, 3, H, W) float32."""
    generator = torch.Generator().manual_seed(0)
    for path in paths:
        image = torch.from_numpy(images.to_tensor(images.load(path).pixels))
        yield image
        wide = image * (1 + 2 * BEYOND) - BEYOND
        noise = NOISE * torch.randn(image.shape, generator=generator)
        yield (wide + noise).clamp(-BEYOND, 1 + BEYOND)


@torch.no_grad()
def peaks(weights: Weights, views: Iterable[Tensor]) -> dict[str, Tensor]:
    """Largest value before its ReLU of each channel (C,), by layer: above 0 where it fires."""
    mean = torch.tensor(TRAINED.mean).view(1, 3, 1, 1)
    found = {y.conv: torch.full((y.out_channels,), -torch.inf) for y in LAYERS}
    for image in views:
        x = image - mean
        for layer in LAYERS:
            if layer.pooled:
                x = F.max_pool2d(x, 2)
            x = conv(x, weights[f"{layer.conv}.weight"], weights[f"{layer.conv}.bias"], "zeros")
            found[layer.conv] = torch.maximum(found[layer.conv], x.amax((0, 2, 3)))
            x = x.relu()
    return found


def channels_to_keep(peaks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Indices of each layer's channels that stay, ascending.

    Raises:
        EncoderError: more channels of a layer fire than ``VGG19_LITE`` has.
    """
    kept = {}
    for layer in VGG19_LITE.layers():
        peak = peaks[layer.conv]
        firing = int((peak > 0).sum())
        if firing > layer.out_channels:
            raise EncoderError(
                f"{layer.conv}: {firing} channels fire and VGG19_LITE has {layer.out_channels}: "
                "widen it"
            )
        kept[layer.conv] = peak.topk(layer.out_channels).indices.sort().values
    return kept


def pruned(weights: Weights, kept: Mapping[str, Tensor]) -> Weights:
    """Weights of those channels alone."""
    arrays: Weights = {}
    inputs = torch.arange(3)
    for name, channels in kept.items():
        arrays[f"{name}.weight"] = weights[f"{name}.weight"][channels][:, inputs].contiguous()
        arrays[f"{name}.bias"] = weights[f"{name}.bias"][channels]
        inputs = channels
    return arrays


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="as tools/train_encoder.py writes them")
    parser.add_argument("folders", type=Path, nargs="+", help="of pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    weights = load_file(options.weights)
    paths = [path for folder in options.folders for path in sorted(folder.iterdir())]
    found = peaks({name: value.float() for name, value in weights.items()}, views(paths))
    kept = channels_to_keep(found)
    for name, channels in kept.items():
        firing = int((found[name] > 0).sum())
        print(f"{name}: {len(found[name])} channels, {firing} fire, {len(channels)} kept")
    save_file(pruned(weights, kept), options.out)


if __name__ == "__main__":
    main()
