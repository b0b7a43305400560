"""CUDA and TensorRT: what is usable, and the options of their sessions.

TensorRT comes as the plugin ``onnxruntime-ep-nv-tensorrt-rtx-cu13``, which brings TensorRT for RTX
with it, or, in onnxruntime-gpu, as the classic provider, which needs TensorRT 10 installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nst_fast.device import Launcher
from nst_fast.encoders.cache import cache_dir
from nst_fast.errors import ProviderError, one_line
from nst_fast.gpu.cuda import find_gpus
from nst_fast.library import (
    CPU_EP,
    Precision,
    Provider,
    onnxruntime,
    session_options,
    versions,
)

CUDA_EP = "CUDAExecutionProvider"
TENSORRT_EP = "TensorrtExecutionProvider"
RTX_EP = "NvTensorRTRTXExecutionProvider"
RTX_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
RTX_CAPABILITIES = "8.6, 8.9, and 12.0 or later"  # not 8.0 (A100) and 9.0 (H100, H200)
NVINFER = "nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10"
# Beside each are the others of CUDA, and of cuDNN.
LIBRARIES = ("libcublasLt.so.*", "cublasLt64_*.dll", "libcudnn.so.*", "cudnn64_*.dll")
INSTALL_CUDA = 'pip install "nst-fast[gpu]" in an environment without onnxruntime'
INSTALL_TENSORRT = 'pip install "nst-fast[tensorrt]"'
logger = logging.getLogger(__name__)


@functools.cache
def require(provider: Provider) -> None:
    """Raise ProviderError, saying why, unless a GPU provider can be used."""
    if provider == "cuda":
        _require_cuda_build()
        find_gpus()
    else:
        tensorrt_devices()


def _require_cuda_build() -> None:
    runtime = onnxruntime()
    if CUDA_EP not in runtime.get_available_providers():
        raise ProviderError(f"onnxruntime-gpu is not installed; run: {INSTALL_CUDA}")
    # Else every session warns that no plugin takes the provider's place.
    runtime.set_default_logger_severity(3)
    _load_libraries(runtime)


def _load_libraries(runtime: Any) -> None:
    """Load CUDA's libraries from NVIDIA's packages, wherever Python finds these.

    onnxruntime looks beside its own folder, which need not be theirs, and prints what it misses to
    stdout, where results go.
    """
    spec = find_spec("nvidia")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    found = [path for place in places for name in LIBRARIES for path in place.rglob(name)]
    for folder in (*dict.fromkeys(str(path.parent) for path in found), None):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            runtime.preload_dlls(directory=folder)
    if said.getvalue():  # the last had the others' to find
        logger.info("onnxruntime: %s", one_line(said.getvalue()))


@functools.cache
def tensorrt_devices() -> tuple[Any, ...] | None:
    """The plugin's devices, in CUDA's order; None where the classic provider takes its place.

    Raises:
        ProviderError: neither can be used; the message says why.
    """
    runtime = onnxruntime()
    plugin = find_spec(RTX_MODULE) is not None
    classic = TENSORRT_EP in runtime.get_available_providers()
    if not plugin and not classic:
        raise ProviderError(f"the TensorRT plugin is not installed; run: {INSTALL_TENSORRT}")
    find_gpus()
    if plugin:
        devices = _plugin_devices()
        if devices:
            return devices
        if not classic:
            raise ProviderError(
                "the TensorRT plugin supports none of the GPUs: it is made for the compute "
                f"capabilities {RTX_CAPABILITIES}; use CUDA: {INSTALL_CUDA}"
            )
    _load_libraries(runtime)
    try:
        ctypes.CDLL(NVINFER)
    except OSError:
        raise ProviderError(
            f"onnxruntime-gpu's TensorRT provider needs TensorRT 10 ({NVINFER}), which did not "
            'load; run: pip install "tensorrt-cu13<11", or take the plugin: ' + INSTALL_TENSORRT
        ) from None
    return None


def _plugin_devices() -> tuple[Any, ...]:
    import importlib

    runtime = onnxruntime()
    try:
        plugin = importlib.import_module(RTX_MODULE)
        runtime.register_execution_provider_library(RTX_EP, plugin.get_library_path())
        devices = tuple(d for d in runtime.get_ep_devices() if d.ep_name == RTX_EP)
    except Exception as error:
        raise ProviderError(f"the TensorRT plugin did not load: {one_line(error)}") from None
    return devices


def open_session(
    model: bytes, provider: Provider, precision: Precision, launcher: Launcher, *, graphs: bool
) -> Any:
    """Create a session whose every node runs on a GPU provider.

    Args:
        model: serialised ONNX.
        provider: "cuda" or "tensorrt"; "cpu" runs it on the host, for a Launcher that does.
        precision: what the model was written for; of the options only TF32 depends on it.
        launcher: its stream and device are the session's.
        graphs: capture the run as a CUDA graph.

    Raises:
        ProviderError: another provider came out than was asked for.
    """
    runtime = onnxruntime()
    options = session_options(1)
    if provider == "cpu":
        return runtime.InferenceSession(model, options, providers=[CPU_EP])
    # A node on the CPU would cost a round trip in every step, and forfeit the graph.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider == "cuda":
        expected = CUDA_EP
        chosen = {"providers": [(CUDA_EP, cuda_options(precision, launcher, graphs))]}
    else:
        devices, folder = tensorrt_devices(), _cache_folder(model, precision, launcher)
        expected = RTX_EP if devices else TENSORRT_EP
        chosen = {}
        if devices:
            if launcher.index >= len(devices):
                raise ProviderError(f"the TensorRT plugin does not support {launcher.name}")
            options.add_provider_for_devices(
                [devices[launcher.index]], rtx_options(launcher, graphs, folder)
            )
        else:
            chosen = {"providers": [(TENSORRT_EP, tensorrt_options(launcher, graphs, folder))]}
    # Else a failure is tried again on the CPU, and that attempt's error is the one reported.
    session = runtime.InferenceSession(model, options, enable_fallback=0, **chosen)
    actual = session.get_providers()[0]
    if actual != expected:
        raise ProviderError(f"asked for {expected}, onnxruntime chose {actual}")
    return session


def cuda_options(precision: Precision, launcher: Launcher, graphs: bool) -> dict[str, str]:
    """Options of onnxruntime's CUDA provider."""
    return {
        "device_id": str(launcher.index),
        "user_compute_stream": str(launcher.stream),
        # The default search takes cuDNN's fallback kernels (onnxruntime#22705).
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # Off, it keeps cuDNN from every engine with tensor cores, for float16 too.
        "use_tf32": str(int(precision != "fp32")),
        # By default each piece of the arena is twice the one before, whatever is asked for.
        "arena_extend_strategy": "kSameAsRequested",
        # As the graphs are written: its Transposes cancel theirs, and tensor cores read it.
        "prefer_nhwc": "1",
        "enable_cuda_graph": str(int(graphs)),
    }


