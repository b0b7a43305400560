"""``Launcher`` on an NVIDIA GPU: the only CuPy.

The sources in ``csrc/*.cu`` ship inside the package and are compiled by NVRTC when a GPU is first
used; CuPy caches the result on disk.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast.device import DeviceArray, Dimensions, Launcher, Mirror
from nst_fast.errors import DeviceMemoryError, NstError, ProviderError

SOURCES = ("device.cuh", "products.cuh", "taps.cu", "layers.cu", "steps.cu", "lbfgs.cu", "terms.cu")
COMPILE_OPTIONS = ("-std=c++17",)
PLAIN_SHARED = 46 * 1024  # bytes beside what kernels declare; more has to be asked for
logger = logging.getLogger(__name__)
# Never destroyed: a session of onnxruntime may outlive its launcher, and frees its memory there.
_streams: list[Any] = []


class Cuda(Launcher):
    """``Launcher`` on an NVIDIA GPU, by CuPy; the methods are documented there."""

    def __init__(self, index: int = 0) -> None:
        """Make a stream on the device, and compile the kernels where no cache has them.

        Raises:
            ProviderError: there is no such GPU, or the kernels do not compile for it.
        """
        cupy = find_gpus()
        count = cupy.cuda.runtime.getDeviceCount()
        if not 0 <= index < count:
            raise ProviderError(
                f"device cuda:{index}: there is no such GPU, the last is {count - 1}"
            )
        self._cupy = cupy
        self._device = cupy.cuda.Device(index)
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        self.index = index
        self.name = properties["name"].decode()
        self.multiprocessors = int(properties["multiProcessorCount"])
        self.bf16_products = int(properties["major"]) >= 8
        self.ort_device = ("cuda", index)
        with self._device:
            # Not the default stream: onnxruntime takes its address, 0, for none, and it cannot
            # be captured.
            self._stream = cupy.cuda.Stream(non_blocking=True)
            _streams.append(self._stream)
            module = cupy.RawModule(code=source(), options=COMPILE_OPTIONS)
            try:
                module.compile()
            except Exception as error:
                raise ProviderError(
                    f"the CUDA kernels do not compile for {self.name}: {str(error).strip()[:200]}"
                ) from None
        self.stream = int(self._stream.ptr)
        self._kernel = functools.cache(module.get_function)
        self._loading = False

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> DeviceArray:
        """Allocate; see ``Launcher.zeros``."""
        with self._device, self._stream:
            try:
                return self._cupy.zeros(shape, dtype)
            except self._cupy.cuda.memory.OutOfMemoryError as error:
                raise DeviceMemoryError(f"{self.name}: {error}; try a smaller size") from None

    def address(self, array: DeviceArray) -> int:
        """Where an array begins; see ``Launcher.address``."""
        return int(array.data.ptr)

    def upload(self, host: NDArray[Any], out: DeviceArray) -> None:
        """Copy from the host; see ``Launcher.upload``."""
        with self._device:
            out.set(np.ascontiguousarray(host, dtype=out.dtype), stream=self._stream)
            self._stream.synchronize()  # the host array may go at once; uploads are rare

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """Copy to the host; see ``Launcher.download``."""
        with self._device:
            host: NDArray[Any] = array.get(stream=self._stream)
            return host

    def mirror(self, array: DeviceArray) -> Mirror:
        """Allocate pinned memory for copies; see ``Launcher.mirror``."""
        with self._device:
            return _Mirror(self._cupy, self._device, self._stream, array)

    def fill(self, array: DeviceArray, value: float) -> None:
        """Set every element; see ``Launcher.fill``."""
        with self._device, self._stream:
            array.fill(value)

    def copy(self, source: DeviceArray, out: DeviceArray, factor: float = 1.0) -> None:
        """Copy on the device; see ``Launcher.copy``."""
        with self._device, self._stream:
            self._cupy.multiply(source, factor, out=out)

    def add(self, source: DeviceArray, out: DeviceArray) -> None:
        """Add on the device; see ``Launcher.add``."""
        with self._device, self._stream:
            self._cupy.add(out, source, out=out)

    def free_memory(self) -> float:
        """What the device has, and what CuPy's pool does not use; see ``Launcher.free_memory``."""
        with self._device:
            free, _ = self._cupy.cuda.runtime.memGetInfo()
            return float(free + self._cupy.get_default_memory_pool().free_bytes())

    def give_memory_back(self) -> None:
        """Empty CuPy's pool; see ``Launcher.give_memory_back``."""
        with self._device:
            self._cupy.get_default_memory_pool().free_all_blocks()

    def launch(
        self,
        kernel: str,
        grid: Dimensions,
        threads: int,
        arguments: Sequence[DeviceArray | np.generic],
        shared: int = 0,
    ) -> None:
        """Enqueue a kernel; see ``Launcher.launch``."""
        with self._device, self._stream:
            function = self._kernel(kernel)
            if shared > PLAIN_SHARED:
                function.max_dynamic_shared_size_bytes = shared
            if not self._loading:
                function(grid, (threads, 1, 1), tuple(arguments), shared_mem=shared)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Record launches; see ``Launcher.capture``."""
        with self._device, self._stream:
            self._loading = True  # CUDA may load no kernel while it records
            try:
                enqueue()
            finally:
                self._loading = False
            try:
                self._stream.begin_capture()
                try:
                    enqueue()
                finally:
                    graph = self._stream.end_capture()
            except Exception as error:
                logger.warning("no CUDA graph of the kernels, going on without: %s", error)
                return enqueue
        return _Recorded(graph, self._stream, enqueue)


@dataclass(frozen=True)
class _Recorded:
    """Replays a graph, and keeps alive what holds the arrays that it works on."""

    graph: Any
    stream: Any
    enqueue: Callable[[], None]

    def __call__(self) -> None:
        self.graph.launch(self.stream)


class _Mirror:
    """``Mirror`` in pinned memory, which a copy can write to while the host goes on."""

    def __init__(self, cupy: ModuleType, device: Any, stream: Any, array: DeviceArray) -> None:
        self._device, self._stream, self._array = device, stream, array
        memory = cupy.cuda.alloc_pinned_memory(array.nbytes)
        flat = np.frombuffer(memory, array.dtype, array.size)
        self._host: NDArray[Any] = flat.reshape(array.shape)
        # The host sleeps while it waits, and leaves its core to others.
        self._copied = cupy.cuda.Event(block=True, disable_timing=True)

    def enqueue(self) -> None:
        with self._device:
            self._array.get(stream=self._stream, out=self._host, blocking=False)
            self._copied.record(self._stream)

    def wait(self) -> NDArray[Any]:
        self._copied.synchronize()
        return self._host


@functools.cache
def find_gpus() -> ModuleType:
    """CuPy, where it is installed and sees a GPU.

    Raises:
        ProviderError: it is not, or does not; the message says what to do.
    """
    try:
        import cupy
    except ImportError:
        raise ProviderError('CuPy is not installed; run: pip install "cupy-cuda13x[ctk]"') from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise ProviderError(f"no NVIDIA GPU can be used: {str(error).strip()[:200]}") from None
    if not count:
        raise ProviderError("no NVIDIA GPU is visible; look at nvidia-smi and CUDA_VISIBLE_DEVICES")
    module: ModuleType = cupy
    return module


def gpu_names() -> list[str]:
    """Names of the GPUs, in CUDA's order; raises ProviderError where there is none."""
    runtime = find_gpus().cuda.runtime
    return [
        runtime.getDeviceProperties(index)["name"].decode()
        for index in range(runtime.getDeviceCount())
    ]


def source() -> str:
    """All kernels as one translation unit.

    Raises:
        NstError: the package was installed without them.
    """
    for folder in sys.modules["nst_fast"].__path__:
        paths = [Path(folder) / "csrc" / name for name in SOURCES]
        if all(path.exists() for path in paths):
            return "\n".join(path.read_text() for path in paths)
    raise NstError("the CUDA sources are missing from this installation; install nst-fast again")
