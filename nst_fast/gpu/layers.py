"""An encoder's passes layer by layer: sessions of one convolution, our kernels between them.

Between its convolutions onnxruntime reads and writes whole maps once for each operator; a kernel of
``csrc/layers.cu`` does it once for all of them. Both are recorded together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nst_fast.backend import Backend
from nst_fast.device import ADDRESS, DeviceArray, Launcher, describe
from nst_fast.gpu.picture import balanced_blocks
from nst_fast.gpu.session import DeviceSession
from nst_fast.graph.chain import Layer, Pooling, convolution
from nst_fast.graph.graph import Array
from nst_fast.graph.parts import IMAGE, IMAGE_GRADIENT, gradient_name

THREADS = 256  # of a block, as in layers.cu
MOST_BLOCKS = 4096
POOLINGS: dict[Pooling | None, int] = {None: 0, "max": 1, "average": 2}
# Layer of layers.cu.
LAYER = np.dtype(
    [
        *((name, ADDRESS) for name in ("activation", "bias", "pooled", "above", "tap", "gradient")),
        *((name, np.int32) for name in ("rows", "columns", "channels", "pooling", "aligned")),
    ],
    align=True,
)


@dataclass(frozen=True)
class Pass:
    """One direction, as a ``DeviceSession`` of its whole graph would be.

    Attributes:
        inputs: arrays to fill before :attr:`run`, by name.
        outputs: arrays that it overwrites, by name.
        run: enqueues it.
    """

    inputs: Mapping[str, DeviceArray]
    outputs: Mapping[str, DeviceArray]
    run: Callable[[], None]


def passes(
    layers: Sequence[Layer],
    taps: Sequence[str],
    backend: Backend,
    ends: Mapping[str, DeviceArray],
) -> tuple[Pass, Pass]:
    """The forward and the backward pass of a chain.

    Args:
        layers: of the encoder, up to the deepest tap.
        taps: activations that terms read.
        backend: of a GPU.
        ends: ``image`` and ``d_image``, in pixels of 16 bytes.
    """
    made = _Passes(layers, taps, backend, ends)
    activations = {layer.name: array for layer, array in zip(layers, made.activations, strict=True)}
    gradients = {gradient_name(tap): array for tap, array in made.gradients.items()}
    assert backend.launcher is not None
    capture = backend.launcher.capture
    forward = Pass(
        {IMAGE: ends[IMAGE]}, activations, capture(partial(_enqueue, made.forward_calls()))
    )
    backward = Pass(
        activations | gradients,
        {IMAGE_GRADIENT: ends[IMAGE_GRADIENT]},
        capture(partial(_enqueue, made.backward_calls())),
    )
    return forward, backward


Calls = list[Callable[[], None]]


def _enqueue(calls: Calls) -> None:
    for call in calls:
        call()


class _Passes:
    """Arrays of all layers, and what is called in a pass.

    Attributes:
        activations: of each layer, (N, H, W, C).
        gradients: of the terms at each tap, likewise.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        taps: Sequence[str],
        backend: Backend,
        ends: Mapping[str, DeviceArray],
    ) -> None:
        assert backend.launcher is not None
        self._layers, self._backend, self._ends = layers, backend, ends
        self._launcher = launcher = backend.launcher
        self._stored = ends[IMAGE].dtype
        self.activations: list[DeviceArray] = []
        self._read: list[DeviceArray] = [ends[IMAGE]]  # by each convolution
        for layer in layers:
            n, height, width, _ = self._read[-1].shape
            shape = n, height, width, len(layer.weights)
            self.activations.append(launcher.zeros(shape, self._stored))
            self._read.append(
                self.activations[-1]
                if layer.pooling is None
                else launcher.zeros((n, height // 2, width // 2, shape[3]), self._stored)
            )
        self.gradients = {
            layer.name: launcher.zeros(array.shape, self._stored)
            for layer, array in zip(layers, self.activations, strict=True)
            if layer.name in taps
        }

    def forward_calls(self) -> Calls:
        """What is enqueued from the image to the last activation."""
        calls: Calls = []
        for index, layer in enumerate(self._layers):
            x, y = self._read[index], self.activations[index]
            pooled = None if layer.pooling is None else self._read[index + 1]
            bias = self._launcher.put(layer.bias.astype(np.float32))
            calls += [
                self._convolution(layer.weights, x, y),
                self._kernel("rectify", index, bias=bias, pooled=pooled),
            ]
        return calls

    def backward_calls(self) -> Calls:
        """What is enqueued from the gradients at the taps to that at the image."""
        calls: Calls = []
        # Convolutions read of one and write to the other.
        size = max(array.size for array in self.activations)
        rooms = [self._launcher.zeros((size,), self._stored) for _ in range(2)]
        above, at = None, 0
        for index in reversed(range(len(self._layers))):
            layer, activation = self._layers[index], self.activations[index]
            if layer.pooling is not None and above is not None:
                at = 1 - at  # a pooled gradient is spread into the other
            gradient = _view(rooms[at], activation.shape)
            tap = self.gradients.get(layer.name)
            calls.append(self._kernel("descend", index, above=above, tap=tap, gradient=gradient))
            at = 1 - at
            above = (
                self._ends[IMAGE_GRADIENT]
                if index == 0
                else _view(rooms[at], self._read[index].shape)
            )
            calls.append(self._convolution(layer.flipped, gradient, above))
        return calls

    def _convolution(self, weights: Array, x: DeviceArray, y: DeviceArray) -> Callable[[], None]:
        session = DeviceSession(
            convolution(weights, x.shape),
            provider=self._backend.provider,
            precision=self._backend.precision,
            launcher=self._launcher,
            buffers={"x": x, "y": y},
            recorded=False,
        )
        return session.run

    def _kernel(self, name: str, index: int, **arrays: DeviceArray | None) -> Callable[[], None]:
        pooling = self._layers[index].pooling
        return layer_kernel(self._launcher, name, self.activations[index], pooling, **arrays)


def layer_kernel(
    launcher: Launcher,
    name: str,
    activation: DeviceArray,
    pooling: Pooling | None,
    **arrays: DeviceArray | None,
) -> Callable[[], None]:
    """What enqueues a kernel on a layer.

    ``rectify`` adds the bias (C,) float32 to what a convolution wrote, in place, cuts it off below
    0 and, with a pooling, writes ``pooled`` (N, H/2, W/2, C). ``descend`` writes ``gradient``: the
    gradient from ``above`` as the pooling takes it down, of an average without the 1/4, and that of
    a ``tap``, either of them or none, where the activation is above 0.

    Args:
        launcher: where the arrays are.
        name: of the kernel.
        activation: (N, H, W, C), float16 or float32, as are the arrays but the bias; H and W are
            even with a pooling.
        pooling: between this layer and the next.
        arrays: ``bias`` and ``pooled``, or ``above``, ``tap`` and ``gradient``.
    """
    n, height, width, channels = activation.shape
    held: dict[str, Any] = dict.fromkeys(LAYER.names or ()) | arrays
    held |= {
        "activation": activation,
        "rows": n * height,
        "columns": width,
        "channels": channels,
        "pooling": POOLINGS[pooling],
        "aligned": channels * activation.dtype.itemsize % 16 == 0,
    }
    chunks = -(-channels * activation.dtype.itemsize // 16)
    windows = n * height * width // (1 if pooling is None else 4)
    blocks = balanced_blocks(-(-windows * chunks // THREADS), MOST_BLOCKS)
    kind = "fp16" if activation.dtype == np.float16 else "fp32"
    layer = describe(launcher, LAYER, held)

    def enqueue(held: dict[str, Any] = held) -> None:  # with the arrays that it points to
        launcher.launch(f"{name}_{kind}", (blocks, 1, 1), THREADS, [layer])

    return enqueue


def _view(room: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
    return room[: int(np.prod(shape))].reshape(shape)
