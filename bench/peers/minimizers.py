"""L-BFGS as others have it, on any function that gives loss and gradient."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch
from scipy import optimize

from nst_fast.bench.peers import Evaluate
from nst_fast.bench.problem import SETTINGS
from nst_fast.host import Float32, Float64


class _EnoughError(Exception):
    pass


def torch_lbfgs(evaluate: Evaluate, start: Float32, evaluations: int) -> None:
    """torch.optim.LBFGS with its defaults, as the classic script has it: steps of length 1."""
    x = torch.from_numpy(start.copy())
    optimizer = torch.optim.LBFGS([x], max_iter=evaluations, max_eval=evaluations)

    def closure() -> float:
        loss, gradient = evaluate(x.numpy())
        x.grad = torch.from_numpy(gradient.astype(np.float32))
        return loss

    optimizer.step(closure)


def scipy_lbfgs(evaluate: Evaluate, start: Float32, evaluations: int) -> None:
    """scipy's L-BFGS-B, without bounds, with as many pairs as ours."""
    left = evaluations

    def counted(x: Float64) -> tuple[float, Float64]:
        nonlocal left
        if left == 0:  # scipy looks at maxfun between iterations only
            raise _EnoughError
        left -= 1
        return evaluate(x.astype(np.float32))

    options = {"maxcor": SETTINGS.history, "maxfun": evaluations, "ftol": 0, "gtol": 0}
    with suppress(_EnoughError):
        optimize.minimize(
            counted, start.astype(np.float64), jac=True, method="L-BFGS-B", options=options
        )
