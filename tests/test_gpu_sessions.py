"""What GPU sessions ask of onnxruntime: options, bindings and the order of calls, on a fake one."""

from __future__ import annotations

import ctypes
import logging
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from problems import make_objective

from nst_fast import encoders, library, workspace
from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.errors import DeviceMemoryError, ProviderError
from nst_fast.gpu import providers as gpu
from nst_fast.gpu import session
from nst_fast.gpu.cuda import find_gpus
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

    def preload_dlls(self):
        self.calls.append(("preload",))

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


def sessions(runtime: FakeRuntime) -> list[tuple]:
    return [call for call in runtime.calls if call[0] == "session"]


@pytest.mark.parametrize(
    ("precision", "tf32", "nhwc"), [("fp32", "0", "0"), ("tf32", "1", "0"), ("fp16", "1", "1")]
)
def test_options_of_cuda(runtime, precision, tf32, nhwc):
    open_("cuda", precision)
    ((_, name, options, entries, _),) = sessions(runtime)
    assert name == "CUDAExecutionProvider"
    assert options == {
        "device_id": "1",
        "user_compute_stream": str(0xABC0),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": tf32,
        "prefer_nhwc": nhwc,
        "enable_cuda_graph": "1",
    }
    assert entries == {"session.disable_cpu_ep_fallback": "1"}


def test_options_of_the_tensorrt_plugin(runtime, tmp_path):
    open_("tensorrt")
    ((_, name, options, entries, devices),) = sessions(runtime)
    assert name == MODULE["tensorrt"]
    assert devices == [2]  # the second GPU
    folder = options.pop("nv_runtime_cache_path")
    assert options == {
        "has_user_compute_stream": "1",
        "user_compute_stream": str(0xABC0),
        "enable_cuda_graph": "1",
    }
    assert folder.startswith(str(tmp_path / "tensorrt"))
    assert entries == {"session.disable_cpu_ep_fallback": "1"}
    assert ("register", MODULE["tensorrt"], "/lib/rtx.so") in runtime.calls


def test_options_of_the_classic_tensorrt(runtime, monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: name)
    open_("tensorrt")
    ((_, name, options, _, _),) = sessions(runtime)
    assert name == "TensorrtExecutionProvider"
    assert options["trt_cuda_graph_enable"] == options["trt_engine_cache_enable"] == "1"
    assert options["user_compute_stream"] == str(0xABC0)
    assert options["device_id"] == "1"


def test_the_cache_of_tensorrt_is_keyed_by_all_that_it_depends_on(runtime, monkeypatch):
    def folder(graph: Graph, precision: str = "fp16") -> str:
        runtime.calls.clear()
        open_("tensorrt", precision, graph)
        return sessions(runtime)[0][2]["nv_runtime_cache_path"]

    first = folder(sum_graph())
    assert folder(sum_graph()) == first
    wide = Graph([], {}, {"a": (2, 4), "b": (2, 4)}, {"sum": (2, 4)})
    wide.add("Add", ["a", "b"], "sum")
    others = {folder(wide), folder(sum_graph(), "tf32")}
    monkeypatch.setattr(FakeGpu, "name", "Another GPU")
    others.add(folder(sum_graph()))
    monkeypatch.setattr(gpu, "versions", lambda: {"onnxruntime": "9"})
    others.add(folder(sum_graph()))
    assert len(others | {first}) == 5


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("half", [False, True])
def test_buffers_are_bound_once_and_runs_wait_for_nothing(runtime, provider, half):
    made = open_(provider, graph=sum_graph(half))
    dtype = np.float16 if half else np.float32
    arrays = {**made.inputs, **made.outputs}
    binds = [call[1:] for call in runtime.calls if call[0] == "bind"]
    assert binds == [
        (name, "cuda", 1, dtype, (2, 3), array.ctypes.data) for name, array in arrays.items()
    ]
    runtime.calls.clear()
    made.inputs["a"][:] = 2
    made.inputs["b"][:] = 3
    for _ in range(3):
        made.run()
    entries = {"disable_synchronize_execution_providers": "1"}
    entries["gpu_graph_id"] = "0"  # of the graph that was captured
    assert runtime.calls == [("run", entries)] * 3
    assert (made.outputs["sum"] == 5).all()


