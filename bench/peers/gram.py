"""The Gram matrix, its loss and its gradient by numpy's BLAS and by torch, on a GPU cuBLAS."""

from __future__ import annotations

import numpy as np
import torch

from nst_fast.bench.findings import Device
from nst_fast.bench.method import Route
from nst_fast.bench.peers import REPEATS, GramRoutes
from nst_fast.device import Float32
from peers.torch_step import multiply_in_tf32


def numpy_routes(F: Float32, T: Float32, R: Float32, threads: int) -> GramRoutes:
    """Return forward and gradient without temporaries of F's size; threads are the BLAS's own."""
    del threads  # set for the whole process, where the routes are timed
    C, P = F.shape
    G, out, loss = np.empty_like(T), np.empty_like(F), np.zeros(())

    def forward() -> None:
        np.matmul(F, F.T, out=G)
        np.divide(G, C * P, out=G)
        np.subtract(G, T, out=G)
        loss[()] = np.vdot(G, G)

    def gradient() -> None:
        np.matmul(R * np.float32(4 / (C * P)), F, out=out)

    return GramRoutes(forward, gradient, lambda: float(loss), lambda: out)


def torch_routes(
    F_: Float32,
    T_: Float32,
    R_: Float32,
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
    T, R = (torch.from_numpy(a).to(device) for a in (T_, R_))
    C, P = F_.shape
    small, large = (1 / 16, 2.0 ** round(np.log2(C * P))) if kind == torch.float16 else (1.0, 1.0)
    F = (torch.from_numpy(F_) * small).to(device, kind)
    G, out = torch.empty((C, C), dtype=kind, device=device), torch.empty_like(F)
    loss = torch.zeros((), device=device)

    def forward() -> None:
        torch.mm(F, F.T, out=G)
        mean = (G.float() if kind != T.dtype else G).div_(C * P * small**2)
        loss.copy_(mean.sub_(T).square().sum())

    def gradient() -> None:
        torch.mm((R * (4 * large / (small * C * P))).to(kind), F, out=out)

    def found() -> Float32:
        array: Float32 = (out.float() / large).cpu().numpy()
        return array

    if device == "cpu":
        return GramRoutes(forward, gradient, lambda: float(loss), found)
    multiply_in_tf32(tf32)
    routes = (_recorded(work) for work in (forward, gradient))
    return GramRoutes(*routes, lambda: float(loss), found, REPEATS)


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
