"""Which providers are usable here, and which one "auto" means."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass

from nst_fast.config import PrecisionName, ProviderName, parse_device
from nst_fast.errors import ProviderError
from nst_fast.gpu import providers as gpu
from nst_fast.host import cpu_features
from nst_fast.library import GPU_PROVIDERS, Precision, Provider, onnxruntime
from nst_fast.runtime import openvino

# TensorRT always multiplies float32 in TF32; only CUDA can be told not to.
GPU_PRECISIONS: dict[Provider, tuple[Precision, ...]] = {
    "tensorrt": ("tf32", "fp16"),
    "cuda": ("fp32", "tf32", "fp16"),
}
NVIDIA_DRIVER = "/proc/driver/nvidia/version"
PROVIDERS: tuple[Provider, ...] = (*GPU_PROVIDERS, "openvino", "cpu")
FASTEST_FIRST: tuple[Precision, ...] = ("fp16", "bf16", "fp32", "tf32")


@dataclass(frozen=True)
class ProviderStatus:
    """One provider: the precisions it offers here, or why it cannot be used."""

    name: Provider
    precisions: tuple[Precision, ...]
    problem: str | None = None


def providers() -> list[ProviderStatus]:
    """Every provider that nst-fast knows, usable or not, in the order that "auto" tries them."""
    return [_status(name) for name in PROVIDERS]


def _status(name: Provider) -> ProviderStatus:
    try:
        if name in GPU_PROVIDERS:
            gpu.require(name)
            return ProviderStatus(name, GPU_PRECISIONS[name])
        if name == "cpu":
            onnxruntime()
            return ProviderStatus(name, ("fp32",))
        openvino.plugin_device()
        bf16 = any(feature in cpu_features() for feature in openvino.BF16_FEATURES)
        return ProviderStatus(name, ("fp32", "bf16") if bf16 else ("fp32",))
    except ProviderError as error:
        return ProviderStatus(name, (), str(error))


def choose(
    provider: ProviderName, precision: PrecisionName, device: str = "auto"
) -> tuple[Provider, Precision]:
    """Resolve "auto" to what is fastest here, and refuse what cannot be had.

    A GPU where one is usable, in float16; else bfloat16 on OpenVINO where the CPU has the
    instructions, else OpenVINO in float32, else onnxruntime's CPU provider (measured on CPUs:
    docs/architecture.md).

    Args:
        provider: "auto", or the one to use.
        precision: "auto", or the one to use.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        ProviderError: what was asked for is not available here.
        SettingsError: no such device.
    """
    device_type, _ = parse_device(device)
    onnxruntime()
    names = [name for name in PROVIDERS if provider in ("auto", name)]
    if device_type != "auto":
        names = [name for name in names if (name in GPU_PROVIDERS) == (device_type == "cuda")]
        if not names:
            raise ProviderError(f"provider {provider} does not run on device {device}")
    statuses = [_status(name) for name in names]  # of these alone: each loads its libraries
    usable = [status for status in statuses if not status.problem]
    if not usable:
        problems = "; ".join(f"{status.name}: {status.problem}" for status in statuses)
        raise ProviderError(f"provider {problems}")
    for wanted in FASTEST_FIRST if precision == "auto" else (precision,):
        for status in usable:
            if wanted in status.precisions:
                return status.name, wanted
    raise ProviderError(f"precision {precision} cannot be had here: {_why(precision)}")


def faster() -> list[str]:
    """What would be faster here than what "auto" takes, each with the command that gets it."""
    advice = []
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    usable = {status.name for status in providers() if not status.problem}
    on_gpu = usable.intersection(GPU_PROVIDERS)
    if x86 and sys.platform in ("linux", "win32") and "openvino" not in usable and not on_gpu:
        bf16 = any(feature in cpu_features() for feature in openvino.BF16_FEATURES)
        what = ", and bfloat16, which this CPU has" if bf16 else ""
        advice.append(
            f"OpenVINO is faster than onnxruntime's CPU provider{what}; "
            'run: pip install "nst-fast[openvino]"'
        )
    if x86 and not on_gpu and os.path.exists(NVIDIA_DRIVER):
        advice.append(
            "the NVIDIA GPU is not used; run: pip uninstall --yes onnxruntime onnxruntime-gpu "
            '&& pip install "nst-fast[gpu]"'
        )
    return advice


def _why(precision: PrecisionName) -> str:
    if precision == "fp32":
        return "TensorRT multiplies in TF32 or float16; use --provider cuda"
    if precision in ("tf32", "fp16"):
        statuses = [_status(name) for name in GPU_PROVIDERS]
        if not all(status.problem for status in statuses):
            return "it needs a GPU; use --device cuda"
        problems = "; ".join(f"{status.name}: {status.problem}" for status in statuses)
        return f"it needs a GPU ({problems})"
    if not any(feature in cpu_features() for feature in openvino.BF16_FEATURES):
        return "this CPU has neither avx512_bf16 nor amx_bf16; use --precision fp32"
    problem = _status("openvino").problem
    if problem:
        return f"bfloat16 needs OpenVINO, and {problem}"
    return "bfloat16 is computed on the CPU by OpenVINO alone; use --provider openvino"