def test_buffers_that_are_given_are_bound(runtime):
    buffer = np.ones((2, 3), np.float32)
    made = DeviceSession(
        sum_graph(), provider="cuda", precision="fp32", launcher=FakeGpu(), buffers={"sum": buffer}
    )
    assert made.outputs["sum"] is buffer


def test_a_session_is_warm_and_its_inputs_are_zero_again(runtime):
    made = open_("cuda")
    assert sum(call[0] == "run" for call in runtime.calls) >= session.WARM_UP
    assert not any(array.any() for array in made.inputs.values())


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize(
    ("trouble", "reason"), [("no_capture", "capture failed"), ("stale", "older inputs")]
)
def test_without_a_graph_where_capture_does_not_work(runtime, caplog, provider, trouble, reason):
    setattr(runtime, trouble, True)
    with caplog.at_level(logging.WARNING):
        made = open_(provider)
    first, second = sessions(runtime)
    assert (first[2]["enable_cuda_graph"], second[2]["enable_cuda_graph"]) == ("1", "0")
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    made.inputs["a"][:] = 4
    made.run()
    assert (made.outputs["sum"] == 4).all()


def test_a_graph_of_a_difference_is_not_taken_for_stale(runtime, caplog):
    """As of the moments of a picture and a style."""
    runtime.subtracts = True
    open_("cuda")
    assert len(sessions(runtime)) == 1
    assert not caplog.records


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_another_provider_than_asked_for_is_an_error(runtime, provider):
    runtime.actual = "CPUExecutionProvider"
    with pytest.raises(
        ProviderError, match=r"asked for .*, onnxruntime chose CPUExecutionProvider"
    ):
        open_(provider)


def test_a_run_that_fails_says_so_in_one_line(runtime, monkeypatch):
    made = open_("cuda")

    def fail(*_):
        raise RuntimeError("out of memory\n at somewhere")

    monkeypatch.setattr(made, "_run", fail)
    with pytest.raises(
        ProviderError, match="provider cuda failed: out of memory at somewhere; try"
    ) as caught:
        made.run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "message",
    ["CUDA failure 2: out of memory", "Failed to allocate memory for requested buffer of size 9"],
)
def test_want_of_memory_is_told_apart(runtime, monkeypatch, message):
    made = open_("cuda")

    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(made, "_run", fail)
    with pytest.raises(DeviceMemoryError, match="try a smaller size"):
        made.run()
    monkeypatch.setattr(FakeSession, "run_with_iobinding", fail)
    with pytest.raises(DeviceMemoryError):
        open_("cuda")
    assert len(sessions(runtime)) == 2  # without a graph it would not fit either


# --------------------------------------------------------------------------------- what is usable


def problem(provider: str) -> str:
    with pytest.raises(ProviderError) as caught:
        gpu.require(provider)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cuda_needs_the_gpu_build_of_onnxruntime(runtime):
    runtime.available = []
    assert 'pip install "nst-fast[gpu]"' in problem("cuda")


def test_a_gpu_provider_needs_a_gpu(runtime, monkeypatch):
    monkeypatch.setattr(gpu, "find_gpus", find_gpus.__wrapped__)
    monkeypatch.setitem(sys.modules, "cupy", None)
    for provider in ("cuda", "tensorrt"):
        assert "CuPy is not installed" in problem(provider)

    def count():
        raise RuntimeError("CUDA driver version is insufficient")

    driver = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=driver))
    assert "no NVIDIA GPU can be used: CUDA driver version is insufficient" in problem("cuda")
    driver.runtime.getDeviceCount = lambda: 0
    assert "no NVIDIA GPU is visible" in problem("cuda")


