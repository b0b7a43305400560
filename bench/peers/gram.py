"""The Gram matrix, its loss and its gradient by numpy's BLAS and by torch."""

from __future__ import annotations

import numpy as np
import torch

from nst_fast.bench.method import Route
from nst_fast.device import Float32


def numpy_routes(
    F: Float32, T: Float32, R: Float32, out: Float32, threads: int
) -> tuple[Route, Route]:
    """Return forward and gradient without temporaries of F's size; threads are the BLAS's own."""
    del threads  # set for the whole process, where the routes are timed
    C, P = F.shape
    G = np.empty_like(T)

    def forward() -> float:
        np.matmul(F, F.T, out=G)
        np.divide(G, C * P, out=G)
        np.subtract(G, T, out=G)
        return float(np.vdot(G, G))

    return forward, lambda: np.matmul(R * np.float32(4 / (C * P)), F, out=out)


def torch_routes(
    F_: Float32, T_: Float32, R_: Float32, out_: Float32, threads: int
) -> tuple[Route, Route]:
    """Return the same by torch."""
    torch.set_num_threads(threads)
    F, T, R, out = (torch.from_numpy(a) for a in (F_, T_, R_, out_))
    C, P = F.shape
    G = torch.empty_like(T)

    def forward() -> float:
        torch.mm(F, F.T, out=G)
        return float(G.div_(C * P).sub_(T).square().sum())

    return forward, lambda: torch.mm(R * (4 / (C * P)), F, out=out)
