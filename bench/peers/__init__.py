"""What a user would run instead of nst-fast, each at its best, on the same weights and objective.

``nst_fast.bench.peers`` finds this package by its path and says what each name must be.
"""

from __future__ import annotations

from functools import partial

from nst_fast.bench.peers import StepPeer
from peers.gram import numpy_routes, torch_routes
from peers.minimizers import scipy_lbfgs, torch_lbfgs
from peers.openvino_step import OpenVinoStep
from peers.random_encoder import random_vgg19
from peers.torch_step import TorchStep

__all__ = ["CLASSIC", "GRAMS", "MEMORY", "MINIMIZERS", "STEPS", "random_vgg19"]

_last = partial(TorchStep, channels_last=True)

STEPS = {
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
    "OpenVINO alone fp32": StepPeer("fp32", OpenVinoStep),
    "OpenVINO alone bf16": StepPeer("bf16", partial(OpenVinoStep, bf16=True)),
}
GRAMS = {"numpy": numpy_routes, "torch": torch_routes}
MINIMIZERS = {"torch.optim.LBFGS": torch_lbfgs, "scipy L-BFGS-B": scipy_lbfgs}
CLASSIC = "peers.classic"
MEMORY = {
    "torch fp32": (),
    "torch bf16 channels_last": ("--bf16", "--channels-last"),
}
