from __future__ import annotations

import numpy as np
import pytest
from closeness import assert_close, relative_error


def test_measures_relative_l2_error() -> None:
    assert relative_error([3.0, 4.5], [3.0, 4.0]) == pytest.approx(0.1)
    assert relative_error([3e9, 4.5e9], [3e9, 4e9]) == pytest.approx(0.1)


def test_zero_is_judged_absolutely() -> None:
    assert_close(np.zeros(3), np.zeros(3))
    assert relative_error([3.0, 4.0], [0.0, 0.0]) == 5.0


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1.0, 1.0001], [1.0, 1.0]),
        ([1.0, np.nan], [1.0, 1.0]),
        ([1.0, np.inf], [1.0, 1.0]),
        ([1.0, 1.0], [1.0, np.nan]),
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 3.0], [2.0, 4.0]]),
        ([1.0, 1.0, 1.0], [1.0, 1.0]),
        (np.ones((2, 1)), np.ones((1, 2))),
    ],
)
def test_fails_when_it_should(actual: object, expected: object) -> None:
    with pytest.raises(AssertionError):
        assert_close(actual, expected)
