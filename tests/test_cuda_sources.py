"""NVRTC, the compiler that meets the CUDA sources where a GPU is, takes them without a warning."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path

import pytest
from shim import joined_source

from nst_fast.gpu.cuda import COMPILE_OPTIONS, source


@functools.cache
def nvrtc() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia")
    patterns = {"linux": "libnvrtc.so.*", "win32": "nvrtc64_*.dll"}
    if spec is None or sys.platform not in patterns:
        pytest.skip("there is no NVRTC for this platform: pip install nvidia-cuda-nvrtc")
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    found = [path for place in places for path in place.rglob(patterns[sys.platform])]
    paths = [path for path in found if "builtins" not in path.name and ".alt" not in path.name]
    if not paths:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(max(paths)))


def compile_log(source: str, options: tuple[str, ...]) -> tuple[int, str]:
    """Return code of nvrtcCompileProgram and the log."""
    library, program = nvrtc(), ctypes.c_void_p()
    text = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    created = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"nst_fast.cu", 0, None, None
    )
    assert created == 0
    try:
        code = library.nvrtcCompileProgram(program, len(options), text)
        size = ctypes.c_size_t()
        assert library.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
        log = ctypes.create_string_buffer(size.value)
        assert library.nvrtcGetProgramLog(program, log) == 0
        return code, log.value.decode().strip()
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


# Both sides of the sources' own condition, 8.0, and the newest.
@pytest.mark.parametrize("capability", [75, 80, 100])
def test_all_kernels_compile_without_a_warning(capability):
    options = (*COMPILE_OPTIONS, f"-arch=sm_{capability}")
    assert compile_log(joined_source(), options) == (0, "")


def test_an_error_is_noticed():
    code, log = compile_log(joined_source("device.cuh") + "\nint broken( {", ("-arch=sm_80",))
    assert code != 0
    assert "error" in log


def test_the_sources_are_installed():
    """Inside the package, as CMakeLists.txt says; after a change, install again."""
    assert source() == joined_source()
