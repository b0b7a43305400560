"""What a group of pictures takes of a GPU's memory, known before anything is made.

Our own arrays are counted, each once. What onnxruntime takes besides is its share of the encoder's
activations, as its arenas asked for it on stand-ins for CUDA's libraries (onnxruntime-gpu 1.31.1,
``vgg19`` and ``vgg19-lite``, one picture and four, 256 and 512 pixels). cuDNN's workspaces depend
on the algorithms that it finds on a device, and have an allowance.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from nst_fast.canvas import Canvas
from nst_fast.config import StyleSettings
from nst_fast.encoders import Encoder, Tap
from nst_fast.graph.channels_last import PIXEL_BYTES
from nst_fast.library import Precision
from nst_fast.losses import Objective, tap_of

PLANE = 12  # bytes a pixel: three channels in float32
# Of the activations: what the arenas of both sessions of a step take, in the features' type, where
# it runs as whole graphs (layer by layer they take less), ...
STEP = 2.1 + 4.3
STATISTICS = 1.4  # ... and that of the one that measures, in float32.
WEIGHTS = 3 * 4  # bytes of each weight: in the sessions of a step and in the one that measures
ALLOWANCE = 768 << 20  # bytes: libraries, cuDNN's workspaces, sums over the slices of a product


@dataclass(frozen=True)
class DeviceFootprint:
    """The memory of a split Plan and its loop, and of measuring beside them.

    Attributes:
        encoder: the pack to run.
        objective: terms and weights, at the taps that the pictures have.
        settings: of the run.
        canvas: of each picture.
        precision: of a step.
        weighted: whether cells have weights.
    """

    encoder: Encoder
    objective: Objective
    settings: StyleSettings
    canvas: Canvas
    precision: Precision
    weighted: bool

    def needed(self, pictures: int) -> int:
        """Bytes that so many pictures side by side take at the peak."""
        channels = [3, *(tap.channels for tap in self._reached)]
        weights = sum(9 * before * behind for before, behind in itertools.pairwise(channels))
        kept = _floats(self.encoder.taps[tap] for tap in self.objective.content)
        activations = _floats(self._reached)
        sessions = (STEP * self._item + 4 * STATISTICS) * activations + 4 * kept
        each = self._plan() + self._loop() + self._cells * sessions
        return int(pictures * each + WEIGHTS * weights) + ALLOWANCE

    def arrays(self, pictures: int) -> int:
        """Bytes of our own arrays but for those of the sums over slices."""
        return int(pictures * (self._plan() + self._loop()))

    def _plan(self) -> float:
        """Of a picture, in a DevicePlan: features, gradients at them, contents, pictures."""
        taps, objective, cells = self.encoder.taps, self.objective, self._cells
        maps = [*self._reached, *(taps[tap] for tap in (*objective.taps, *objective.content))]
        places = {*objective.style, *objective.content}
        found = self._item * _floats(maps) * cells
        found += 4 * self.weighted * cells * sum(1 / taps[tap_of(p)].stride ** 2 for p in places)
        found += 2 * PLANE * self._pixels
        found += 2 * PIXEL_BYTES * cells  # the canvas and its gradient
        # Pooled maps, and two rooms for the gradient on its way back.
        pairs = itertools.pairwise(self._reached)
        pooled = [tap for tap, next_tap in pairs if next_tap.stride > tap.stride]
        largest = max(tap.channels / tap.stride**2 for tap in self._reached)
        found += self._item * (_floats(pooled) / 4 + 2 * largest) * cells
        if objective.temporal > 0:
            found += (PLANE + 4) * self._pixels
        # M, [A b] and A as it is multiplied; then the loss's: what is asked for, and the metric.
        return found + sum(
            (16 + self._item) * (taps[tap_of(site)].channels + 1) ** 2 for site in objective.style
        )

    def _loop(self) -> float:
        """Of a picture, in a DeviceLoop."""
        settings = self.settings
        planes = 1.0  # what the host looks at
        planes += 3 if settings.smoothing > 0 else 0  # z, its gradient, the start
        # Both moments; or the accepted point, its gradient, and pairs in bfloat16.
        planes += 2 if settings.optimizer == "adam" else 2 + settings.history
        planes += 2 if settings.average > 1 else 0
        return planes * PLANE * self._pixels

    @property
    def _item(self) -> int:
        """Bytes of a feature."""
        return 2 if self.precision == "fp16" else 4

    @property
    def _pixels(self) -> int:
        return self.canvas.height * self.canvas.width

    @property
    def _cells(self) -> int:
        """Of the canvas, at full size."""
        height, width = self.canvas.size
        return height * width

    @property
    def _reached(self) -> list[Tap]:
        """Every layer up to the deepest tap."""
        names = list(self.encoder.taps)
        last = max(map(names.index, self.objective.taps))
        return [self.encoder.taps[name] for name in names[: last + 1]]


def _floats(taps: Iterable[Tap]) -> float:
    """Features for a pixel of the canvas."""
    return sum(tap.channels / tap.stride**2 for tap in taps)
