"""What torch knows of the GPU: its name, its clock, and the products that its floor is made of."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nst_fast.bench.method import Route
from nst_fast.errors import BenchError
from peers.torch_step import multiply_in_tf32

SIDE = 8192  # of the matrices
COPIED = 1 << 30  # bytes: beyond every cache


def facts() -> dict[str, Any]:
    """Name, memory (bytes) and compute capability of the GPU, and versions of CUDA and cuDNN.

    Raises:
        BenchError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise BenchError(
            f"--device cuda: torch {torch.__version__} sees no GPU; install a driver and a torch "
            "with CUDA, or leave --device out"
        )
    found = torch.cuda.get_device_properties(0)
    return {
        "gpu": found.name,
        "gpu_memory": found.total_memory,
        "gpu_capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def wait() -> None:
    """Return when the GPU has done everything that any stream was given."""
    torch.cuda.synchronize()


def used() -> int:
    """Bytes of the GPU's memory that any program uses, or torch keeps."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def give_back() -> None:
    """Collect what is unreachable, and give back what torch keeps."""
    gc.collect()
    torch.cuda.empty_cache()


def peak_routes() -> dict[str, Route]:
    """A large product in each precision, by its name, and a large copy, "copy"."""
    routes: dict[str, Route] = {}
    kinds = {"fp32": torch.float32, "tf32": torch.float32,
             "bf16": torch.bfloat16, "fp16": torch.float16}  # fmt: skip
    for name, kind in kinds.items():
        # Of ones a product takes less power, and the clock stays higher.
        A, B, out = (torch.randn((SIDE, SIDE), device="cuda").to(kind) for _ in range(3))
        routes[name] = partial(_product, A, B, out, name == "tf32")
    source, target = (torch.ones(COPIED // 4, device="cuda") for _ in range(2))
    return routes | {"copy": partial(target.copy_, source)}


def _product(A: Tensor, B: Tensor, out: Tensor, tf32: bool) -> None:
    multiply_in_tf32(tf32)
    torch.mm(A, B, out=out)
