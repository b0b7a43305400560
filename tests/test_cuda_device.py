"""The launcher of a GPU, on a CuPy that writes down what it is asked."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from nst_fast.device import ADDRESS, describe
from nst_fast.errors import DeviceMemoryError, ProviderError
from nst_fast.gpu import cuda
from nst_fast.gpu.cuda import Cuda, find_gpus, gpu_names


class OutOfMemoryError(Exception):
    pass


class Stream:
    """Knows whether it is current, and whether it records."""

    def __init__(self, cupy: FakeCupy, non_blocking: bool) -> None:
        assert non_blocking, "the default stream's kind cannot be captured"
        self.cupy, self.ptr, self.recorded = cupy, 0x51, None
        self.copies: list[tuple] = []
        self.downloads: list[tuple] = []

    def __enter__(self):
        self.cupy.current.append(self)
        return self

    def __exit__(self, *_):
        self.cupy.current.pop()

    def synchronize(self):
        for array, host in self.copies:
            array.values[...] = host
        self.copies.clear()

    def begin_capture(self):
        if self.cupy.no_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded = []

    def end_capture(self):
        recorded, self.recorded = self.recorded, None
        return SimpleNamespace(launch=lambda stream: self.cupy.calls.append(("graph", recorded)))


class Event:
    """Lets the host wait for what a stream was given before."""

    def __init__(self, block: bool, disable_timing: bool) -> None:
        assert block
        assert disable_timing

    def record(self, stream):
        self.pending = list(stream.downloads)

    def synchronize(self):
        for out, values in self.pending:
            out[...] = values


class FakeCupy:
    def __init__(self, gpus: int = 2) -> None:
        self.calls: list[tuple] = []
        self.current: list[Stream] = []
        self.no_capture = self.full = False
        self.broken: str | None = None
        properties = {"name": b"Fake GPU", "multiProcessorCount": 132, "major": 9}
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                getDeviceCount=lambda: gpus,
                getDeviceProperties=lambda index: properties,
                memGetInfo=lambda: (70, 80),
            ),
            Device=Device,
            Stream=lambda non_blocking: Stream(self, non_blocking),
            Event=Event,
            alloc_pinned_memory=bytearray,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        )

    def zeros(self, shape, dtype):
        assert self.current, "memory that is set on another stream"
        if self.full:
            raise OutOfMemoryError("Out of memory allocating 9 bytes")
        return Array(self, np.zeros(shape, dtype))

    def multiply(self, source, factor, out):
        assert self.current, "multiplied on another stream"
        np.multiply(source.values, factor, out=out.values)

    def add(self, first, second, out):
        assert self.current, "added on another stream"
        np.add(first.values, second.values, out=out.values)

    def get_default_memory_pool(self):
        return SimpleNamespace(
            free_all_blocks=lambda: self.calls.append(("free",)), free_bytes=lambda: 5
        )

    def RawModule(self, code, options):  # noqa: N802
        assert "moments_" in code
        assert options == cuda.COMPILE_OPTIONS
        return self

    def compile(self):
        if self.broken:
            raise RuntimeError(self.broken)

    def get_function(self, name):
        # While it records, CUDA may have to load a kernel and cannot.
        assert not (self.current and self.current[-1].recorded is not None)
        self.calls.append(("load", name))

        return Function(self, name)


class Function:
    """A kernel; more than 48 KiB of shared memory it has only after it was asked for."""

    def __init__(self, cupy: FakeCupy, name: str) -> None:
        self.cupy, self.name = cupy, name
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid, block, arguments, *, shared_mem):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        stream = self.cupy.current[-1]
        call = ("launch", self.name, grid, block, arguments, shared_mem)
        (self.cupy.calls if stream.recorded is None else stream.recorded).append(call)


class Device:
    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Array:
    def __init__(self, cupy: FakeCupy, values: np.ndarray) -> None:
        self.cupy, self.values, self.dtype = cupy, values, values.dtype
        self.data = SimpleNamespace(ptr=values.ctypes.data)

    def set(self, host, stream):
        assert stream.ptr == 0x51
        assert host.dtype == self.dtype
        stream.copies.append((self, host))  # whenever the GPU comes to it

    @property
    def nbytes(self):
        return self.values.nbytes

    @property
    def size(self):
        return self.values.size

    @property
    def shape(self):
        return self.values.shape

    def get(self, stream, out=None, blocking=True):
        if blocking:
            stream.synchronize()
            return self.values.copy()
        stream.downloads.append((out, self.values.copy()))  # whenever the GPU comes to it
        return out

    def fill(self, value):
        assert self.cupy.current, "filled on another stream"
        self.values.fill(value)


@pytest.fixture
def cupy(monkeypatch) -> FakeCupy:
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(cuda, "find_gpus", find_gpus.__wrapped__)
    return fake


def test_the_device_is_the_one_asked_for(cupy):
    device = Cuda(1)
    assert (device.index, device.name, device.ort_device) == (1, "Fake GPU", ("cuda", 1))
    assert (device.multiprocessors, device.bf16_products, device.stream) == (132, True, 0x51)
    assert gpu_names() == ["Fake GPU"] * 2


@pytest.mark.parametrize("index", [2, -1])
def test_a_gpu_that_is_not_there(cupy, index):
    with pytest.raises(ProviderError, match=rf"cuda:{index}: there is no such GPU, the last is 1"):
        Cuda(index)


def test_kernels_that_do_not_compile_say_so(cupy):
    cupy.broken = "nvrtc: error: invalid value for --gpu-architecture"
    with pytest.raises(ProviderError, match="kernels do not compile for Fake GPU: nvrtc: error"):
        Cuda()


def test_arrays_go_there_and_back_on_the_stream(cupy):
    device = Cuda()
    array = device.zeros((2, 3), np.float16)
    host = np.arange(6, dtype=np.float16).reshape(2, 3)
    device.upload(host, array)
    host.fill(9)  # its owner may do that from now on
    assert np.array_equal(device.download(array), np.arange(6, dtype=np.float16).reshape(2, 3))
    device.fill(array, 7.0)
    assert (device.download(array) == 7).all()
    assert device.address(array) == array.values.ctypes.data
    wide = device.zeros((2, 3), np.float32)
    device.copy(array, wide, factor=-2.0)
    device.add(array, wide)
    assert (device.download(wide) == -7).all()
    assert np.array_equal(device.download(device.put(host)), host)
    pairs = np.array([(1, 2.0), (3, 4.0)], [("i", np.int32), ("f", np.float32)])
    assert device.download(device.put(pairs)).tobytes() == pairs.tobytes()
    assert device.free_memory() == 75
    device.give_memory_back()
    assert cupy.calls[-1] == ("free",)
    cupy.full = True
    with pytest.raises(DeviceMemoryError, match=r"Fake GPU: Out of memory .* smaller size"):
        device.zeros((9,))


def test_a_mirror_waits_for_its_copy_alone(cupy, monkeypatch):
    device = Cuda()
    array = device.put(np.arange(6, dtype=np.float64).reshape(2, 3))
    mirror = device.mirror(array)
    monkeypatch.setattr(device._stream, "synchronize", None)  # would wait for all
    mirror.enqueue()
    device.fill(array, 7.0)  # launched behind it
    assert np.array_equal(mirror.wait(), np.arange(6).reshape(2, 3))
    mirror.enqueue()
    assert (mirror.wait() == 7).all()


def test_structures_are_described_by_name(cupy):
    device = Cuda()
    inner = np.dtype([("more", np.float64)])
    layout = np.dtype([("x", ADDRESS), ("none", ADDRESS), ("n", np.int32), ("inner", inner)])
    x = device.zeros((3,))
    values = {"x": x, "none": None, "n": 7, "inner": np.array((0.5,), inner)}
    found = describe(device, layout, values)
    assert found.tolist() == (device.address(x), 0, 7, (0.5,))
    for wrong in ({**values, "m": 1}, {"x": x}):
        with pytest.raises(ValueError, match="the fields are"):
            describe(device, layout, wrong)


def test_a_launch_is_one_call_and_a_kernel_is_loaded_once(cupy):
    device = Cuda()
    for _ in range(2):
        device.launch("moments_fp16", (3, 1, 2), 128, [np.int32(4)], 60000)
    launched = ("launch", "moments_fp16", (3, 1, 2), (128, 1, 1), (np.int32(4),), 60000)
    assert cupy.calls == [("load", "moments_fp16"), launched, launched]


def test_what_is_recorded_runs_when_it_is_replayed(cupy):
    device = Cuda()
    replay = device.capture(lambda: device.launch("moments_fp16", (1, 1, 1), 32, []))
    assert cupy.calls == [("load", "moments_fp16")]  # recorded, not run
    replay()
    replay()
    launched = ("launch", "moments_fp16", (1, 1, 1), (32, 1, 1), (), 0)
    assert cupy.calls[1:] == [("graph", [launched])] * 2
    device.launch("moments_fp16", (1, 1, 1), 32, [])
    assert cupy.calls[-1] == launched


def test_a_recording_keeps_its_arrays(cupy):
    class Kernels:
        def run(self):
            pass

    kernels = Kernels()
    kept = weakref.ref(kernels)
    replay = Cuda().capture(kernels.run)
    del kernels
    gc.collect()
    assert kept() is not None
    del replay
    gc.collect()
    assert kept() is None


def test_a_stream_outlives_its_launcher(cupy):
    """Sessions free their memory on it, whichever is collected first."""
    device = Cuda()
    kept = weakref.ref(device._stream)
    del device
    gc.collect()
    assert kept() is not None


def test_where_nothing_can_be_recorded_the_launches_remain(cupy, caplog):
    cupy.no_capture = True
    device = Cuda()
    with caplog.at_level(logging.WARNING):
        run = device.capture(lambda: device.launch("moments_fp16", (1, 1, 1), 32, []))
    (record,) = caplog.records
    assert "no CUDA graph of the kernels" in record.getMessage()
    run()
    assert cupy.calls[-1][:2] == ("launch", "moments_fp16")
