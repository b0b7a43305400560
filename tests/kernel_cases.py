"""What the tests of the C++ kernels share: each instruction set, arrays, and poisoned buffers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings

from nst_fast import _core
from nst_fast.kernels import Kernels

POISON = np.float32(-1.2345e30)
EXAMPLES = settings(max_examples=25, deadline=None)


@pytest.fixture(params=_core.paths(), autouse=True, scope="module")
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run every test of this file on every instruction set that this machine has."""
    before = _core.path()
    _core.use_path(request.param)
    yield request.param
    _core.use_path(before)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(2)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relu(seed: int, *shape: int) -> np.ndarray:
    return np.maximum(normal(seed, *shape), 0)


def guarded(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an array inside a poisoned buffer, off every vector boundary, and the buffer."""
    size, margin = int(np.prod(shape)), 67
    buffer = np.full(size + 2 * margin, POISON)
    return buffer[margin : margin + size].reshape(shape), buffer


def assert_unharmed(buffer: np.ndarray) -> None:
    assert (buffer[:67] == POISON).all()
    assert (buffer[-67:] == POISON).all()


def mirrored(length: int, before: int, after: int) -> np.ndarray:
    """Return the indices of numpy's mirrored margin, which repeats a side of one pixel."""
    return np.pad(np.arange(length, dtype=np.int32), (before, after), mode="reflect")


def gaussian(radius: int, seed: int) -> np.ndarray:
    """Taps of no particular shape whose line sums to 1."""
    taps = np.random.default_rng(seed).uniform(0.1, 1, radius + 1)
    return (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)
