"""OpenVINO on CPUs: through its onnxruntime plugin, or where that has no device, by itself."""

from __future__ import annotations

import functools
from typing import Any

from nst_fast import forks
from nst_fast.errors import ProviderError, one_line
from nst_fast.library import CPU_EP, Precision, onnxruntime, without_telemetry

OPENVINO_EP = "OpenVINOExecutionProvider"
INTEL = 0x8086  # PCI vendor number
BF16_FEATURES = ("avx512_bf16", "amx_bf16")


@functools.cache
def plugin_device() -> Any:
    """Register the OpenVINO plugin, once per process, and return its CPU device.

    None on a CPU of another maker than Intel: the plugin lists no device there, whatever
    OpenVINO itself supports (https://github.com/microsoft/onnxruntime/pull/31981, open), and
    sessions run on OpenVINO's own runtime instead.

    Raises:
        ProviderError: it is not installed or did not load; the message says which.
    """
    runtime = onnxruntime()
    vendors = {d.device.vendor_id for d in runtime.get_ep_devices() if d.ep_name == CPU_EP}
    if INTEL not in vendors:
        core()
        return None
    try:
        with without_telemetry():
            import onnxruntime_ep_openvino as plugin
    except ImportError:
        raise _missing() from None
    try:
        runtime.register_execution_provider_library(OPENVINO_EP, plugin.get_library_path())
        devices = runtime.get_ep_devices()
    except Exception as error:
        raise ProviderError(f"the OpenVINO plugin did not load: {one_line(error)}") from None
    for device in devices:
        # The plugin also lists an ….AUTO device; passing both to a session is an error.
        if device.ep_name == OPENVINO_EP and device.ep_metadata.get("ov_device") == "CPU":
            return device
    raise ProviderError("the OpenVINO plugin found no CPU device that it supports")


@functools.cache
def core() -> Any:
    """OpenVINO's own runtime.

    Raises:
        ProviderError: it is not installed or did not load.
    """
    try:
        with without_telemetry():
            import openvino
    except ImportError:
        raise _missing() from None
    try:
        found = openvino.Core()
    except Exception as error:
        raise ProviderError(f"OpenVINO did not load: {one_line(error)}") from None
    forks.hold(found)
    return found


def config(precision: Precision, threads: int) -> dict[str, str]:
    """OpenVINO's own options of a session."""
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": str(threads),
        # Pinned threads of two processes would share a core.
        "ENABLE_CPU_PINNING": "NO",
    }
    # OpenVINO gives a new session the threads that an older one left. In a fork there are none.
    return options | {"NUM_STREAMS": "0"} if forks.inherits() else options


def _missing() -> ProviderError:
    return ProviderError(
        'OpenVINO is not installed; run: pip install "nst-fast[openvino]" '
        "(x86-64 Linux and Windows)"
    )
