"""How many workers and threads: by cores, memory and pictures, and by what is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_fast import StyleSettings
from nst_fast.batch import machine
from nst_fast.batch.jobs import Engine
from nst_fast.batch.machine import Layout, worker_memory
from nst_fast.errors import ProviderError, SettingsError

SIZES = st.none() | st.integers(16, 4096)


@pytest.fixture
def choose(monkeypatch):
    """Layout.choose on a machine of so many cores and so many bytes."""

    def on(cores: int, memory: float, **asked) -> tuple[int, int]:
        monkeypatch.setattr(machine, "usable_cores", lambda: cores)
        monkeypatch.setattr(machine, "free_memory", lambda: memory)
        layout = Layout.choose(**asked)
        return layout.workers, layout.threads

    return on


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (16, 1)),
        ({"threads": 4}, (4, 4)),
        ({"threads": 5}, (3, 5)),
        ({"threads": 32}, (1, 32)),
        ({"workers": 4}, (4, 4)),
        ({"workers": 20}, (20, 1)),
        ({"workers": 3, "threads": 2}, (3, 2)),
        ({"most": 3}, (3, 5)),
        ({"most": 0}, (16, 1)),
        ({"gpus": 2}, (2, 8)),
        ({"gpus": 2, "most": 1}, (1, 16)),
        ({"gpus": 2, "workers": 4}, (4, 4)),
    ],
)
def test_sixteen_cores(choose, asked, expected):
    assert choose(16, 1e12, **asked) == expected


def test_memory_for_three_gives_their_cores_to_three(choose):
    large = StyleSettings(size=1024)
    memory = 3.5 * worker_memory(large) / machine.SPARE
    assert choose(16, memory, settings=large) == (3, 5)
    assert choose(16, memory, settings=StyleSettings(size=256))[0] > 3
    assert choose(16, 0.0) == (1, 16)
    assert choose(16, 0.0, workers=9) == (9, 1)


@given(data=st.data())
def test_cores_and_memory_are_never_exceeded_unless_asked_for(data):
    cores, memory = data.draw(st.integers(1, 256)), data.draw(st.floats(0, 1e12))
    settings = StyleSettings(size=data.draw(SIZES))
    most = data.draw(st.integers(1, 1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "usable_cores", lambda: cores)
        patch.setattr(machine, "free_memory", lambda: memory)
        chosen = Layout.choose(settings=settings, most=most)
    assert 1 <= chosen.workers <= min(cores, most)
    assert chosen.threads == cores // chosen.workers
    if chosen.workers > 1:
        assert chosen.workers * worker_memory(settings) <= memory


@pytest.mark.parametrize("asked", [{"workers": 0}, {"threads": 0}, {"workers": 1025}])
def test_numbers_that_cannot_be(asked):
    with pytest.raises(SettingsError, match=f"{next(iter(asked))} must be a whole number from 1"):
        Layout.choose(**asked)


@pytest.mark.parametrize(
    ("installed", "provider", "device", "expected"),
    [
        (["onnxruntime"], None, "auto", 0),
        (["onnxruntime-gpu"], "openvino", "auto", 0),
        (["onnxruntime-gpu"], "cuda", "auto", 3),
        (["onnxruntime-gpu"], "cuda", "cuda", 3),
        (["onnxruntime-gpu"], "cuda", "cuda:2", 1),
        (["onnxruntime-ep-nv-tensorrt-rtx-cu13"], "tensorrt", "auto", 3),
    ],
)
def test_gpus_of_an_engine(monkeypatch, installed, provider, device, expected):
    monkeypatch.setattr(machine, "versions", lambda: dict.fromkeys(installed, "1"))
    monkeypatch.setattr(machine, "choose", lambda *_: (provider, "fp16"))
    monkeypatch.setattr(machine, "gpu_names", lambda: ["a GPU"] * 3)
    assert machine.gpus_of(Engine(device=device)) == expected


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error():
    with pytest.raises(ProviderError, match="cuda"):
        machine.gpus_of(Engine(device="cuda:7"))


def test_workers_take_turns_at_the_gpus():
    engine = Engine(device="cuda")
    assert [engine.of_worker(n, 2).device for n in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert engine.of_worker(3, 1) is engine
    assert Engine(device="cuda:5").of_worker(3, 1).device == "cuda:5"
