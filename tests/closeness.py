"""One measure of agreement for all tests: the relative L2 error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def relative_error(actual: ArrayLike, expected: ArrayLike) -> float:
    """Return ‖actual − expected‖ / ‖expected‖ in float64; the plain norm where expected is 0.

    A vector's error is judged as a whole: single elements near 0 have no meaningful relative error.
    """
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if a.shape != e.shape:
        raise AssertionError(f"shapes differ: {a.shape}, expected {e.shape}")
    scale = float(np.linalg.norm(e))
    return float(np.linalg.norm(a - e)) / (scale if scale > 0 else 1.0)


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float = 1e-5) -> None:
    """Fail where the relative L2 error is above the tolerance, or is not a number."""
    error = relative_error(actual, expected)
    if not error <= tolerance:
        raise AssertionError(f"relative L2 error {error:.3g}, at most {tolerance:.3g} allowed")
