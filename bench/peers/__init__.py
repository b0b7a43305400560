"""What a user would run instead of nst-fast, each at its best, on the same weights and objective.

``nst_fast.bench.peers`` finds this package by its path and says what each name must be.
"""

from __future__ import annotations

from functools import partial

import torch

from nst_fast.bench.findings import Device
from nst_fast.bench.peers import GramPeer, StepPeer
from nst_fast.bench.problem import Problem, Step
from peers import gpu
from peers.gram import numpy_routes, torch_routes
from peers.minimizers import scipy_lbfgs, torch_lbfgs
from peers.random_encoder import random_vgg19
from peers.torch_step import TorchStep

__all__ = ["CLASSIC", "GRAMS", "MEMORY", "MINIMIZERS", "STEPS", "gpu", "random_vgg19"]

_last = partial(TorchStep, channels_last=True)
_cuda = partial(TorchStep, device="cuda")
_cublas = partial(torch_routes, device="cuda")


def _openvino(problem: Problem, bf16: bool = False) -> Step:
    from peers.openvino_step import OpenVinoStep  # not on every machine

    return OpenVinoStep(problem, bf16=bf16)


_ON_CPU = {
    "torch fp32": StepPeer("fp32", TorchStep),
    "torch fp32 channels_last": StepPeer("fp32", _last),
    "torch bf16 channels_last": StepPeer("bf16", partial(_last, bf16=True)),
    "torch.compile fp32": StepPeer("fp32", partial(TorchStep, compiled=True), compiled=True),
    "torch.compile fp32 channels_last": StepPeer(
        "fp32", partial(_last, compiled=True), compiled=True
    ),
    "torch.compile bf16 channels_last": StepPeer(
        "bf16", partial(_last, bf16=True, compiled=True), compiled=True
    ),
    "OpenVINO alone fp32": StepPeer("fp32", _openvino, several=False),
    "OpenVINO alone bf16": StepPeer("bf16", partial(_openvino, bf16=True), several=False),
}
_ON_CUDA = {
    "torch fp32": StepPeer("fp32", _cuda),
    "torch tf32": StepPeer("tf32", partial(_cuda, tf32=True)),
    "torch.compile bf16 channels_last, CUDA graphs": StepPeer(
        "bf16", partial(_cuda, channels_last=True, bf16=True, compiled=True), compiled=True
    ),
}
STEPS: dict[Device, dict[str, StepPeer]] = {"cpu": _ON_CPU, "cuda": _ON_CUDA}
GRAMS: dict[Device, dict[str, GramPeer]] = {
    "cpu": {"numpy": GramPeer("fp32", numpy_routes), "torch": GramPeer("fp32", torch_routes)},
    "cuda": {
        "cuBLAS fp32": GramPeer("fp32", _cublas),
        "cuBLAS tf32": GramPeer("tf32", partial(_cublas, tf32=True)),
        "cuBLAS bf16": GramPeer("bf16", partial(_cublas, kind=torch.bfloat16)),
        "cuBLAS fp16": GramPeer("fp16", partial(_cublas, kind=torch.float16)),
    },
}
MINIMIZERS = {"torch.optim.LBFGS": torch_lbfgs, "scipy L-BFGS-B": scipy_lbfgs}
CLASSIC = "peers.classic"
CLASSICS = {
    "torch fp32": ("fp32", ()),
    "torch.compile fp32 channels_last": ("fp32", ("--compile", "--channels-last")),
    "torch.compile bf16 channels_last": ("bf16", ("--compile", "--channels-last", "--bf16")),
}
JUDGED = "peers.judged"
MEMORY = {
    "torch fp32": (),
    "torch bf16 channels_last": ("--bf16", "--channels-last"),
}
