"""Rewriting a graph to float16: its weights, its inputs and its outputs.

Providers of a GPU compute in the type that the graph is written in.
"""

from __future__ import annotations

import numpy as np

from nst_fast.graphs import Graph


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
