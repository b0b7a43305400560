"""A GPU as the rest of the package sees it: what holds arrays, and launches kernels on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast.errors import ShapeError

DeviceArray = Any  # C-contiguous; has shape, dtype, size, reshape and basic slices, as numpy's
Dimensions = tuple[int, int, int]
ADDRESS = np.dtype(np.uint64)  # of an array, in a structure


class Memory(Protocol):
    """Holds arrays: a GPU, or the host, whose arrays are numpy's."""

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> DeviceArray:
        """Allocate a zeroed, C-contiguous array, aligned to 256 bytes on a GPU.

        Raises:
            DeviceMemoryError: there is no room for it.
        """

    def upload(self, host: NDArray[Any], out: DeviceArray) -> None:
        """Copy from the host, behind what was launched, as the type of ``out``.

        ``host`` may change afterwards.
        """

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """Wait for what was launched, and copy to the host; the host's own are not copied."""

    def copy(self, source: DeviceArray, out: DeviceArray, factor: float = 1.0) -> None:
        """Write ``factor`` times an array, behind what was launched; slices may have gaps."""

    def add(self, source: DeviceArray, out: DeviceArray) -> None:
        """Add an array to another, which may be of a wider type, as :meth:`copy` does."""


class HostMemory:
    """``Memory`` of the host."""

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Allocate; see ``Memory.zeros``."""
        return np.zeros(shape, dtype)

    def upload(self, host: NDArray[Any], out: NDArray[Any]) -> None:
        """Copy; see ``Memory.upload``."""
        np.copyto(out, host)

    def download(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array itself; see ``Memory.download``."""
        return array

    def copy(self, source: NDArray[Any], out: NDArray[Any], factor: float = 1.0) -> None:
        """Write a multiple; see ``Memory.copy``."""
        np.multiply(source, factor, out=out)

    def add(self, source: NDArray[Any], out: NDArray[Any]) -> None:
        """Add; see ``Memory.add``."""
        np.add(out, source, out=out)


class Mirror(Protocol):
    """A copy of an array on the host, made anew at times."""

    def enqueue(self) -> None:
        """Copy what the array holds behind what was launched; does not wait."""

    def wait(self) -> NDArray[Any]:
        """Wait for the last copy, not for what was launched behind it; good until the next."""


class Launcher(Memory, Protocol):
    """Holds arrays and runs the kernels of ``csrc/*.cu`` on them, in order, on one stream.

    Attributes:
        multiprocessors: how many blocks run side by side, in the order of magnitude.
        bf16_products: whether it multiplies bfloat16 and TF32 matrices (compute capability 8.0).
        name: of the device.
        index: of the device, as CUDA counts.
        stream: address of the CUDA stream that everything is enqueued on.
        ort_device: the device as onnxruntime's IO binding names it.
    """

    multiprocessors: int
    bf16_products: bool
    name: str
    index: int
    stream: int
    ort_device: tuple[str, int]

    def put(self, host: NDArray[Any]) -> DeviceArray:
        """A copy of an array of the host's; structures as their bytes."""
        plain = host if host.dtype.fields is None else host.reshape(-1).view(np.uint8)
        array = self.zeros(plain.shape, plain.dtype)
        self.upload(plain, array)
        return array

    def address(self, array: DeviceArray) -> int:
        """Where an array, or a contiguous slice of one, begins, as kernels take it."""

    def mirror(self, array: DeviceArray) -> Mirror:
        """What copies an array to the host without keeping the device from going on."""

    def fill(self, array: DeviceArray, value: float) -> None:
        """Set every element, behind what was launched."""

    def free_memory(self) -> float:
        """Bytes that can be allocated now; infinite where nobody knows."""

    def give_memory_back(self) -> None:
        """Return what was freed to the device, where other libraries can allocate it."""

    def launch(
        self,
        kernel: str,
        grid: Dimensions,
        threads: int,
        arguments: Sequence[DeviceArray | np.generic],
        shared: int = 0,
    ) -> None:
        """Enqueue a kernel; does not wait.

        Args:
            kernel: its ``extern "C"`` name.
            grid: blocks in x, y and z.
            threads: of a block, a multiple of 32.
            arguments: arrays, numpy scalars of exactly the parameters' types, or structures that
                :func:`describe` made.
            shared: bytes of memory that its blocks get beside what it declares.
        """

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Record what ``enqueue`` launches, and return what launches all of it again at once.

        ``enqueue`` allocates nothing and is itself returned where nothing can be recorded.
        """


def describe(launcher: Launcher, layout: np.dtype[Any], values: Mapping[str, Any]) -> NDArray[Any]:
    """A structure as kernels take it, from its fields by name; to be kept with its arrays.

    A field of type ``ADDRESS`` takes an array, or None for none; the others a number or structure.

    Raises:
        ValueError: a field is missing, or none of the layout's.
    """
    if set(values) != set(layout.names or ()):
        raise ValueError(f"the fields are {layout.names}, not {tuple(values)}")
    found = np.zeros((), layout)
    for name, value in values.items():
        is_address = layout[name] == ADDRESS and value is not None
        found[name] = launcher.address(value) if is_address else 0 if value is None else value
    return found


def check_array(name: str, array: DeviceArray, shape: tuple[int, ...], *dtypes: DTypeLike) -> None:
    """Refuse an array of another shape or of none of the types.

    Raises:
        ShapeError: it is; the message gives both shapes.
    """
    kinds = [np.dtype(dtype) for dtype in dtypes]
    if tuple(array.shape) != shape or array.dtype not in kinds:
        names = " or ".join(kind.name for kind in kinds)
        raise ShapeError(f"{name}: needs shape {shape} {names}, not {array.shape} {array.dtype}")
