"""onnxruntime itself: loading it, its versions, the names of what it offers."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
TELEMETRY_VARIABLE = "NST_FAST_TELEMETRY"


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
        with without_telemetry():
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


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Let onnxruntime and OpenVINO load inside without a word to their makers.

    Both look names up, connect and leave an identifier in the user's folder, unless told not to:
    onnxruntime by a variable of the environment, which stays as it is where the user has set it;
    OpenVINO, which knows no such variable, by the absence of the module that does it. It is left
    alone where the host program has loaded it before. ``NST_FAST_TELEMETRY=1`` asks for both.
    """
    if os.environ.get(TELEMETRY_VARIABLE) == "1":
        yield
        return
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sender = "openvino_telemetry"
    if sender in sys.modules:
        yield
        return
    sys.modules[sender] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[sender]


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
