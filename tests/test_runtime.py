"""Providers: what is usable, what is chosen, and sessions bound to buffers that stay."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from closeness import assert_close

from nst_fast import cli, library
from nst_fast.errors import ProviderError
from nst_fast.gpu import providers as gpu
from nst_fast.graph.graph import Graph
from nst_fast.host import aligned_zeros
from nst_fast.runtime import (
    ProviderStatus,
    Session,
    choice,
    choose,
    openvino,
    providers,
    session,
    versions,
)

ALL = ("fp32", "bf16")


def sum_graph(shape: tuple[int, ...] = (2, 3)) -> Graph:
    graph = Graph([], {}, {"a": shape, "b": shape}, {"sum": shape})
    graph.add("Add", ["a", "b"], "sum")
    return graph


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(params=["cpu", "openvino"])
def provider(request, backend) -> str:
    backend(request.param, "fp32")
    return request.param


@pytest.fixture
def machine(monkeypatch):
    """Pretend to a machine with these CPU features and provider statuses."""

    def pretend(features: set[str], **precisions: tuple[str, ...] | str) -> None:
        statuses = {
            name: ProviderStatus(name, (), p) if isinstance(p, str) else ProviderStatus(name, p)
            for name, p in precisions.items()
        }
        monkeypatch.setattr(choice, "cpu_features", lambda: frozenset(features))
        missing = ProviderStatus("cuda", (), "not installed")
        monkeypatch.setattr(choice, "_status", lambda name: statuses.get(name, missing))

    return pretend


# ------------------------------------------------------------------------------------- choosing


def test_providers_lists_each_once_with_precisions_or_a_problem():
    statuses = providers()
    assert [s.name for s in statuses] == ["tensorrt", "cuda", "openvino", "cpu"]
    for status in statuses:
        assert bool(status.precisions) != bool(status.problem)
        if status.problem:
            assert "\n" not in status.problem
        else:
            assert status.precisions[0] == ("tf32" if status.name == "tensorrt" else "fp32")


@pytest.mark.parametrize(
    ("features", "bf16"), [({"avx512_bf16"}, 1), ({"amx_bf16"}, 1), ({"avx2"}, 0)]
)
def test_bfloat16_is_offered_where_the_cpu_has_it(monkeypatch, backend, features, bf16):
    backend("openvino", "fp32")
    monkeypatch.setattr(choice, "cpu_features", lambda: frozenset(features))
    (status,) = (s for s in providers() if s.name == "openvino")
    assert ("bf16" in status.precisions) == bool(bf16)


@pytest.mark.parametrize(
    ("asked", "openvino", "expected"),
    [
        (("auto", "auto"), ALL, ("openvino", "bf16")),
        (("auto", "auto"), ("fp32",), ("openvino", "fp32")),
        (("auto", "auto"), "not installed", ("cpu", "fp32")),
        (("auto", "fp32"), ALL, ("openvino", "fp32")),
        (("auto", "bf16"), ALL, ("openvino", "bf16")),
        (("openvino", "auto"), ALL, ("openvino", "bf16")),
        (("openvino", "fp32"), ALL, ("openvino", "fp32")),
        (("cpu", "auto"), ALL, ("cpu", "fp32")),
        (("cpu", "fp32"), "not installed", ("cpu", "fp32")),
    ],
)
def test_choose_takes_the_fastest_that_was_asked_for(machine, asked, openvino, expected):
    machine({"avx512_bf16"}, openvino=openvino, cpu=("fp32",))
    assert choose(*asked) == expected


@pytest.mark.parametrize(
    ("asked", "features", "openvino", "parts"),
    [
        (("auto", "bf16"), {"avx2"}, ("fp32",), ("bf16", "avx512_bf16", "--precision fp32")),
        (("openvino", "bf16"), {"avx2"}, ("fp32",), ("bf16", "--precision fp32")),
        (("cpu", "bf16"), {"avx512_bf16"}, ALL, ("bf16", "--provider openvino")),
        (("auto", "bf16"), {"amx_bf16"}, "no such wheel", ("bf16", "no such wheel")),
        (("openvino", "auto"), {"amx_bf16"}, "no such wheel", ("openvino", "no such wheel")),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_remedy(machine, asked, features, openvino, parts):
    machine(features, openvino=openvino, cpu=("fp32",))
    with pytest.raises(ProviderError) as caught:
        choose(*asked)
    message = one_line(caught)
    for part in parts:
        assert part in message


def test_choose_loads_only_what_it_may_take(monkeypatch):
    """OpenVINO and a GPU's libraries take seconds and memory."""
    asked, genuine = [], choice._status
    monkeypatch.setattr(choice, "_status", lambda name: asked.append(name) or genuine(name))
    assert choose("cpu", "fp32") == ("cpu", "fp32")
    assert asked == ["cpu"]
    choose("auto", "fp32", "cpu")
    assert asked == ["cpu", "openvino", "cpu"]


