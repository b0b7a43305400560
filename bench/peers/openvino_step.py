"""OpenVINO without onnxruntime and without our rewriting of the step.

OpenVINO has no autograd, so somebody must write the backward pass down; the peer gets the graphs
that our export makes from torch autograd, as they come. Forward and backward are two models, each
compiled for throughput of one picture with all threads, and numpy's BLAS computes moments, loss and
the way back between them.
"""

from __future__ import annotations

import numpy as np

from nst_fast.bench.problem import Problem
from nst_fast.graph.forms import round_maxima
from nst_fast.graph.graph import Graph
from nst_fast.graph.parts import IMAGE, IMAGE_GRADIENT, gradient_name, graph_pair
from nst_fast.host import Float32
from nst_fast.library import without_telemetry

with without_telemetry():
    import openvino


class OpenVinoStep:
    """Loss and gradient of one picture."""

    def __init__(self, problem: Problem, *, bf16: bool = False) -> None:
        """Compile both models over shared tensors."""
        self._problem = problem
        encoder, objective = problem.encoder, problem.objective
        forward, backward = graph_pair(encoder, objective.taps, (1, *problem.image.shape[2:]))
        ends = {**forward.inputs, **forward.outputs, **backward.inputs, **backward.outputs}
        self._arrays = {name: np.zeros(shape, np.float32) for name, shape in ends.items()}
        if bf16:  # without it OpenVINO misses the maxima of most windows
            round_maxima(backward)
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(problem.threads),
        }
        self._forward = self._compile(forward, config)
        self._backward = self._compile(backward, config)
        self._arrays[IMAGE][:] = problem.image
        self._constants = {
            tap: [constants[name][0].astype(np.float32) for name in ("T", "K")]
            for tap, constants in problem.goal.constants.items()
        }

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
        objective, goal = self._problem.objective, self._problem.goal
        factors = iter(map(float, goal.factors[0]))
        for tap in objective.taps:
            self._arrays[gradient_name(tap)].fill(0)
        loss = 0.0
        for tap in objective.style:
            loss += self._style(tap, *self._constants[tap], next(factors))
        for tap in objective.content:
            loss += self._content(tap, goal.content[tap], next(factors))
        self._backward.infer()
        return loss

    def run(self) -> None:
        """Evaluate."""
        self.step()

    def _style(self, tap: str, T: Float32, K: Float32, factor: float) -> float:
        """tr(K R K R) of R = M − T, and its gradient: 4/(C·P)·(K R K)[:C, :] [F; 1]."""
        features, gradient = self._arrays[tap], self._arrays[gradient_name(tap)]
        C = features.shape[1]
        F, out = (array.reshape(C, -1) for array in (features, gradient))
        M = np.full_like(T, 1 / C)
        M[:C, :C] = F @ F.T / np.float32(F.size)
        M[C, :C] = M[:C, C] = F.mean(axis=1) / np.float32(C)
        R = M - T
        KRK = K @ R @ K
        Ab = np.float32(4 * factor / F.size) * KRK[:C]
        np.matmul(np.ascontiguousarray(Ab[:, :C]), F, out=out)
        np.add(out, Ab[:, C:], out=out)
        return factor * float(np.vdot(R, KRK))

    def _content(self, tap: str, target: Float32, factor: float) -> float:
        difference = self._arrays[tap] - target
        self._arrays[gradient_name(tap)] += np.float32(2 * factor / difference.size) * difference
        return factor * float(np.vdot(difference, difference)) / difference.size
