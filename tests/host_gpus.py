"""Backends of the GPU's code path: everything on the host, and GPUs where there are any.

The CPU provider runs float16 graphs by casting, which rounds every layer's result as a GPU does.
"""

from __future__ import annotations

import pytest
from shim import make_launcher

from nst_fast.backend import Backend
from nst_fast.gpu import evaluators
from nst_fast.graph.forms import FORMS
from nst_fast.kernels import Kernels
from nst_fast.runtime import GPU_PROVIDERS, providers


@pytest.fixture
def host_gpu(monkeypatch):
    """A backend whose launcher is the shim, by precision."""
    # The CPU provider stands in for CUDA: on its own forms, but on the host as ever.
    of_cuda = {("cpu", precision): FORMS["cuda", precision] for precision in ("fp32", "fp16")}
    monkeypatch.setattr(evaluators, "FORMS", FORMS | of_cuda)

    def make(precision: str = "fp32") -> Backend:
        return Backend("cpu", precision, 1, Kernels(1), make_launcher("shim"))

    return make


@pytest.fixture(params=["shim", *(pytest.param(p, marks=pytest.mark.gpu) for p in GPU_PROVIDERS)])
def gpu(request, host_gpu):
    """The same, and on a machine with a GPU its providers on it."""
    if request.param == "shim":
        return host_gpu
    launcher = make_launcher("cuda")
    (status,) = (status for status in providers() if status.name == request.param)

    def make(precision: str = "fp32") -> Backend:
        if precision not in status.precisions:
            pytest.skip(f"{status.name} has no {precision} here: {status.problem or 'by nature'}")
        return Backend(status.name, precision, 1, Kernels(1), launcher)

    return make
