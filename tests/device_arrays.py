"""Arrays for the tests of csrc/steps.cu and terms.cu, on the CPU through the shim or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference
from numpy.typing import NDArray
from shim import make_launcher

from nst_fast.device import Launcher


def launcher_for(where: str, seed: int = 0) -> Launcher:
    return make_launcher(where, "device.cuh", "steps.cu", "lbfgs.cu", "terms.cu", seed=seed)


def widen(values: np.ndarray) -> NDArray[np.float64]:
    """What the device reads, in float64."""
    return (reference.widen(values) if values.dtype == np.uint16 else values).astype(np.float64)


def narrow(values: np.ndarray, dtype: Any) -> np.ndarray:
    values = values.astype(np.float32)
    return reference.bfloat16(values) if dtype == np.uint16 else values.astype(dtype)
