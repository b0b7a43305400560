"""A fake onnxruntime that writes down what GPU sessions ask of it, and a fake GPU."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nst_fast import encoders, library
from nst_fast.gpu import providers as gpu
from nst_fast.gpu import session
from nst_fast.gpu.session import DeviceSession
from nst_fast.graph.graph import Graph

MODULE = {"cuda": "CUDAExecutionProvider", "tensorrt": "NvTensorRTRTXExecutionProvider"}


class FakeGpu:
    """A Launcher whose arrays are numpy's and whose address space is the host's."""

    multiprocessors, bf16_products = 4, True
    name, index, stream = "Fake GPU", 1, 0xABC0
    ort_device = ("cuda", 1)

    def zeros(self, shape, dtype=np.float32):
        return np.zeros(shape, dtype)

    def address(self, array):
        return array.ctypes.data

    def download(self, array):
        return array.copy()

    def fill(self, array, value):
        array.fill(value)


class FakeRuntime:
    """onnxruntime as far as GPU sessions use it; writes every call down and computes ``sum``."""

    def __init__(self, available=("CUDAExecutionProvider", "TensorrtExecutionProvider")) -> None:
        self.calls: list[tuple] = []
        self.available = list(available)
        self.no_capture = self.stale = self.subtracts = False
        self.actual: str | None = None
        self.SessionOptions = lambda: FakeOptions(self.calls)
        self.RunOptions = lambda: FakeOptions(self.calls)

    def get_available_providers(self):
        return [*self.available, "CPUExecutionProvider"]

    def preload_dlls(self, directory):
        self.calls.append(("preload", directory))
        print("Failed to load libcublasLt.so.13")

    def set_default_logger_severity(self, level):
        self.calls.append(("severity", level))

    def register_execution_provider_library(self, name, path):
        self.calls.append(("register", name, path))

    def get_ep_devices(self):
        names = ("CPUExecutionProvider", MODULE["tensorrt"], MODULE["tensorrt"])
        return [SimpleNamespace(ep_name=name, number=i) for i, name in enumerate(names)]

    def InferenceSession(self, model, options, enable_fallback, providers=None):  # noqa: N802
        assert not enable_fallback
        return FakeSession(self, options, providers)


class FakeOptions:
    def __init__(self, calls: list[tuple]) -> None:
        self.calls = calls
        self.devices: list[Any] = []
        self.options: dict[str, str] = {}
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key, value):
        self.entries[key] = value

    add_run_config_entry = add_session_config_entry

    def add_provider_for_devices(self, devices, options):
        self.devices, self.options = devices, options


class FakeSession:
    def __init__(self, runtime: FakeRuntime, options: FakeOptions, providers) -> None:
        self.runtime, self.bound = runtime, {}
        name, chosen = providers[0] if providers else (MODULE["tensorrt"], options.options)
        self.name = runtime.actual or name
        self.first: np.ndarray | None = None
        key = "trt_cuda_graph_enable" if "Tensorrt" in name else "enable_cuda_graph"
        self.graphs = chosen[key] == "1"
        devices = [device.number for device in options.devices]
        runtime.calls.append(("session", name, chosen, options.entries, devices))

    def get_providers(self):
        return [self.name, "CPUExecutionProvider"]

    def io_binding(self):
        self.runtime.calls.append(("binding",))
        return SimpleNamespace(bind_input=self.bind, bind_output=self.bind)

    def bind(self, name, device, index, dtype, shape, address):
        self.bound[name] = (shape, dtype, address)
        self.runtime.calls.append(("bind", name, device, index, dtype, shape, address))

    def run_with_iobinding(self, binding, run_options):
        self.runtime.calls.append(("run", dict(run_options.entries)))
        if self.graphs and self.runtime.no_capture:
            raise RuntimeError("capture failed\nwith a long story")
        a, b, total = (self.array(name) for name in ("a", "b", "sum"))
        if self.first is None or not (self.graphs and self.runtime.stale):
            self.first = a - b if self.runtime.subtracts else a + b
        total[:] = self.first

    def array(self, name):
        shape, dtype, address = self.bound[name]
        raw = (ctypes.c_byte * (int(np.prod(shape)) * np.dtype(dtype).itemsize)).from_address(
            address
        )
        return np.frombuffer(raw, dtype).reshape(shape)


def sum_graph(half: bool = False) -> Graph:
    graph = Graph([], {}, {"a": (2, 3), "b": (2, 3)}, {"sum": (2, 3)})
    graph.add("Add", ["a", "b"], "sum")
    if half:
        graph.halves.update("a", "b", ["sum"])
    return graph


@pytest.fixture
def runtime(monkeypatch, tmp_path) -> FakeRuntime:
    """A machine with one fake onnxruntime, the TensorRT plugin and GPUs."""
    fake = FakeRuntime()
    for module in (gpu, library, session):
        monkeypatch.setattr(module, "onnxruntime", lambda: fake)
    for name in ("require", "tensorrt_devices"):
        monkeypatch.setattr(gpu, name, getattr(gpu, name).__wrapped__)
    monkeypatch.setattr(gpu, "find_gpus", lambda: None)
    monkeypatch.setattr(gpu, "find_spec", lambda name: name == gpu.RTX_MODULE)
    plugin = SimpleNamespace(get_library_path=lambda: "/lib/rtx.so")
    monkeypatch.setitem(sys.modules, gpu.RTX_MODULE, plugin)
    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path))
    return fake


def open_(provider: str, precision: str = "fp16", graph: Graph | None = None) -> DeviceSession:
    return DeviceSession(
        graph or sum_graph(), provider=provider, precision=precision, launcher=FakeGpu()
    )