def rtx_options(launcher: Launcher, graphs: bool, folder: Path) -> dict[str, str]:
    """Options of the TensorRT for RTX plugin."""
    return {
        "has_user_compute_stream": "1",
        "user_compute_stream": str(launcher.stream),
        "enable_cuda_graph": str(int(graphs)),
        "nv_runtime_cache_path": str(folder),
    }


def tensorrt_options(launcher: Launcher, graphs: bool, folder: Path) -> dict[str, str]:
    """Options of onnxruntime-gpu's own TensorRT provider."""
    return {
        "device_id": str(launcher.index),
        "user_compute_stream": str(launcher.stream),
        "trt_cuda_graph_enable": str(int(graphs)),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _cache_folder(model: bytes, precision: Precision, launcher: Launcher) -> Path:
    """Where TensorRT keeps what it compiled for this GPU, these versions and this very graph.

    Shapes are part of the graph.
    """
    facts = "\n".join([launcher.name, precision, *(f"{k}={v}" for k, v in versions().items())])
    key = hashlib.sha256(facts.encode() + model).hexdigest()[:32]
    folder = cache_dir() / "tensorrt" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProviderError(
            f"cannot keep TensorRT's cache in {folder} ({error.strerror}): make room or set "
            "NST_FAST_CACHE to another folder"
        ) from None
    return folder
