"""How many workers and threads: by cores, memory and pictures, and by what is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nst_fast import EngineOptions, StyleSettings
from nst_fast.batch import BatchOptions, BatchRunner, Job, MakingOptions, machine
from nst_fast.batch.machine import Layout, largest, worker_memory
from nst_fast.errors import ProviderError, SettingsError

SIZES = st.integers(16, 4096)
ENGINE = EngineOptions()


def jobs_of(*sizes: int | None, **settings) -> list[Job]:
    return [
        Job(f"{n}.png", ("s.png",), f"o{n}.png", StyleSettings(size=size, **settings))
        for n, size in enumerate(sizes)
    ]


@pytest.fixture
def choose(monkeypatch):
    """Layout.choose on a machine of so many cores and so many bytes."""

    def on(cores, memory, jobs=None, *, threads=None, gpus=0, **asked) -> tuple[int, int]:
        monkeypatch.setattr(machine, "usable_cores", lambda: cores)
        monkeypatch.setattr(machine, "free_memory", lambda: memory)
        monkeypatch.setattr(machine, "gpus_of", lambda _: gpus)
        layout = Layout.choose(EngineOptions(threads=threads), BatchOptions(**asked), jobs)
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
        ({"jobs": jobs_of(64, 64, 64)}, (3, 5)),
        ({"gpus": 2}, (2, 8)),
        ({"gpus": 2, "jobs": jobs_of(64)}, (1, 16)),
        ({"gpus": 2, "workers": 4}, (4, 4)),
        ({"executor": "ray"}, (1, 1)),
        ({"executor": "ray", "threads": 4, "workers": 9}, (9, 4)),
    ],
)
def test_sixteen_cores(choose, asked, expected):
    assert choose(16, 1e12, **asked) == expected


def test_memory_for_three_gives_their_cores_to_three(choose):
    memory = 3.5 * worker_memory(ENGINE, 1024**2) / machine.SPARE
    assert choose(16, memory, jobs_of(*16 * [1024])) == (3, 5)
    assert choose(16, memory, jobs_of(*16 * [256]))[0] > 3
    assert choose(16, 0.0) == (1, 16)
    assert choose(16, 0.0, workers=9) == (9, 1)


def test_the_largest_picture_decides_wherever_its_size_stands(choose):
    """One row of a manifest at 8192 pixels: 16 workers would need 1400 GB."""
    jobs = jobs_of(*15 * [64], 8192)
    assert choose(16, 32e9, jobs) == (1, 16)
    assert choose(16, 32e9, jobs[:15]) == (15, 1)
    assert choose(16, 32e9, jobs_of(*16 * [512], style_scale=8.0)) == (1, 16)


def test_command_and_library_ask_the_same_with_every_job(choose, tmp_path):
    choose(16, 32e9)  # the machine
    jobs = jobs_of(*15 * [64], 8192)
    layout = BatchRunner(jobs, tmp_path).layout(jobs)
    assert (layout.workers, layout.threads) == (1, 16)
    assert choose(16, 32e9, jobs) == (1, 16)


def test_pictures_that_keep_their_size_are_looked_at(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (3000, 1000)).save(path)
    job = replace(jobs_of(None)[0], content=str(path))
    assert largest([job, *jobs_of(512)]) == 3e6
    assert largest(jobs_of(None)) == machine.UNKNOWN_PIXELS
    assert largest(None) == largest([]) == StyleSettings().size ** 2


def test_workers_share_the_memory_out(choose, monkeypatch):
    """What is given is for all of them, less what each reads and writes meanwhile."""
    choose(16, 100e9)  # the machine
    jobs, pixels = jobs_of(*16 * [1024]), 1024**2
    for engine, memory in (
        (EngineOptions(max_memory="20GB"), 20e9),
        (ENGINE, machine.SPARE * 100e9),
    ):
        layout = Layout.choose(engine, BatchOptions(workers=4), jobs)
        beside = machine.BESIDE + machine.BESIDE_PER_PIXEL * pixels
        assert layout.memory == pytest.approx(memory / 4 - beside)
        given = layout.engine(engine)
        assert (given.threads, given.memory_limit) == (4, layout.memory)
    fewer = Layout.choose(EngineOptions(max_memory="4GB"), BatchOptions(), jobs)
    assert fewer.workers == int(4e9 / worker_memory(ENGINE, pixels)) < 16


def test_recordings_take_memory_of_their_own(choose):
    memory = 3.05 * worker_memory(ENGINE, 512**2) / machine.SPARE
    plain = jobs_of(*16 * [512])
    assert choose(16, memory, plain)[0] == 3
    for record, more in (("webp", machine.RECORDED["animation"]), ("x.mp4", 300e6)):
        jobs = [*plain, replace(plain[0], making=MakingOptions(record=record))]
        room = int(machine.SPARE * memory / (worker_memory(ENGINE, 512**2) + more))
        assert choose(16, memory, jobs)[0] == room < 3


def test_what_nobody_limits_is_enough_for_small_pictures(choose):
    choose(16, 0.0)
    assert Layout.choose(ENGINE, BatchOptions(workers=9), jobs_of(512)).memory > 3e8
    with pytest.raises(SettingsError, match=r"max_memory: 2 workers take \d+MB at least"):
        Layout.choose(EngineOptions(max_memory="500MB"), BatchOptions(workers=2), jobs_of(64))


@given(data=st.data())
def test_cores_and_memory_are_never_exceeded_unless_asked_for(data):
    cores, memory = data.draw(st.integers(1, 256)), data.draw(st.floats(0, 1e12))
    jobs = jobs_of(*data.draw(st.lists(SIZES, min_size=1, max_size=300)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "usable_cores", lambda: cores)
        patch.setattr(machine, "free_memory", lambda: memory)
        patch.setattr(machine, "gpus_of", lambda _: 0)
        chosen = Layout.choose(EngineOptions(), BatchOptions(), jobs)
    assert 1 <= chosen.workers <= min(cores, len(jobs))
    assert chosen.threads == cores // chosen.workers
    if chosen.workers > 1:
        assert chosen.workers * worker_memory(ENGINE, largest(jobs)) <= memory


@pytest.mark.parametrize(
    "asked",
    [{"workers": 0}, {"workers": 1025}, {"together": 0}, {"retries": -1}, {"workers": True}],
)
def test_numbers_that_cannot_be(asked):
    with pytest.raises(SettingsError, match=f"{next(iter(asked))} must be a whole number from"):
        BatchOptions(**asked)


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
    assert machine.gpus_of(EngineOptions(device=device)) == expected


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error():
    with pytest.raises(ProviderError, match="cuda"):
        machine.gpus_of(EngineOptions(device="cuda:7"))


def test_workers_take_turns_at_the_gpus():
    engine = EngineOptions(device="cuda")
    assert [machine.of_worker(engine, n, 2).device for n in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert machine.of_worker(engine, 3, 1) is engine
    assert machine.of_worker(EngineOptions(device="cuda:5"), 3, 1).device == "cuda:5"
