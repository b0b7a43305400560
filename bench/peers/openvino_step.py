"""OpenVINO without onnxruntime and without our rewriting of the step.

OpenVINO has no autograd, so somebody must write the backward pass down; the peer gets the graphs
that our export makes from torch autograd, as they come. Forward and backward are two models, each
compiled for throughput of one picture with all threads, and numpy's BLAS computes the Gram
matrices between them.
"""

from __future__ import annotations

import numpy as np
import openvino

from nst_fast.bench.problem import Problem
from nst_fast.device import Float32
from nst_fast.graphs import (
    IMAGE,
    IMAGE_GRADIENT,
    Graph,
    backward_graph,
    feature_graph,
    gradient_name,
)


class OpenVinoStep:
    """Loss and gradient of one picture."""

    def __init__(self, problem: Problem, *, bf16: bool = False) -> None:
        """Compile both models over shared tensors."""
        self._problem = problem
        encoder, objective = problem.encoder, problem.objective
        shape = (1, *problem.image.shape[2:])
        backward = backward_graph(encoder, objective.taps, shape)
        activations = [name for name in backward.inputs if name in encoder.taps]
        forward = feature_graph(encoder, dict.fromkeys((*activations, *objective.taps)), shape)
        ends = {**forward.inputs, **forward.outputs, **backward.inputs, **backward.outputs}
        self._arrays = {name: np.zeros(shape, np.float32) for name, shape in ends.items()}
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(problem.threads),
        }
        self._forward = self._compile(forward, config)
        self._backward = self._compile(backward, config)
        self._arrays[IMAGE][:] = problem.image

    def _compile(self, graph: Graph, config: dict[str, str]) -> openvino.InferRequest:
        core = openvino.Core()
        model = core.read_model(graph.to_model())
        request = core.compile_model(model, "CPU", config).create_infer_request()
        for name in (*graph.inputs, *graph.outputs):
            request.set_tensor(name, openvino.Tensor(self._arrays[name], shared_memory=True))
        return request

    def place(self, image: Float32) -> None:
        """Evaluate there from now on, (1, 3, H, W)."""
        np.copyto(self._arrays[IMAGE], image)

    @property
    def gradient(self) -> Float32:
        """Of the last step, (1, 3, H, W)."""
        return self._arrays[IMAGE_GRADIENT]

    def step(self) -> float:
        """Evaluate; the gradient is in :attr:`gradient`."""
        self._forward.infer()
        objective, targets = self._problem.objective, self._problem.targets
        factors = iter(map(float, self._problem.factors))
        for tap in objective.taps:
            self._arrays[gradient_name(tap)].fill(0)
        loss = 0.0
        for tap in objective.style:
            loss += self._style(tap, targets.style[tap][0], next(factors))
        for tap in objective.content:
            loss += self._content(tap, targets.content[tap], next(factors))
        self._backward.infer()
        return loss

    def _style(self, tap: str, target: Float32, factor: float) -> float:
        features, gradient = self._arrays[tap], self._arrays[gradient_name(tap)]
        channels = features.shape[1]
        F = features.reshape(channels, -1)
        R = F @ F.T / np.float32(F.size) - target
        np.matmul(np.float32(4 * factor / F.size) * R, F, out=gradient.reshape(F.shape))
        return factor * float(np.vdot(R, R))

    def _content(self, tap: str, target: Float32, factor: float) -> float:
        difference = self._arrays[tap] - target
        self._arrays[gradient_name(tap)] += np.float32(2 * factor / difference.size) * difference
        return factor * float(np.vdot(difference, difference)) / difference.size
