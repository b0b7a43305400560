"""What the compiled module refuses, called without the Python in front of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from nst_fast import _core
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.kernels import Kernels


@dataclass
class Out:
    """An array that a kernel writes."""

    array: np.ndarray


def floats(*shape: int) -> np.ndarray:
    return np.full(shape, 0.5, np.float32)


def doubles(*shape: int) -> np.ndarray:
    return np.full(shape, 0.5)


def indices(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def picture_term() -> list[Any]:
    return [floats(2, 3, 4, 5), doubles(2), Out(floats(2, 3, 4, 5)), Out(doubles(2))]


# A call of each kernel that it takes.
CALLS: dict[str, Callable[[], list[Any]]] = {
    "moments": lambda: [floats(2, 4, 9), doubles(2), Out(floats(2, 5, 5)), floats(2, 9), False],
    "pull_back": lambda: [
        *(floats(2, 4, 9), floats(2, 4, 5), Out(floats(2, 4, 9)), floats(2, 9)),
        *(floats(2, 4, 9), doubles(2), Out(doubles(2)), False),
    ],
    "content_pull_back": lambda: [
        *(floats(2, 4, 9), floats(2, 4, 9), doubles(2), Out(floats(2, 4, 9)), Out(doubles(2))),
        *(floats(2, 9), False),
    ],
    "extend": lambda: [
        *(floats(2, 3, 2, 3), indices(0, 1, 1), indices(2, 1, 0, 0)),
        Out(floats(2, 3, 3, 4)),
    ],
    "fold": lambda: [
        *(floats(2, 3, 3, 4), indices(0, 1, 1), indices(2, 1, 0, 0)),
        Out(floats(2, 3, 2, 3)),
    ],
    "smooth": lambda: [
        *(floats(2, 3, 4, 5), floats(3), Out(floats(2, 3, 4, 5)), 0.25, floats(2, 3, 4, 5)),
    ],
    "total_variation": lambda: [floats(2, 3, 4, 5), 0.1, *picture_term()[1:]],
    "range_penalty": picture_term,
    "temporal_loss": lambda: [
        *(floats(2, 3, 4, 5), floats(2, 3, 4, 5), floats(2, 4, 5), doubles(2)),
        *(Out(floats(2, 3, 4, 5)), Out(doubles(2))),
    ],
    "lbfgs_update": lambda: [
        *(floats(9), Out(floats(9)), floats(9), Out(floats(9))),
        *(Out(np.zeros((4, 9), np.uint16)), 0, 1, Out(doubles(3, 5))),
    ],
    "lbfgs_direction": lambda: [
        *(np.zeros((4, 9), np.uint16), doubles(4), floats(9), floats(9), Out(floats(9)), -1.0),
    ],
    "retract": lambda: [Out(floats(9)), floats(9), 0.5],
    "adam_update": lambda: [
        *(Out(floats(9)), floats(9), Out(floats(9)), Out(floats(9))),
        *(0.9, 0.99, 0.1, 1.0, 1e-8, 0.0, 1.0),
    ],
    "clamp": lambda: [Out(floats(3, 4)), 0.0, 1.0],
}


def arguments(kernel: str) -> list[Any]:
    return [a.array if isinstance(a, Out) else a for a in CALLS[kernel]()]


def places() -> Iterator[tuple[str, int, bool]]:
    """Each array of each kernel: where it is, and whether it is written."""
    for kernel, make in CALLS.items():
        for place, argument in enumerate(make()):
            if isinstance(argument, (Out, np.ndarray)):
                yield kernel, place, isinstance(argument, Out)


def misaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


def strided(array: np.ndarray) -> np.ndarray:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    return wide[..., ::2]


def turned(array: np.ndarray) -> np.ndarray:
    """Of the same shape, in the order of Fortran; gaps where that is the same."""
    return np.asfortranarray(array) if array.ndim > 1 else strided(array)


ODD: dict[str, Callable[[np.ndarray], Any]] = {
    "of another type": lambda a: a.astype(np.int64),
    "of the other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "one longer": lambda a: np.concatenate([a, a[..., :1]], axis=-1),
    "one axis more": lambda a: a[None],
    "empty": lambda a: a[..., :0],
    "strided": strided,
    "in another order": turned,
    "reversed": lambda a: a[..., ::-1],
    "repeated": lambda a: np.broadcast_to(a.flat[0], a.shape),
    "misaligned": misaligned,
    "a list": lambda a: a.tolist(),
    "a number": lambda _: 1.0,
    "a type": lambda _: np.ndarray,
    "nothing": lambda _: None,
}
OPTIONAL = [
    *(("moments", 3), ("pull_back", 3), ("pull_back", 4, 5, 6), ("content_pull_back", 5)),
    ("smooth", 4),
]
# What fits all the same: clamp takes any shape, a wider image has the columns that are shown, and
# there may be any number of taps.
FREE = {
    *(("clamp", 0, kind) for kind in ("one longer", "one axis more", "empty")),
    *(("extend", 0, "one longer"), ("fold", 3, "one longer"), ("smooth", 1, "one longer")),
    *((kernel, left[0], "nothing") for kernel, *left in OPTIONAL if len(left) == 1),
}


def refused(kernel: str, values: list[Any], threads: int = 1) -> str:
    """Check that the call is refused in one line, before anything is written."""
    before = [a.tobytes() for a in values if isinstance(a, np.ndarray)]
    with pytest.raises(ShapeError) as caught:
        getattr(_core, kernel)(*values, threads)
    assert [a.tobytes() for a in values if isinstance(a, np.ndarray)] == before
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kernel", CALLS)
def test_the_calls_themselves_are_taken(kernel) -> None:
    getattr(_core, kernel)(*arguments(kernel), 1)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31 - 1])
def test_numbers_of_threads_are_refused(threads) -> None:
    for kernel in CALLS:
        assert "threads" in refused(kernel, arguments(kernel), threads)


@pytest.mark.parametrize(("kernel", "place", "written"), list(places()))
def test_odd_arrays_are_refused(kernel, place, written) -> None:
    for kind, make in ODD.items():
        if (kernel, place, kind) in FREE:
            continue
        values = arguments(kernel)
        values[place] = make(values[place])
        refused(kernel, values)
    values = arguments(kernel)
    values[place].flags.writeable = False
    if written:
        assert "read-only" in refused(kernel, values)
    else:
        getattr(_core, kernel)(*values, 1)


@pytest.mark.parametrize(
    ("kernel", "out"), [(kernel, place) for kernel, place, written in places() if written]
)
def test_outputs_that_share_memory_are_refused(kernel, out) -> None:
    given = arguments(kernel)
    for place, other in enumerate(given):
        if place == out or not isinstance(other, np.ndarray):
            continue
        # Both in one buffer, the output's last value under the other's first bytes.
        values = arguments(kernel)
        size, step = values[out].nbytes, max(values[out].itemsize, other.itemsize)
        start = (size - 1) // step * step
        raw = np.zeros(start + other.nbytes + 2 * step, np.uint8)
        values[out] = raw[:size].view(values[out].dtype).reshape(values[out].shape)
        values[place] = raw[start : start + other.nbytes].view(other.dtype).reshape(other.shape)
        values[place][:] = other
        assert "shares memory" in refused(kernel, values)


def test_neighbours_in_one_buffer_are_taken() -> None:
    buffer = floats(18)
    _core.retract(buffer[:9], buffer[9:], 0.5, 1)
    _core.retract(buffer[9:], buffer[:9], 0.5, 1)


@pytest.mark.parametrize("kernel", ["extend", "fold"])
@pytest.mark.parametrize(("place", "axis", "side"), [(1, "rows", 2), (2, "columns", 3)])
def test_tables_beyond_the_image_are_refused(kernel, place, axis, side) -> None:
    for value in (-1, side, 2**31 - 1, -(2**31)):
        for at in (0, -1):
            values = arguments(kernel)
            values[place][at] = value
            message = refused(kernel, values)
            assert f"{axis}: needs values from 0 to {side - 1}" in message
            assert "(2, 3, 2, 3)" in message


@pytest.mark.parametrize(
    ("slot", "count"), [(2, 2), (0, 3), (-1, 1), (0, 0), (2**62, 1), (0, 2**62)]
)
def test_slots_beyond_the_history_are_refused(slot, count) -> None:
    values = arguments("lbfgs_update")
    values[5:7] = slot, count
    assert f"slot {slot} and count {count}" in refused("lbfgs_update", values)


@pytest.mark.parametrize("kernel", ["lbfgs_update", "lbfgs_direction"])
def test_half_a_pair_is_refused(kernel) -> None:
    values = arguments(kernel)
    place = next(i for i, a in enumerate(values) if getattr(a, "dtype", None) == np.uint16)
    values[place] = np.zeros((3, 9), np.uint16)
    assert "(2m, D)" in refused(kernel, values)


def without(kernel: str, *places: int) -> list[Any]:
    return [None if place in places else a for place, a in enumerate(arguments(kernel))]


def test_what_may_be_left_out() -> None:
    for kernel, *left in OPTIONAL:
        getattr(_core, kernel)(*without(kernel, *left), 1)
    for left in ((4,), (5,), (6,), (4, 5), (4, 6), (5, 6)):
        assert "together" in refused("pull_back", without("pull_back", *left))


def test_weights_may_be_those_of_all_images() -> None:
    for kernel, place in (("moments", 3), ("pull_back", 3), ("content_pull_back", 5)):
        values = arguments(kernel)
        values[place] = floats(9)
        getattr(_core, kernel)(*values, 1)


def test_messages_give_both_shapes() -> None:
    kernels = Kernels(1)
    F, one, M = floats(1, 4, 10), np.ones(1), floats(1, 5, 5)
    cases = [
        (lambda: kernels.moments(F, one, floats(1, 4, 4)),
         "out: needs shape (1, 5, 5) float32, not (1, 4, 4) float32"),
        (lambda: kernels.moments(F.astype(np.float64), one, M),
         "features: needs shape (1, 4, 10) float32, not (1, 4, 10) float64"),
        (lambda: kernels.moments(F[0], one, M),
         "features: needs shape (N, C, P), none of them 0, not (4, 10)"),
        (lambda: kernels.moments(F.tolist(), one, M),  # type: ignore[arg-type]
         "features: needs shape (N, C, P), none of them 0, not list"),
        (lambda: kernels.moments(F, [1.0], M),  # type: ignore[arg-type]
         "normalizers: needs a numpy array of shape (1,), not list"),
        (lambda: kernels.moments(F, one, M, pixel_weights=np.ones(9, np.float32)),
         "pixel_weights: needs shape (10,) float32, not (9,) float32"),
        (lambda: kernels.moments(F[:, :, ::2], one, M),
         "features: needs C-contiguous memory for shape (1, 4, 5)"),
        (lambda: kernels.retract(F[0, 0], F[0, 0], 0.5),
         "x of shape (10,) shares memory with x_prev of shape (10,); give it its own array"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(ShapeError) as caught:
            call()
        assert message in str(caught.value)


def test_wrong_threads_are_refused() -> None:
    for threads in (0, -1, 1.5, True, 1025):
        with pytest.raises(SettingsError, match="threads"):
            Kernels(threads)  # type: ignore[arg-type]


def test_a_missing_module_is_explained() -> None:
    script = (
        "import sys\n"
        "sys.modules['nst_fast._core'] = None\n"
        "from nst_fast.errors import NstError\n"
        "from nst_fast.kernels import Kernels\n"
        "try:\n    Kernels(1)\n"
        "except NstError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install" in run.stdout


def test_allocates_aligned_zeros() -> None:
    array = Kernels(1).zeros((3, 5), np.uint16)
    assert (array.shape, array.dtype) == ((3, 5), np.uint16)
    assert array.ctypes.data % 64 == 0
    assert not array.any()
