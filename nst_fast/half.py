"""Rewriting an encoder's graphs to float16: weights, inputs, outputs, and how the image comes in.

Providers of a GPU compute in the type that a graph is written in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nst_fast.device import Float32
from nst_fast.graphs import IMAGE, Graph


def split(image: Float32, mean: Float32) -> NDArray[np.float16]:
    """An image (N, 3, H, W), less the mean of each channel, as coarse and fine part: (N, 6, H, W).

    One float16 has too few bits: an edge is a small difference of large values.
    """
    centred = image - mean.reshape(1, 3, 1, 1)
    coarse = centred.astype(np.float16)
    return np.concatenate([coarse, (centred - coarse).astype(np.float16)], axis=1)


def read_parts(graph: Graph) -> None:
    """Let a forward graph read what :func:`split` makes of the image, in place."""
    (centre,) = graph.consumers()[IMAGE]
    (first,) = graph.consumers()[centre.output[0]]
    graph.nodes.remove(centre)
    weights = graph.constants[first.input[1]]
    first.input[0] = IMAGE
    first.input[1] = graph.constant(np.concatenate([weights, weights], axis=1))
    n, channels, height, width = graph.inputs[IMAGE]
    graph.inputs[IMAGE] = (n, 2 * channels, height, width)


def to_half(graph: Graph) -> None:
    """Turn every float32 constant, input and output of a graph into float16, in place.

    The operators of an encoder take and give the same type throughout; only the scales of Resize
    are float32 by definition.
    """
    scales = {node.input[2] for node in graph.nodes if node.op_type == "Resize"}
    for name, value in graph.constants.items():
        if value.dtype == np.float32 and name not in scales:
            graph.constants[name] = value.astype(np.float16)
    graph.halves.update(graph.inputs, graph.outputs)
