"""Types of the compiled module; shapes are documented in nst_fast.kernels."""

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_F64 = NDArray[np.float64]
_I32 = NDArray[np.int32]
_U16 = NDArray[np.uint16]

__version__: str

def paths() -> list[str]: ...
def path() -> str: ...
def use_path(name: str) -> None: ...
def cpu_features() -> list[str]: ...
def moments(
    features: _F32,
    scales: _F64,
    out: _F32,
    pixel_weights: _F32 | None,
    accumulate: bool,
    threads: int,
) -> None: ...
def pull_back(
    features: _F32,
    derivative: _F32,
    out: _F32,
    pixel_weights: _F32 | None,
    content: _F32 | None,
    content_factors: _F64 | None,
    content_losses: _F64 | None,
    threads: int,
) -> None: ...
def content_pull_back(
    features: _F32,
    content: _F32,
    factors: _F64,
    out: _F32,
    losses: _F64,
    pixel_weights: _F32 | None,
    threads: int,
) -> None: ...
def extend(image: _F32, rows: _I32, columns: _I32, canvas: _F32, threads: int) -> None: ...
def fold(canvas: _F32, rows: _I32, columns: _I32, image: _F32, threads: int) -> None: ...
def smooth(
    image: _F32, taps: _F32, share: float, out: _F32, base: _F32 | None, threads: int
) -> None: ...
def total_variation(
    image: _F32, weights: _F64, gradient: _F32, losses: _F64, threads: int
) -> None: ...
def range_penalty(
    image: _F32, weights: _F64, gradient: _F32, losses: _F64, threads: int
) -> None: ...
def lbfgs_update(
    x: _F32,
    x_prev: _F32,
    gradient: _F32,
    gradient_prev: _F32,
    history: _U16,
    slot: int,
    count: int,
    dots: _F64,
    threads: int,
) -> None: ...
def lbfgs_direction(
    history: _U16,
    coefficients: _F64,
    gradient: _F32,
    gradient_coefficient: float,
    x_prev: _F32,
    x: _F32,
    threads: int,
) -> None: ...
def retract(x: _F32, x_prev: _F32, ratio: float, threads: int) -> None: ...
def adam_update(
    x: _F32,
    gradient: _F32,
    m: _F32,
    v: _F32,
    beta1: float,
    beta2: float,
    step: float,
    root_scale: float,
    epsilon: float,
    low: float,
    high: float,
    threads: int,
) -> float: ...
def clamp(x: _F32, low: float, high: float, threads: int) -> None: ...
