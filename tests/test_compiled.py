"""Compiled models on disk: the same results, and no file can do harm."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from nst_fast import encoders
from nst_fast.errors import ProviderError
from nst_fast.graph.graph import Graph
from nst_fast.runtime import compiled, openvino
from nst_fast.runtime.session import Session


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """OpenVINO's own runtime with an empty cache; its files."""
    try:
        if openvino.plugin_device() is not None:
            pytest.skip("this CPU's models are compiled by the plugin")
    except ProviderError as error:
        pytest.skip(str(error))
    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path))
    return lambda: sorted((tmp_path / "compiled").glob("*"))


def product(factor: float = 2.0) -> Graph:
    graph = Graph([], {}, {"x": (2, 3)}, {"y": (2, 3)})
    graph.add("Mul", ["x", graph.float_constant(factor)], "y")
    return graph


def result(factor: float = 2.0, precision: str = "fp32") -> np.ndarray:
    session = Session(product(factor), provider="openvino", precision=precision, threads=1)
    session.inputs["x"][:] = np.arange(6).reshape(2, 3)
    session.run()
    return session.outputs["y"].copy()


@pytest.fixture
def compilations(monkeypatch) -> list[bytes]:
    """The models that are compiled from now on."""
    seen: list[bytes] = []
    core = openvino.core()

    class Watched:
        def read_model(self, model):
            seen.append(model)
            return core.read_model(model)

        def __getattr__(self, name):
            return getattr(core, name)

    monkeypatch.setattr(openvino, "core", Watched)
    return seen


def test_what_was_compiled_is_loaded(cache, compilations):
    first, second = result(), result()
    assert len(compilations) == len(cache()) == 1
    assert np.array_equal(first, second)
    assert np.array_equal(second, 2.0 * np.arange(6).reshape(2, 3))


def test_another_graph_or_option_is_another_model(cache, compilations):
    assert result(2.0)[1, 2] == 10.0
    assert result(3.0)[1, 2] == 15.0
    Session(product(), provider="openvino", precision="fp32", threads=2)
    assert len(compilations) == len(cache()) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign"])
def test_a_damaged_file_is_compiled_again(cache, compilations, damage):
    result()
    (file,) = cache()
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    if damage == "foreign":  # whole, but nothing that OpenVINO reads
        data = bytearray(compiled.hashlib.sha256(b"other").digest() + b"other")
    file.write_bytes({"empty": b"", "cut": data[:-1]}.get(damage, bytes(data)))
    assert result()[1, 2] == 10.0
    assert len(compilations) == 2
    assert result()[1, 2] == 10.0
    assert len(compilations) == 2  # it was written anew


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "compiled").write_bytes(b"a file where the folder should be")
    assert result()[1, 2] == 10.0


def test_files_used_longest_ago_make_room(cache, monkeypatch):
    result(2.0)
    (oldest,) = cache()
    monkeypatch.setattr(compiled, "ROOM", int(2.5 * oldest.stat().st_size))
    result(3.0)
    (second,) = set(cache()) - {oldest}
    for age, file in ((20, second), (10, oldest)):
        os.utime(file, (1e9 - age, 1e9 - age))
    result(2.0)  # used again: now it is the newest
    result(4.0)
    assert oldest in cache()
    assert second not in cache()
    assert len(cache()) == 2


def test_large_models_are_not_kept(cache, monkeypatch):
    monkeypatch.setattr(compiled, "LARGEST", 10)
    result()
    assert not cache()


def test_processes_side_by_side(cache):
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(result, [2.0] * 6))
    assert all(np.array_equal(one, found[0]) for one in found)
    assert len(cache()) == 1
