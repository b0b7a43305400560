"""onnxruntime itself: loading it, its versions, the names of what it offers."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Literal

from nst_fast.errors import ProviderError

Provider = Literal["cpu", "openvino", "cuda", "tensorrt"]
Precision = Literal["fp32", "bf16", "tf32", "fp16"]
GPU_PROVIDERS: tuple[Provider, ...] = ("tensorrt", "cuda")
CPU_EP = "CPUExecutionProvider"
GPU_PACKAGES = frozenset({"onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx-cu13"})
PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-openvino",
    "openvino",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "cupy-cuda13x",
)


def single_precision(provider: Provider) -> Precision:
    """What a provider has for float32."""
    return "tf32" if provider == "tensorrt" else "fp32"


@functools.cache
def onnxruntime() -> ModuleType:
    """The module, where exactly one build of it is installed.

    Raises:
        ProviderError: none is, or two that overwrite each other; the message says what to do.
    """
    try:
        import onnxruntime as module
    except ImportError:
        raise ProviderError(
            'onnxruntime is not installed; run: pip install "nst-fast[cpu]" '
            '(with bfloat16 on x86-64: "nst-fast[cpu,openvino]"; on an NVIDIA GPU: "nst-fast[gpu]")'
        ) from None
    if {"onnxruntime", "onnxruntime-gpu"} <= versions().keys():
        raise ProviderError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "run: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    found: ModuleType = module
    return found


def versions() -> dict[str, str]:
    """Versions of onnxruntime and of what else runs the graphs, as far as installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def session_options(threads: int) -> Any:
    """Options that every session has."""
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options
