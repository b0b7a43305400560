"""Rewriting an encoder's graphs to float16: weights, inputs, outputs, and how the image comes in.

Providers of a GPU compute in the type that a graph is written in.
"""

from __future__ import annotations

import numpy as np

from nst_fast.graph.graph import Graph
from nst_fast.graph.parts import IMAGE


def read_centred(graph: Graph) -> None:
    """Let a forward graph read an image less the mean of its colours, in place.

    ``gpu.picture.CanvasKernel`` writes one.
    """
    (centre,) = graph.consumers()[IMAGE]
    (first,) = graph.consumers()[centre.output[0]]
    graph.nodes.remove(centre)
    first.input[0] = IMAGE
    graph.remove_dead()


def read_parts(graph: Graph) -> None:
    """Let a forward graph read the coarse and the fine part of a centred image, in place.

    ``image``, (N, C, H, W), gets 2·C channels, as ``gpu.picture.CanvasKernel`` writes them.
    """
    (first,) = graph.consumers()[IMAGE]
    weights = graph.constants[first.input[1]]
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
