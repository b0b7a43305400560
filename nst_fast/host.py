"""Where arrays live: aligned buffers, the CPU's instruction sets and its usable cores."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast import limits

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h
ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray:  # type: ignore[type-arg]
    """Allocate a zeroed, C-contiguous array that starts on a 64-byte boundary."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(shape)


def give_memory_back() -> None:
    """Return what was freed to the system, where the C library keeps it (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def save_memory() -> None:
    """Keep a process small that makes pictures of many shapes; call it before any provider loads.

    The C library (glibc) is told to return large blocks to the system as they are freed, which it
    learns not to do, and to have few heaps. OpenVINO's oneDNN keeps a thousand compiled operators,
    3 MB for each shape of pictures, of which only those of the last shape are used again.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 2**20)
            mallopt(M_ARENA_MAX, 2)


def usable_cores() -> int:
    """Cores that this process may keep busy: by its affinity, and by its container's quota."""
    return limits.cores()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let numpy multiply on the calling thread alone; of several threads the first decides.

    Its own threads wait for each other in loops: they make products as small as ours twenty times
    slower where other work has a core.
    """
    with _blas().limit(limits=1):
        yield


@functools.cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of this CPU that matter here, for instance ``avx512_bf16``."""
    from nst_fast._core import cpu_features as detect

    return frozenset(detect())


def cpu_model() -> str:
    """Name of this processor, as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()