def test_what_tensorrt_lacks_is_named(runtime, monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    monkeypatch.setattr(gpu.ctypes, "CDLL", absent)
    assert "needs TensorRT 10" in problem("tensorrt")
    runtime.available = []
    assert 'pip install "nst-fast[tensorrt]"' in problem("tensorrt")


def test_a_plugin_that_does_not_load_or_finds_no_gpu(runtime, monkeypatch):
    devices = runtime.get_ep_devices
    monkeypatch.setattr(runtime, "get_ep_devices", list)
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _: None)
    assert gpu.tensorrt_devices() is None  # the classic provider takes over
    runtime.available = []
    assert "the TensorRT plugin supports none of the GPUs" in problem("tensorrt")
    monkeypatch.setattr(runtime, "get_ep_devices", devices)
    assert len(gpu.tensorrt_devices()) == 2

    def fail(*_):
        raise RuntimeError("no such library\nat all")

    monkeypatch.setattr(runtime, "register_execution_provider_library", fail)
    assert "the TensorRT plugin did not load: no such library" in problem("tensorrt")


def test_without_room_for_the_cache_tensorrt_says_so(runtime, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ProviderError, match="NST_FAST_CACHE"):
        open_("tensorrt")


# ------------------------------------------------------------------- from TensorRT over to CUDA


ASK = {  # in the order of a run: targets come before the first Plan
    "measure": lambda here, objective: here.measure(
        np.zeros((1, 3, 16, 16), np.float32), objective, {}
    ),
    "plan": lambda here, objective: here.attempt(
        objective,
        (1, 16, 16),
        lambda side: here.take_plan(
            objective, Canvas.around(16, 16, margin=0, stride=16), 1, False, side
        ),
    ),
}


def ask(here: workspace.Workspace, what: str) -> None:
    ASK[what](here, make_objective(here.encoder))


@pytest.fixture
def on_tensorrt(monkeypatch, stylizer):
    """A Workspace on a TensorRT that fails with an error, and the providers it has tried."""

    def make(error: ProviderError, *, cuda: bool) -> tuple[workspace.Workspace, list[str]]:
        backend = replace(stylizer._workspace.backend, provider="tensorrt")
        here = workspace.Workspace(stylizer.encoder, backend, "auto", cuda_instead=cuda)
        tried = []

        def build(*arguments, **_options):
            (backend,) = (a for a in arguments if isinstance(a, Backend))
            tried.append(backend.provider)
            if backend.provider == "tensorrt":
                raise error
            return lambda *_: "found"

        monkeypatch.setattr(workspace, "ensure_gradient", lambda *_, **__: None)
        for name in ("make_plan", "TargetExtractor"):
            monkeypatch.setattr(workspace, name, build)
        return here, tried

    return make


@pytest.mark.parametrize("what", ASK)
def test_cuda_takes_over_where_it_may(on_tensorrt, caplog, what):
    here, tried = on_tensorrt(ProviderError("the engine cannot be built"), cuda=True)
    with caplog.at_level(logging.WARNING):
        ask(here, what)
    assert tried == ["tensorrt", "cuda"]
    (record,) = caplog.records
    assert record.getMessage() == "going on with CUDA: the engine cannot be built"
    assert here.backend.provider == "cuda"


@pytest.mark.parametrize("what", ASK)
def test_without_cuda_a_tensorrt_that_fails_says_so(on_tensorrt, what):
    here, tried = on_tensorrt(ProviderError("the engine cannot be built"), cuda=False)
    with pytest.raises(ProviderError, match="cannot be built"):
        ask(here, what)
    assert tried == ["tensorrt"]


@pytest.mark.parametrize("what", ASK)
def test_memory_that_is_short_is_no_reason_for_cuda(on_tensorrt, what):
    """Windows are, and the next picture may be smaller."""
    here, tried = on_tensorrt(DeviceMemoryError("out of memory"), cuda=True)
    with pytest.raises(DeviceMemoryError):
        ask(here, what)
    assert set(tried) == {"tensorrt"}
    assert here.backend.provider == "tensorrt"


def test_versions_name_what_runs_on_a_gpu():
    assert {"onnxruntime-gpu", "cupy-cuda13x"} <= set(library.PACKAGES)
