"""Launchers for the tests of CUDA kernels: the sources on the CPU, or a GPU where there is one."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from nst_fast.device import Dimensions, Launcher
from nst_fast.gpu.cuda import SOURCES

ROOT = Path(__file__).parent.parent
SHIM = Path(__file__).parent / "cuda_shim"
# Hidden: one process may load several of these libraries, and each has its own state.
FLAGS = (
    "-std=c++17 -O2 -shared -fPIC -fvisibility=hidden -U_FORTIFY_SOURCE "
    "-Wall -Wextra -Werror -Wno-unknown-pragmas"
)
KERNEL = r"\bNST_KERNEL\s+void\s+(?:__launch_bounds__\(.*?\)\s*)?(\w+)\("
MOST_SHARED = 64 * 1024 - 2048  # of a block on the smallest GPU, less what kernels declare
GUARD = 256  # bytes in front of an array and behind it that kernels must leave alone


def joined_source(*names: str) -> str:
    """Files of csrc/, all of those of the CUDA kernels by default, as one translation unit."""
    return "\n".join((ROOT / "csrc" / name).read_text() for name in names or SOURCES)


@functools.cache
def compile_shim(source: str) -> ctypes.CDLL:
    """Compile kernels for the CPU; the library is kept, named by the hash of what made it."""
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("the CUDA kernels run on the CPU on Linux only, with g++ or clang++")
    # Macros make some of the kernels; NST_KERNEL itself is defined by the shim alone.
    expanded = _compiler_output([compiler, "-E", "-P", "-DNST_SHIM", "-x", "c++", "-"], source)
    kernels = re.findall(KERNEL, expanded)
    entries = [f'static const shim::Entry<{name}> entry_{name}("{name}");' for name in kernels]
    text = "\n".join([f'#include "{SHIM / "shim.h"}"', source, *entries])
    headers = [path.read_text() for path in sorted(SHIM.glob("*.h"))]
    identity = "\0".join([text, *headers, FLAGS, compiler])
    folder = Path(tempfile.gettempdir()) / f"nst-fast-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    with FileLock(path.with_suffix(".lock")):  # once for all of pytest-xdist's processes
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder) as made:
                fresh = Path(made) / path.name
                flags = [*FLAGS.split(), "-DNST_SHIM", "-xc++", "-", "-o", str(fresh)]
                _compiler_output([compiler, *flags], text)
                fresh.rename(path)
    library = ctypes.CDLL(str(path))
    library.shim_signature.restype = library.shim_launch.restype = ctypes.c_char_p
    return library


def _compiler_output(command: Sequence[str], text: str) -> str:
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class ShimMirror:
    """A copy of an array as it was, whatever is launched behind it."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self._copy = array, np.full_like(array, -1)

    def enqueue(self) -> None:
        self._copy[...] = self._array

    def wait(self) -> np.ndarray:
        return self._copy