def test_choose_agrees_with_this_machine():
    name, precision = choose("auto", "auto")
    (status,) = (s for s in providers() if s.name == name)
    assert precision in status.precisions


def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cached look-ups run again, without touching what they found."""
    for module in (choice, gpu, openvino, session):
        monkeypatch.setattr(module, "onnxruntime", library.onnxruntime.__wrapped__)
    for name in ("plugin_device", "core"):
        monkeypatch.setattr(openvino, name, getattr(openvino, name).__wrapped__)
    for name in ("require", "tensorrt_devices"):
        monkeypatch.setattr(gpu, name, getattr(gpu, name).__wrapped__)


def test_without_onnxruntime_the_install_command_is_given(monkeypatch):
    uncached(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ProviderError) as caught:
        choose("auto", "auto")
    assert 'pip install "nst-fast[cpu]"' in one_line(caught)
    assert all(s.problem and not s.precisions for s in providers())
    with pytest.raises(ProviderError, match="onnxruntime is not installed"):
        Session(sum_graph(), provider="cpu", precision="fp32", threads=1)


def test_without_openvino_the_cpu_provider_remains(monkeypatch):
    uncached(monkeypatch)
    for module in ("openvino", "onnxruntime_ep_openvino"):
        monkeypatch.setitem(sys.modules, module, None)
    assert choose("auto", "auto") == ("cpu", "fp32")
    with pytest.raises(ProviderError) as caught:
        choose("openvino", "auto")
    assert 'pip install "nst-fast[openvino]"' in one_line(caught)


@pytest.fixture
def x86(monkeypatch):
    monkeypatch.setattr(choice.sys, "platform", "linux")
    monkeypatch.setattr(choice.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(choice, "NVIDIA_DRIVER", "/no/such/driver")


@pytest.mark.parametrize("features", [{"avx2"}, {"avx512_bf16"}])
def test_what_would_be_faster_is_told_with_its_command(machine, x86, features):
    machine(features, openvino="not installed", cpu=("fp32",))
    (advice,) = choice.faster()
    assert advice.endswith('; run: pip install "nst-fast[openvino]"')
    assert ("bfloat16" in advice) == ("avx512_bf16" in features)


def test_where_nothing_is_faster_nothing_is_told(machine, x86, monkeypatch):
    machine({"avx2"}, openvino=("fp32",), cpu=("fp32",))
    assert choice.faster() == []
    machine({"avx2"}, openvino="not installed", cpu=("fp32",), cuda=("fp32",))
    assert choice.faster() == []
    machine({"avx2"}, openvino="no wheel", cpu=("fp32",))
    monkeypatch.setattr(choice.platform, "machine", lambda: "arm64")
    assert choice.faster() == []


def test_an_idle_gpu_is_told(machine, x86, monkeypatch):
    machine({"avx2"}, openvino=("fp32",), cpu=("fp32",))
    monkeypatch.setattr(choice, "NVIDIA_DRIVER", __file__)
    (advice,) = choice.faster()
    assert advice.endswith('pip install "nst-fast[gpu]"')


def test_info_tells_what_auto_takes_and_what_is_faster(machine, x86, capsys):
    machine({"avx512_bf16"}, openvino="not installed", cpu=("fp32",))
    assert cli.main(["info"]) == 0
    words = capsys.readouterr().out
    assert "  takes: cpu fp32\n" in words
    assert 'pip install "nst-fast[openvino]"\n' in words


def test_versions_name_onnxruntime():
    import onnxruntime

    assert onnxruntime.__version__ in versions().values()


# ------------------------------------------------------------------------------------- sessions


def test_session_computes_in_its_buffers(provider, seed):
    rng = np.random.default_rng(seed)
    session = Session(sum_graph(), provider=provider, precision="fp32", threads=1)
    arrays = {**session.inputs, **session.outputs}
    assert all(array.ctypes.data % 64 == 0 for array in arrays.values())
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    for _ in range(3):
        for array in session.inputs.values():
            array[:] = rng.standard_normal(array.shape)
        session.run()
        assert_close(session.outputs["sum"], session.inputs["a"] + session.inputs["b"], 1e-6)
    arrays = {**session.inputs, **session.outputs}
    assert {name: array.ctypes.data for name, array in arrays.items()} == addresses


def test_sessions_share_the_buffers_they_are_given(provider):
    middle, end = aligned_zeros((2, 3)), aligned_zeros((2, 3))
    options = {"provider": provider, "precision": "fp32", "threads": 1}
    first = Session(sum_graph(), **options, buffers={"sum": middle})
    second = Session(sum_graph(), **options, buffers={"a": middle, "sum": end})
    assert first.outputs["sum"] is middle
    assert second.inputs["a"] is middle
    first.inputs["a"][:], first.inputs["b"][:], second.inputs["b"][:] = 1, 2, 10
    first.run()
    second.run()
    assert (middle == 3).all()
    assert (end == 13).all()


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 2), np.float32),
        np.zeros((2, 3), np.float64),
        np.zeros((3, 2), np.float32).T,
        np.zeros((2, 6), np.float32)[:, ::2],
        np.zeros(6, np.float32),
    ],
    ids=["shape", "dtype", "transposed", "strided", "flat"],
)
def test_wrong_buffers_are_refused(wrong):
    for name in ("a", "sum"):
        with pytest.raises(ProviderError, match=rf"buffer {name}: expected .*\(2, 3\)") as caught:
            Session(sum_graph(), provider="cpu", precision="fp32", threads=1, buffers={name: wrong})
        one_line(caught)


def test_a_graph_that_cannot_be_loaded_is_refused(provider):
    graph = sum_graph()
    graph.add("NoSuchOperator", ["a"], "sum2")
    graph.outputs["sum2"] = (2, 3)
    with pytest.raises(ProviderError, match=f"provider {provider} could not load") as caught:
        Session(graph, provider=provider, precision="fp32", threads=1)
    one_line(caught)


def test_the_cpu_provider_does_not_pretend_to_bfloat16():
    with pytest.raises(ProviderError, match="float32"):
        Session(sum_graph(), provider="cpu", precision="bf16", threads=1)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_provider_never_runs_on_the_cpu(provider):
    with pytest.raises(ProviderError, match=f"provider {provider} runs on arrays of a GPU"):
        Session(sum_graph(), provider=provider, precision="fp32", threads=1)


def test_openvino_computes_float32_and_bfloat16_as_asked(backend, seed):
    """A matrix product in float32 is exact to 1e-6, in bfloat16 to 2⁻⁹ but no better."""
    backend("openvino", "bf16")
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 128, 128)).astype(np.float32)
    errors = {}
    for precision in ALL:
        graph = Graph([], {}, {"a": a.shape, "b": b.shape}, {"ab": a.shape})
        graph.add("MatMul", ["a", "b"], "ab")
        session = Session(graph, provider="openvino", precision=precision, threads=1)
        session.inputs["a"][:], session.inputs["b"][:] = a, b
        session.run()
        exact = a.astype(np.float64) @ b
        errors[precision] = np.linalg.norm(session.outputs["ab"] - exact) / np.linalg.norm(exact)
    assert errors["fp32"] < 1e-5
    assert 1e-4 < errors["bf16"] < 1e-2
