"""Which GPU providers can be used, what those that cannot lack, and from TensorRT over to CUDA."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import SimpleNamespace

import fake_runtime
import numpy as np
import pytest
from fake_runtime import open_
from problems import make_objective

from nst_fast import encoders, library, workspace
from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.errors import DeviceMemoryError, ProviderError
from nst_fast.gpu import providers as gpu
from nst_fast.gpu.cuda import find_gpus

runtime = fake_runtime.runtime


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


def test_two_builds_of_onnxruntime_are_refused(monkeypatch):
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(library, "versions", lambda: both)
    with pytest.raises(ProviderError, match=r"both installed .* pip uninstall onnxruntime"):
        library.onnxruntime.__wrapped__()


@pytest.mark.parametrize("installed", [False, True])
def test_cuda_is_loaded_from_where_its_packages_are(
    runtime, monkeypatch, tmp_path, capsys, installed
):
    """Which need not be beside onnxruntime; and what it prints is not for stdout."""
    folders = [tmp_path / "nvidia" / name / "lib" for name in ("cu13", "cudnn")]
    for folder, name in zip(folders, ("libcublasLt.so.13", "libcudnn.so.9"), strict=True):
        folder.mkdir(parents=True)
        (folder / name).touch()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(gpu, "find_spec", lambda name: found if installed else None)
    gpu.require("cuda")
    loaded = [directory for what, directory in runtime.calls if what == "preload"]
    assert loaded == [*(map(str, folders) if installed else ()), None]
    assert ("severity", 3) in runtime.calls
    assert capsys.readouterr().out == ""


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
