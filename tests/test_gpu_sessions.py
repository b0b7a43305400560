"""What GPU sessions ask of onnxruntime: options, bindings and the order of calls, on a fake one."""

from __future__ import annotations

import logging

import fake_runtime
import numpy as np
import pytest
from fake_runtime import MODULE, FakeGpu, FakeRuntime, FakeSession, open_, sum_graph

from nst_fast.errors import DeviceMemoryError, ProviderError
from nst_fast.gpu import providers as gpu
from nst_fast.gpu import session
from nst_fast.gpu.session import DeviceSession
from nst_fast.graph.graph import Graph

runtime = fake_runtime.runtime


def sessions(runtime: FakeRuntime) -> list[tuple]:
    return [call for call in runtime.calls if call[0] == "session"]


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1"), ("fp16", "1")])
def test_options_of_cuda(runtime, precision, tf32):
    open_("cuda", precision)
    ((_, name, options, entries, _),) = sessions(runtime)
    assert name == "CUDAExecutionProvider"
    assert options == {
        "device_id": "1",
        "user_compute_stream": str(0xABC0),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": tf32,
        "arena_extend_strategy": "kSameAsRequested",
        "prefer_nhwc": "1",
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


def test_a_part_of_a_larger_recording_is_no_graph_of_its_own(runtime, caplog):
    made = DeviceSession(
        sum_graph(), provider="cuda", precision="fp32", launcher=FakeGpu(), recorded=False
    )
    ((_, _, options, _, _),) = sessions(runtime)
    assert options["enable_cuda_graph"] == "0"
    assert sum(call[0] == "run" for call in runtime.calls) >= session.WARM_UP
    runtime.calls.clear()
    made.run()
    assert runtime.calls == [("run", {"disable_synchronize_execution_providers": "1"})]
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
