"""Where a GPU's arrays and kernels live: the only CuPy.

The sources in ``csrc/*.cu`` ship inside the package and are compiled by NVRTC when a GPU is first
used; CuPy caches the result on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

import nst_fast
from nst_fast.errors import NstError, ProviderError

SOURCES = ("device.cuh", "gram.cu", "steps.cu")
COMPILE_OPTIONS = ("-std=c++17",)
DeviceArray = Any  # C-contiguous; has shape, dtype, size, reshape and basic slices, as numpy's
Dimensions = tuple[int, int, int]


class Launcher(Protocol):
    """Holds arrays and runs the kernels of ``csrc/*.cu`` on them, in order, on one stream.

    Attributes:
        multiprocessors: how many blocks run side by side, in the order of magnitude.
        bf16_products: whether it multiplies bfloat16 and TF32 matrices (compute capability 8.0).
    """

    multiprocessors: int
    bf16_products: bool

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> DeviceArray:
        """Allocate a zeroed, C-contiguous array, aligned to 256 bytes."""

    def address(self, array: DeviceArray) -> int:
        """Where an array, or a contiguous slice of one, begins, as kernels take it."""

    def upload(self, host: NDArray[Any], out: DeviceArray) -> None:
        """Copy from the host, behind what was launched; ``host`` may change afterwards."""

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """Wait for what was launched, and copy to the host."""

    def launch(
        self,
        kernel: str,
        grid: Dimensions,
        threads: int,
        arguments: Sequence[DeviceArray | np.generic],
    ) -> None:
        """Enqueue a kernel; does not wait.

        Args:
            kernel: its ``extern "C"`` name.
            grid: blocks in x, y and z.
            threads: of a block, a multiple of 32.
            arguments: arrays, or numpy scalars of exactly the parameters' types.
        """


def source() -> str:
    """All kernels as one translation unit.

    Raises:
        NstError: the package was installed without them.
    """
    for folder in nst_fast.__path__:
        paths = [Path(folder) / "csrc" / name for name in SOURCES]
        if all(path.exists() for path in paths):
            return "\n".join(path.read_text() for path in paths)
    raise NstError("the CUDA sources are missing from this installation; install nst-fast again")
