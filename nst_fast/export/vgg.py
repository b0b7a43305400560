"""The VGG family: architectures, checkpoint layouts and a torch module to trace.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2014. Taps are named after the ReLU outputs, ``relu1_1`` to ``relu5_4``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_fast.errors import EncoderError

Pooling = Literal["average", "max"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Layer:
    """One 3×3 convolution with its ReLU.

    Attributes:
        block: number of its block, from 1.
        index: its number in the block, from 1.
        in_channels: of the feature map that it reads.
        out_channels: of the feature map that it makes.
        pooled: whether it reads that map through a 2×2 pooling.
        stride: pixels of the image per cell of its feature map, in one direction.
    """

    block: int
    index: int
    in_channels: int
    out_channels: int
    pooled: bool
    stride: int

    @property
    def tap(self) -> str:
        """Name of the ReLU output, for instance ``relu3_1``."""
        return f"relu{self.block}_{self.index}"

    @property
    def conv(self) -> str:
        """Name of the convolution, for instance ``conv3_1``."""
        return f"conv{self.block}_{self.index}"


@dataclass(frozen=True)
class VggSpec:
    """A VGG's shape: channels of the convolutions in each block, poolings, pixel transform.

    ``pooled`` names the convolutions that read a pooled map: in a VGG the first of each block
    but the first.

    The network reads ``(image - mean) / std`` for an RGB image in [0, 1]. The division is
    folded into the first convolution, in float32 before any rounding; the subtraction is not,
    because the zero padding belongs to the centred image.
    """

    blocks: tuple[tuple[int, ...], ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pooled: tuple[str, ...] = ("conv2_1", "conv3_1", "conv4_1", "conv5_1")

    def layers(self) -> Iterator[Layer]:
        """Yield the convolutions in order."""
        channels, stride = 3, 1
        for block, widths in enumerate(self.blocks, start=1):
            for index, width in enumerate(widths, start=1):
                pooled = f"conv{block}_{index}" in self.pooled
                stride *= 2 if pooled else 1
                yield Layer(block, index, channels, width, pooled, stride)
                channels = width


VGG16 = VggSpec(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3))
VGG19 = VggSpec(((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4))
# At most a quarter of VGG-19's widths: the channels that ever fire, up to a multiple of 8. Where no
# tap of style or content is made, the last two layers before relu5_1 run at a quarter of the cells.
VGG19_LITE = VggSpec(
    ((16,) * 2, (32,) * 2, (64, 48, 24, 40), (80, 80, 64, 120), (104,)),
    std=(1.0, 1.0, 1.0),
    pooled=("conv2_1", "conv3_1", "conv4_1", "conv4_3"),
)
ARCHITECTURES: dict[str, VggSpec] = {"vgg16": VGG16, "vgg19": VGG19, "vgg19-lite": VGG19_LITE}


class Vgg(nn.Module):
    """Convolutional part of a VGG in evaluation mode; ``forward`` returns every tap."""

    mean: Tensor

    def __init__(self, spec: VggSpec, pooling: Pooling = "max") -> None:
        """Make the layers, with torch's random weights."""
        super().__init__()
        self.spec = spec
        self.pooling = pooling
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1))
        self.convs = nn.ModuleDict(
            {y.conv: nn.Conv2d(y.in_channels, y.out_channels, 3, padding=1) for y in spec.layers()}
        )

    def pool(self, x: Tensor) -> Tensor:
        """Halve both sides of a (N, C, H, W) feature map."""
        return F.avg_pool2d(x, 2) if self.pooling == "average" else F.max_pool2d(x, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map a (N, 3, H, W) RGB image in [0, 1] to its taps, each (N, C, H/s, W/s)."""
        x = image - self.mean
        taps: dict[str, Tensor] = {}
        for layer in self.spec.layers():
            if layer.pooled:
                x = self.pool(x)
            x = F.relu(self.convs[layer.conv](x))
            taps[layer.tap] = x
        return taps

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        """Fill the weights from ``convB_I.weight`` and ``convB_I.bias`` entries.

        Raises:
            EncoderError: an entry is missing or has the wrong shape; the message names it.
        """
        for layer in self.spec.layers():
            conv = self.convs[layer.conv]
            for part in ("weight", "bias"):
                entry = f"{layer.conv}.{part}"
                parameter: Tensor = getattr(conv, part)
                if entry not in arrays:
                    raise EncoderError(
                        f"the checkpoint has no entry {entry}: not this architecture"
                    )
                value = arrays[entry].to(parameter.dtype)
                if value.shape != parameter.shape:
                    raise EncoderError(
                        f"checkpoint entry {entry} has shape {tuple(value.shape)}, "
                        f"expected {tuple(parameter.shape)}: not this architecture"
                    )
                if entry == "conv1_1.weight":
                    value = value / torch.tensor(self.spec.std, dtype=value.dtype).view(1, 3, 1, 1)
                parameter.data.copy_(value)
