"""Moments of a tap and the way back by numpy's BLAS and by torch, on a GPU cuBLAS.

Mean and Gram matrix are beside each other in one matrix, as everybody's loss here wants them.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from nst_fast.bench.findings import Device
from nst_fast.bench.method import Route
from nst_fast.bench.peers import REPEATS, GramRoutes
from nst_fast.host import Float32
from peers.torch_step import multiply_in_tf32


def numpy_routes(F: Float32, derivative: Float32, threads: int) -> GramRoutes:
    """Return forward and gradient without temporaries of F's size; threads are the BLAS's own."""
    del threads  # set for the whole process, where the routes are timed
    C, P = F.shape
    A, b = np.ascontiguousarray(derivative[:, :C]), derivative[:, C:]
    G, out = np.empty_like(A), np.empty_like(F)
    M = np.full((C + 1, C + 1), 1 / C, np.float32)
    scale = np.float32(1 / (C * P))

    def forward() -> None:
        np.matmul(F, F.T, out=G)
        np.multiply(G, scale, out=M[:C, :C])
        M[C, :C] = M[:C, C] = F.sum(axis=1) * scale

    def gradient() -> None:
        np.matmul(A, F, out=out)
        np.add(out, b, out=out)

    return GramRoutes(forward, gradient, lambda: M, lambda: out)


def torch_routes(
    F_: Float32,
    derivative: Float32,
    threads: int,
    *,
    device: Device = "cpu",
    kind: torch.dtype = torch.float32,
    tf32: bool = False,
) -> GramRoutes:
    """Return the same by torch, on features of another type too.

    Features and gradient in float16 are multiplied by powers of two, so that neither the sums
    overflow nor the gradient vanishes, as a user would have to do.
    """
    torch.set_num_threads(threads)
    C, P = F_.shape
    small, large = (1 / 16, 2.0 ** round(np.log2(C * P))) if kind == torch.float16 else (1.0, 1.0)
    F = (torch.from_numpy(F_) * small).to(device, kind)
    scaled = torch.from_numpy(derivative).to(device) * large
    G, out = torch.empty((C, C), dtype=kind, device=device), torch.empty_like(F)
    M = torch.full((C + 1, C + 1), 1 / C, device=device)

    def forward() -> None:
        torch.mm(F, F.T, out=G)
        torch.mul(G, 1 / (C * P * small**2), out=M[:C, :C])
        M[:C, C] = F.sum(dim=1, dtype=torch.float32) / (C * P * small)
        M[C, :C] = M[:C, C]

    def gradient() -> None:
        torch.addmm(scaled[:, C:].to(kind), (scaled[:, :C] / small).to(kind), F, out=out)

    def host(array: Tensor) -> Float32:
        found: Float32 = array.float().cpu().numpy()
        return found

    ends = partial(host, M), lambda: host(out) / np.float32(large)
    if device == "cpu":
        return GramRoutes(forward, gradient, *ends)
    multiply_in_tf32(tf32)
    routes = (_recorded(work) for work in (forward, gradient))
    return GramRoutes(*routes, *ends, REPEATS)


def _recorded(work: Route) -> Route:
    """What does the work ``REPEATS`` times, in one CUDA graph."""
    aside = torch.cuda.Stream()  # libraries set themselves up outside of the graph
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            work()
    replay: Route = graph.replay
    return replay
