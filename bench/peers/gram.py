"""The Gram matrix, its loss and its gradient by numpy's BLAS and by torch, on a GPU cuBLAS."""

from __future__ import annotations

import numpy as np
import torch

from nst_fast.bench.findings import Device
from nst_fast.bench.peers import GramRoutes
from nst_fast.device import Float32
from peers.torch_step import multiply_in_tf32


def numpy_routes(F: Float32, T: Float32, R: Float32, threads: int) -> GramRoutes:
    """Return forward and gradient without temporaries of F's size; threads are the BLAS's own."""
    del threads  # set for the whole process, where the routes are timed
    C, P = F.shape
    G, out = np.empty_like(T), np.empty_like(F)

    def forward() -> float:
        np.matmul(F, F.T, out=G)
        np.divide(G, C * P, out=G)
        np.subtract(G, T, out=G)
        return float(np.vdot(G, G))

    def gradient() -> None:
        np.matmul(R * np.float32(4 / (C * P)), F, out=out)

    return GramRoutes(forward, gradient, lambda: out)


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
    """Return the same by torch, on features of another type too; a GPU is waited for."""
    torch.set_num_threads(threads)
    T, R = (torch.from_numpy(a).to(device) for a in (T_, R_))
    F = torch.from_numpy(F_).to(device, kind)
    C, P = F.shape
    G, out = torch.empty((C, C), dtype=kind, device=device), torch.empty_like(F)

    def forward() -> float:
        if device == "cuda":
            multiply_in_tf32(tf32)
        torch.mm(F, F.T, out=G)
        return float((G.float() if kind != T.dtype else G).div_(C * P).sub_(T).square().sum())

    def gradient() -> None:
        if device == "cuda":
            multiply_in_tf32(tf32)
        torch.mm((R * (4 / (C * P))).to(kind), F, out=out)

    return GramRoutes(forward, gradient, lambda: out.float().cpu().numpy())
