"""The only onnxruntime: which providers are usable, and sessions bound to fixed buffers.

A :class:`Session` runs one graph of fixed shapes on one provider. Its inputs and outputs are
arrays allocated once and bound once by address; ``run`` allocates and copies nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from nst_fast.config import PrecisionName, ProviderName
from nst_fast.device import Float32, aligned_zeros, cpu_features
from nst_fast.errors import ProviderError
from nst_fast.graphs import Graph

Provider = Literal["cpu", "openvino"]
Precision = Literal["fp32", "bf16"]
OPENVINO_EP = "OpenVINOExecutionProvider"
CPU_EP = "CPUExecutionProvider"
INTEL = 0x8086  # PCI vendor number
BF16_FEATURES = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class ProviderStatus:
    """One provider: the precisions it offers here, or why it cannot be used."""

    name: Provider
    precisions: tuple[Precision, ...]
    problem: str | None = None


@functools.cache
def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
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
    module: ModuleType = onnxruntime
    return module


@functools.cache
def _openvino_device() -> Any:
    """Register the OpenVINO plugin, once per process, and return its CPU device.

    None on a CPU of another maker than Intel: the plugin lists no device there, whatever
    OpenVINO itself supports (https://github.com/microsoft/onnxruntime/pull/31981, open), and
    sessions run on OpenVINO's own runtime instead.

    Raises:
        ProviderError: it is not installed or did not load; the message says which.
    """
    onnxruntime = _onnxruntime()
    vendors = {d.device.vendor_id for d in onnxruntime.get_ep_devices() if d.ep_name == CPU_EP}
    if INTEL not in vendors:
        _openvino_core()
        return None
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError:
        raise _openvino_missing() from None
    try:
        onnxruntime.register_execution_provider_library(OPENVINO_EP, plugin.get_library_path())
        devices = onnxruntime.get_ep_devices()
    except Exception as error:
        raise ProviderError(f"the OpenVINO plugin did not load: {_first_line(error)}") from None
    for device in devices:
        # The plugin also lists an ….AUTO device; passing both to a session is an error.
        if device.ep_name == OPENVINO_EP and device.ep_metadata.get("ov_device") == "CPU":
            return device
    raise ProviderError("the OpenVINO plugin found no CPU device that it supports")


@functools.cache
def _openvino_core() -> Any:
    try:
        import openvino
    except ImportError:
        raise _openvino_missing() from None
    try:
        return openvino.Core()
    except Exception as error:
        raise ProviderError(f"OpenVINO did not load: {_first_line(error)}") from None


def _openvino_missing() -> ProviderError:
    return ProviderError(
        'OpenVINO is not installed; run: pip install "nst-fast[openvino]" '
        "(x86-64 Linux and Windows)"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def versions() -> dict[str, str]:
    """Versions of onnxruntime and of the plugins that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "openvino"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def providers() -> list[ProviderStatus]:
    """Every provider that nst-fast knows, usable or not, fastest first."""
    bf16 = any(feature in cpu_features() for feature in BF16_FEATURES)
    statuses = []
    try:
        _openvino_device()
        precisions: tuple[Precision, ...] = ("fp32", "bf16") if bf16 else ("fp32",)
        statuses.append(ProviderStatus("openvino", precisions))
    except ProviderError as error:
        statuses.append(ProviderStatus("openvino", (), str(error)))
    try:
        _onnxruntime()
        statuses.append(ProviderStatus("cpu", ("fp32",)))
    except ProviderError as error:
        statuses.append(ProviderStatus("cpu", (), str(error)))
    return statuses


def choose(provider: ProviderName, precision: PrecisionName) -> tuple[Provider, Precision]:
    """Resolve "auto" to what is fastest here, and refuse what cannot be had.

    bfloat16 on OpenVINO where the CPU has the instructions, else OpenVINO in float32, else
    onnxruntime's CPU provider (measured: docs/architecture.md).

    Raises:
        ProviderError: the provider or the precision asked for is not available here.
    """
    _onnxruntime()
    statuses = {status.name: status for status in providers()}
    if provider != "auto":
        status = statuses[provider]
        if status.problem:
            raise ProviderError(f"provider {provider}: {status.problem}")
        candidates = [status]
    else:
        candidates = [status for status in statuses.values() if not status.problem]
    wanted: tuple[Precision, ...] = ("bf16", "fp32") if precision == "auto" else (precision,)
    for kind in wanted:
        for status in candidates:
            if kind in status.precisions:
                return status.name, kind
    raise ProviderError(f"precision {precision} cannot be had here: {_why_no_bf16(statuses)}")


def _why_no_bf16(statuses: Mapping[Provider, ProviderStatus]) -> str:
    if not any(feature in cpu_features() for feature in BF16_FEATURES):
        return "this CPU has neither avx512_bf16 nor amx_bf16; use --precision fp32"
    problem = statuses["openvino"].problem
    if problem:
        return f"bfloat16 needs OpenVINO, and {problem}"
    return "onnxruntime's CPU provider computes in float32; use --provider openvino"


class Session:
    """One graph of fixed shapes on one provider, bound to buffers that never move.

    Attributes:
        inputs: arrays to fill before :meth:`run`, by name, float32.
        outputs: arrays that :meth:`run` overwrites, by name, float32.
        provider: where it runs.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        provider: Provider,
        precision: Precision,
        threads: int,
        buffers: Mapping[str, Float32] | None = None,
    ) -> None:
        """Compile the graph and bind its buffers.

        Args:
            graph: with the shapes of its inputs and outputs set.
            provider: "cpu" or "openvino".
            precision: "bf16" needs OpenVINO.
            threads: of the provider, for this session.
            buffers: arrays to bind instead of new ones, so that sessions can share them.

        Raises:
            ProviderError: the session could not be created, or runs on another provider.
        """
        self.provider = provider
        given = buffers or {}
        self.inputs = {k: _buffer(k, s, given) for k, s in graph.inputs.items()}
        self.outputs = {k: _buffer(k, s, given) for k, s in graph.outputs.items()}
        try:
            self._run = self._bind(graph.to_model(), precision, threads)
        except ProviderError:
            raise
        except Exception as error:
            raise ProviderError(
                f"provider {provider} could not load the graph: {_first_line(error)}"
            ) from None

    def run(self) -> None:
        """Compute every output from the inputs; blocks until they are written.

        Raises:
            ProviderError: the provider failed, for instance for want of memory.
        """
        try:
            self._run()
        except Exception as error:
            raise ProviderError(
                f"provider {self.provider} failed: {_first_line(error)}; "
                "try a smaller size or another provider"
            ) from None

    def _bind(self, model: bytes, precision: Precision, threads: int) -> Callable[[], None]:
        if self.provider == "cpu":
            if precision != "fp32":
                raise ProviderError("onnxruntime's CPU provider computes in float32 only")
            return self._bind_onnxruntime(model, _cpu_options(threads), CPU_EP)
        config = _openvino_config(precision, threads)
        device = _openvino_device()
        if device is None:
            return self._bind_openvino(model, config)
        options = _options(threads)
        load_config = json.dumps({"CPU": config})
        options.add_provider_for_devices([device], {"load_config": load_config})
        return self._bind_onnxruntime(model, options, OPENVINO_EP)

    def _bind_onnxruntime(self, model: bytes, options: Any, expected: str) -> Callable[[], None]:
        onnxruntime = _onnxruntime()
        chosen = {"providers": [CPU_EP]} if expected == CPU_EP else {}
        session = onnxruntime.InferenceSession(model, options, **chosen)
        actual = session.get_providers()[0]
        if actual != expected:
            raise ProviderError(f"asked for {expected}, onnxruntime chose {actual}")
        binding = session.io_binding()
        for bind, arrays in (
            (binding.bind_input, self.inputs),
            (binding.bind_output, self.outputs),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        run_options = onnxruntime.RunOptions()
        run_options.log_severity_level = 3
        return functools.partial(session.run_with_iobinding, binding, run_options)

    def _bind_openvino(self, model: bytes, config: dict[str, str]) -> Callable[[], None]:
        import openvino

        core = _openvino_core()
        request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
        for name, array in {**self.inputs, **self.outputs}.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

        def run() -> None:
            request.infer()

        return run


def _buffer(name: str, shape: tuple[int, ...], given: Mapping[str, Float32]) -> Float32:
    if name not in given:
        return aligned_zeros(shape)
    array = given[name]
    if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ProviderError(
            f"buffer {name}: expected contiguous float32 {shape}, found {array.dtype} {array.shape}"
        )
    return array


def _options(threads: int) -> Any:
    options = _onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _cpu_options(threads: int) -> Any:
    options = _options(threads)
    options.enable_mem_pattern = False  # halves the peak of a joint graph at the same speed
    return options


def _openvino_config(precision: Precision, threads: int) -> dict[str, str]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": str(threads),
        # Pinned threads of two processes would share a core.
        "ENABLE_CPU_PINNING": "NO",
    }