class ShimLauncher(Launcher):
    """``Launcher`` on numpy arrays: blocks run in an order that ``seed`` shuffles.

    Everything is checked: types of arguments, barriers, and writes beside an array of ``zeros``.
    """

    name = "shim"
    index = 0
    stream = 0
    ort_device = ("cpu", 0)
    bf16_products = True

    def __init__(self, source: str, seed: int = 0, multiprocessors: int = 3) -> None:
        """Compile kernels, the text of ``device.cuh`` first."""
        self.multiprocessors = multiprocessors
        self._library = compile_shim(source)
        self._random = np.random.default_rng(seed)
        self._guarded: list[np.ndarray] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raw = np.full(size + 3 * GUARD, 0xFF, np.uint8)
        start = GUARD + -raw.ctypes.data % GUARD
        raw[start : start + size] = 0
        self._guarded += [raw[:start], raw[start + size :]]
        return raw[start : start + size].view(dtype).reshape(shape)

    def address(self, array: np.ndarray) -> int:
        assert array.flags.c_contiguous
        return array.ctypes.data

    def upload(self, host: np.ndarray, out: np.ndarray) -> None:
        out[...] = host

    def download(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def mirror(self, array: np.ndarray) -> ShimMirror:
        return ShimMirror(array)

    def fill(self, array: np.ndarray, value: float) -> None:
        array.fill(value)

    def copy(self, source: np.ndarray, out: np.ndarray, factor: float = 1.0) -> None:
        np.multiply(source, factor, out=out)

    def add(self, source: np.ndarray, out: np.ndarray) -> None:
        np.add(out, source, out=out)

    def free_memory(self) -> float:
        return math.inf

    def give_memory_back(self) -> None:
        pass

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        return enqueue

    def launch(
        self,
        kernel: str,
        grid: Dimensions,
        threads: int,
        arguments: Sequence[Any],
        shared: int = 0,
    ) -> None:
        signature = self._library.shim_signature(kernel.encode())
        assert signature is not None, f"no kernel {kernel}"
        assert len(grid) == 3, f"{kernel}: grid {grid}"
        assert 1 <= grid[0] < 2**31, f"{kernel}: grid {grid}"
        assert all(1 <= size < 2**16 for size in grid[1:]), f"{kernel}: grid {grid}"
        assert threads in range(32, 1025, 32), f"{kernel}: {threads} threads"
        assert shared <= MOST_SHARED, f"{kernel}: {shared} bytes of shared memory"
        expected = signature.decode().split()
        assert len(expected) == len(arguments), f"{kernel}: takes {expected}"
        values = [_value(kernel, *pair) for pair in zip(expected, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        order = self._random.permutation(int(np.prod(grid, dtype=np.int64))).astype(np.int64)
        problem = self._library.shim_launch(
            kernel.encode(),
            (ctypes.c_uint * 3)(*grid),
            ctypes.c_uint(threads),
            ctypes.c_uint(shared),
            order.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_uint(int(self._random.integers(2**31))),
            pointers,
        )
        assert not problem, f"{kernel}: {problem.decode()}"
        for guard in self._guarded:
            assert (guard == 0xFF).all(), f"{kernel} wrote beside an array"


def _value(kernel: str, expected: str, argument: Any) -> np.ndarray:
    """An argument as the bytes that the kernel takes, in an array of one element."""
    dtype = np.dtype("f2" if expected == "*u2" and argument.dtype == "f2" else argument.dtype)
    if expected.startswith("*"):
        assert isinstance(argument, np.ndarray), f"{kernel}: {argument!r} for {expected}"
        fits = (
            expected[:2] == "*V"
            or expected in (f"*{dtype.str[1:]}")
            or (expected, dtype) == ("*u2", np.float16)
        )
        assert fits, f"{kernel}: {dtype} for {expected}"
        assert argument.flags.c_contiguous, f"{kernel}: an array with gaps for {expected}"
        return np.array([argument.ctypes.data], np.uint64)
    if expected.startswith("V"):  # a structure by value
        assert dtype.fields is not None, f"{kernel}: {argument!r} for {expected}"
        assert f"V{dtype.itemsize}" == expected, f"{kernel}: {dtype.itemsize} bytes for {expected}"
        return argument.reshape(1)
    assert isinstance(argument, np.generic), f"{kernel}: {argument!r} for {expected}"
    assert dtype.str[1:] == expected, f"{kernel}: {dtype} for {expected}"
    return np.array([argument])


@functools.cache
def _cuda() -> Launcher | str:
    """The first GPU, or why there is none; kept, for a launcher compiles its kernels."""
    from nst_fast.errors import NstError
    from nst_fast.gpu.cuda import Cuda

    try:
        return Cuda()
    except NstError as error:
        return str(error)


def make_launcher(where: str, *names: str, seed: int = 0) -> Launcher:
    """A launcher for a test: ``where`` is one of ``LAUNCHERS``; ``names`` are files of csrc/."""
    if where == "shim":
        return ShimLauncher(joined_source(*names), seed)
    found = _cuda()
    if isinstance(found, str):
        pytest.skip(found)
    return found


LAUNCHERS = ["shim", pytest.param("cuda", marks=pytest.mark.gpu)]
