"""Moments and pull back for CUDA against float64: by the shim, and on a GPU if there is one.

Bounds are per entry: what rounding can do at most, from the magnitudes that were added up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shim import LAUNCHERS, ShimLauncher, joined_source, make_launcher

from nst_fast.device import Launcher
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.gpu.cutting import STORED
from nst_fast.gpu.taps import Tap, TapKernels

KINDS = list(STORED)
FILES = ("device.cuh", "products.cuh", "taps.cu")
# Half a unit in the last place of what A, m∘F and the gradient are rounded to.
DERIVATIVE = {"fp16": 2**-11, "bf16": 2**-8, "fp32": 0.0, "tf32": 2**-11}
OUTPUT = {"fp16": 2**-11, "bf16": 2**-8, "fp32": 2**-24, "tf32": 2**-24}
FEATURE = {"fp16": 0.0, "bf16": 0.0, "fp32": 0.0, "tf32": 2**-11}  # rounded to be multiplied
SUM = 1e-5  # of at most a thousand products in float32, which tensor cores may cut off
TINY = {"fp16": 2**-25, "bf16": 2**-149, "fp32": 2**-149, "tf32": 2**-149}
SHAPES = [
    (1, 1, 1),
    (1, 3, 7),
    (2, 16, 64),
    (3, 20, 257),
    (1, 64, 512),
    (2, 128, 530),
    (1, 258, 328),
    (1, 5, 1501),
]


@dataclass(frozen=True)
class Case:
    """One tap in float64, W windows of N pictures: what is stored, and factors of each picture.

    ``features`` and ``content`` are (W, N, C, P), ``weights`` (W, N, P) or None, ``derivative``
    (N, C, C+1), ``normalizers`` (2, N) of the style and the content term, as are ``factors``.
    """

    features: np.ndarray
    derivative: np.ndarray | None
    content: np.ndarray | None
    weights: np.ndarray | None
    normalizers: np.ndarray
    factors: np.ndarray
    loss_scale: np.ndarray

    @property
    def m(self) -> np.ndarray:
        if self.weights is None:
            return np.ones((*self.features.shape[:2], self.features.shape[3]))
        return self.weights

    def extended(self, window: int) -> np.ndarray:
        F = self.features[window]
        return np.concatenate([F, np.ones_like(F[:, :1])], axis=1)

    def moments(self, kind: str, windows: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of the first windows, and what an entry may differ by."""
        value = slack = 0
        for w in range(windows):
            F, m = self.extended(w), self.m[w][:, None]
            value = value + (F * m) @ F.transpose(0, 2, 1)
            one = OUTPUT[kind] if self.weights is not None else 0.0
            share = (one + 2 * FEATURE[kind]) * (1 + 2**-7) + SUM
            slack = slack + share * np.abs(F * m) @ np.abs(F).transpose(0, 2, 1)
            if self.weights is not None:  # what underflows in m∘F
                slack = slack + TINY[kind] * np.abs(F).sum(axis=2).max()
        scale = self.normalizers[0][:, None, None]
        return value * scale, slack * scale

    def terms(self) -> np.ndarray:
        squares = self.m[:, :, None] * (self.features - self.content) ** 2
        return self.factors[1] * self.normalizers[1] * squares.sum(axis=(0, 2, 3))

    def gradient(self, kind: str, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The gradient, and what an entry may differ by."""
        F, m = self.features[window], self.m[window][:, None]
        value, slack = np.zeros_like(F), np.zeros_like(F)
        if self.derivative is not None:
            A, b = self.derivative[..., :-1], self.derivative[..., -1:]
            value += A @ F + b
            share = DERIVATIVE[kind] + FEATURE[kind] + SUM
            slack += share * (np.abs(A) @ np.abs(F)) + SUM * np.abs(b)
            # An entry far below its row's largest underflows.
            slack += (
                2.0**-38
                * np.abs(A).max(axis=2, keepdims=True)
                * np.abs(F).sum(axis=1, keepdims=True)
            )
        if self.content is not None:
            c = (self.factors[1] * self.normalizers[1])[:, None, None]
            value += 2 * c * (F - self.content[window])
            slack += 2 * c * SUM * (np.abs(F) + np.abs(self.content[window]))
        scale = self.loss_scale[:, None, None] * m
        value, slack = scale * value, scale * slack
        return value, (1 + 2**-6) * (slack + OUTPUT[kind] * np.abs(value)) + TINY[kind]


def last(values: np.ndarray) -> np.ndarray:
    """(…, C, P) as the kernels have it, (…, P, C)."""
    return np.ascontiguousarray(np.swapaxes(values, -1, -2))


def stored(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(STORED[kind])


def widened(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def make_case(
    random, kind, shape, *, style=True, content=True, weighted=False, windows=1, size=1.0
) -> Case:
    """Features as after a ReLU, in what the kind can store."""
    N, C, P = shape

    def some() -> np.ndarray:
        values = size * np.maximum(random.standard_normal((windows, N, C, P)) + 0.3, 0)
        return widened(stored(values, kind), kind)

    A = random.standard_normal((N, C, C)) * np.exp(random.uniform(-9, 0, (N, 1, 1)))
    b = random.standard_normal((N, C, 1))
    derivative = np.concatenate([A + A.transpose(0, 2, 1), b], axis=2).astype(np.float32)
    weights = random.choice([0.0, 1.0, 0.75, 0.3], (windows, N, P)).astype(np.float32)
    return Case(
        features=some(),
        derivative=derivative.astype(np.float64) if style else None,
        content=some() if content else None,
        weights=weights.astype(np.float64) if weighted else None,
        normalizers=random.uniform(0.5, 2, (2, N)) / (windows * C * P),
        factors=random.uniform(0.5, 2, (2, N)),
        loss_scale=2.0 ** random.integers(4, 12, N),
    )


def on_device(launcher: Launcher, values: np.ndarray, dtype=None):
    array = launcher.zeros(values.shape, dtype or values.dtype)
    launcher.upload(values, array)
    return array


def make_kernels(launcher: Launcher, kind: str, cases: list[Case]) -> tuple[TapKernels, list[Tap]]:
    """Kernels for cases that share ``loss_scale``; outputs hold NaN before they run."""

    def tap(case: Case) -> Tap:
        features = last(stored(case.features[0], kind))
        poison = stored(np.full(features.shape, np.nan), kind)
        has_style, has_content = case.derivative is not None, case.content is not None
        arrays = on_device(launcher, features), on_device(launcher, poison)
        return Tap(*arrays, style=has_style, content=has_content)

    taps = [tap(case) for case in cases]
    scale = on_device(launcher, cases[0].loss_scale, np.float32)
    kernels = TapKernels(
        launcher,
        taps,
        kind,
        scale,
        weighted=cases[0].weights is not None,
        windows=len(cases[0].features),
    )
    for array in (*kernels.moments, kernels.terms):
        launcher.upload(np.full(array.shape, np.nan), array)
    set_cases(launcher, kernels, kind, cases)
    return kernels, taps


def set_cases(launcher: Launcher, kernels: TapKernels, kind: str, cases: list[Case]) -> None:
    styled = [case for case in cases if case.derivative is not None]
    contents = [case for case in cases if case.content is not None]
    for array, case in zip(kernels.derivatives, styled, strict=True):
        launcher.upload(case.derivative, array)
    for name in ("factors", "normalizers"):
        columns = [getattr(case, name)[0] for case in styled]
        columns += [getattr(case, name)[1] for case in contents]
        launcher.upload(np.stack(columns, axis=1), getattr(kernels, name))
    for index, case in enumerate(cases):
        if case.weights is not None:
            kernels.set_weights(index, case.weights.astype(np.float32))
        if case.content is not None:
            kernels.set_content(index, last(stored(case.content, kind)))


def run_and_check(
    launcher: Launcher, kind: str, cases: list[Case], kernels: TapKernels, taps: list[Tap]
) -> None:
    """Measure and pull back window by window, and compare everything with float64."""
    styled = [case for case in cases if case.derivative is not None]
    contents = [case for case in cases if case.content is not None]
    windows = len(cases[0].features)

    def show(window: int) -> None:
        for tap, case in zip(taps, cases, strict=True):
            launcher.upload(last(stored(case.features[window], kind)), tap.features)

    for window in range(windows):
        show(window)
        kernels.measure(window)
        for case, moments in zip(styled, kernels.moments, strict=True):
            value, slack = case.moments(kind, window + 1)
            found = launcher.download(moments)
            error = np.abs(found - value)
            assert (error <= slack).all(), (error / slack).max()
            np.testing.assert_array_equal(found, found.transpose(0, 2, 1))
    kernels.narrow()
    for window in range(windows):
        show(window)
        kernels.pull_back(window)
        for case, tap in zip(cases, taps, strict=True):
            value, slack = case.gradient(kind, window)
            error = np.abs(last(widened(launcher.download(tap.gradient), kind)) - value)
            assert (error <= slack).all(), (error / slack).max()
    kernels.add_terms()
    found = launcher.download(kernels.terms).T
    assert np.isnan(found[: len(styled)]).all()  # the caller's
    for case, term in zip(contents, found[len(styled) :], strict=True):
        np.testing.assert_allclose(term, case.terms(), rtol=1e-6)


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest, seed: int) -> Launcher:
    return make_launcher(request.param, *FILES, seed=seed)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_all_is_as_in_float64(launcher, seed, kind, shape, weighted):
    cases = [make_case(np.random.default_rng(seed), kind, shape, weighted=weighted)]
    run_and_check(launcher, kind, cases, *make_kernels(launcher, kind, cases))


TERMS = st.sampled_from([(True, True), (True, False), (False, True)])
TAPS = st.lists(st.tuples(st.integers(1, 70), st.integers(1, 200), TERMS), min_size=1, max_size=3)


@given(
    kind=st.sampled_from(KINDS),
    pictures=st.integers(1, 3),
    windows=st.integers(1, 3),
    weighted=st.booleans(),
    taps=TAPS,
    seed=st.integers(0),
)
def test_taps_of_any_shape_and_any_terms(kind, pictures, windows, weighted, taps, seed):
    random = np.random.default_rng(seed)
    options = {"weighted": weighted, "windows": windows}
    cases = [
        make_case(random, kind, (pictures, C, P), style=style, content=content, **options)
        for C, P, (style, content) in taps
    ]
    cases = [replace(case, loss_scale=cases[0].loss_scale) for case in cases]
    launcher = ShimLauncher(joined_source(*FILES), seed % 2**32)
    run_and_check(launcher, kind, cases, *make_kernels(launcher, kind, cases))


@pytest.mark.parametrize("kind", KINDS)
def test_terms_that_see_a_tap_through_other_weights_add_up(launcher, seed, kind):
    """Two styles and a content term in turns, on features and a gradient that they share."""
    random = np.random.default_rng(seed)
    first = make_case(random, kind, (2, 70, 150), content=False, weighted=True)
    cases = [first]
    for style in (True, False):
        case = make_case(random, kind, (2, 70, 150), style=style, content=not style, weighted=True)
        cases.append(replace(case, features=first.features, loss_scale=first.loss_scale))
    features = on_device(launcher, last(stored(first.features[0], kind)))
    gradient = on_device(launcher, stored(np.full(features.shape, np.nan), kind))
    taps = [
        Tap(features, gradient, case.derivative is not None, case.content is not None, turn)
        for turn, case in enumerate(cases)
    ]
    scale = on_device(launcher, first.loss_scale, np.float32)
    kernels = TapKernels(launcher, taps, kind, scale, weighted=True)
    set_cases(launcher, kernels, kind, cases)
    kernels.narrow()
    kernels.pull_back()
    values, slacks = zip(*(case.gradient(kind, 0) for case in cases), strict=True)
    found = last(widened(launcher.download(gradient), kind))
    # What was written before is rounded again with each turn.
    slack = sum(slacks) + 2 * OUTPUT[kind] * np.abs(values).sum(axis=0)
    assert (np.abs(found - sum(values)) <= slack).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_gives_the_same_bits(seed, kind):
    """Blocks, warps and lanes run in another order each time."""
    cases = [make_case(np.random.default_rng(seed), kind, (2, 70, 550), weighted=True)]
    found = []
    for order in range(3):
        launcher = ShimLauncher(joined_source(*FILES), seed + order)
        kernels, taps = make_kernels(launcher, kind, cases)
        run_and_check(launcher, kind, cases, kernels, taps)
        arrays = (kernels.terms, kernels.moments[0], taps[0].gradient)
        found.append([launcher.download(array).tobytes() for array in arrays])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_in_memory_are_read_by_every_launch(launcher, seed, kind):
    random = np.random.default_rng(seed)
    cases = [make_case(random, kind, (2, 9, 40), weighted=True)]
    kernels, taps = make_kernels(launcher, kind, cases)
    run_and_check(launcher, kind, cases, kernels, taps)
    cases = [replace(make_case(random, kind, (2, 9, 40), weighted=True), loss_scale=np.ones(2))]
    kernels.set_weights(0, cases[0].weights[:, :1].astype(np.float32))  # one row for all pictures
    cases = [replace(cases[0], weights=np.repeat(cases[0].weights[:, :1], 2, axis=1))]
    set_cases(launcher, kernels, kind, cases)
    launcher.upload(np.ones(2), kernels.loss_scale)
    launcher.upload(np.full(kernels.terms.shape, np.nan), kernels.terms)
    run_and_check(launcher, kind, cases, kernels, taps)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_are_no_weights(launcher, seed, kind):
    case = make_case(np.random.default_rng(seed), kind, (2, 83, 150))
    found = []
    for weights in (None, np.ones((1, 2, 150))):
        cases = [replace(case, weights=weights)]
        kernels, taps = make_kernels(launcher, kind, cases)
        run_and_check(launcher, kind, cases, kernels, taps)
        arrays = (kernels.terms, kernels.moments[0], taps[0].gradient)
        found.append([launcher.download(array).tobytes() for array in arrays])
    assert found[0] == found[1]


def test_without_any_weight_all_is_zero(launcher, seed):
    case = make_case(np.random.default_rng(seed), "fp16", (2, 9, 40), weighted=True)
    case = replace(case, weights=np.zeros((1, 2, 40)), normalizers=np.zeros((2, 2)))
    kernels, (tap,) = make_kernels(launcher, "fp16", [case])
    run_and_check(launcher, "fp16", [case], kernels, [tap])
    for array in (kernels.moments[0], tap.gradient):
        assert not launcher.download(array).any()


@pytest.mark.parametrize("size", [1e7, 1e-9])
def test_half_derivatives_beyond_the_range_of_float16(launcher, seed, size):
    """A of such a size, and one row of it far from the others."""
    case = make_case(np.random.default_rng(seed), "fp16", (2, 24, 90), content=False)
    derivative = case.derivative / np.abs(case.derivative).max() * size
    derivative[:, 5, :-1] /= 4096
    derivative[:, :, 5] = derivative[:, 5, :-1]
    derivative = derivative.astype(np.float32).astype(np.float64)
    case = replace(case, derivative=derivative, loss_scale=np.full(2, 2.0 ** -round(np.log2(size))))
    kernels, taps = make_kernels(launcher, "fp16", [case])
    run_and_check(launcher, "fp16", [case], kernels, taps)
    assert np.abs(launcher.download(taps[0].gradient)).max() > 2**-6


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_start_anywhere(launcher, seed, kind):
    """The second picture of two, an odd number of values behind the first."""
    case = make_case(np.random.default_rng(seed), kind, (2, 9, 33), weighted=True)
    _, (whole,) = make_kernels(launcher, kind, [case])
    tap = replace(whole, features=whole.features[1:], gradient=whole.gradient[1:])
    scale = on_device(launcher, case.loss_scale, np.float32)
    second = Case(
        *(values[:, 1:] for values in (case.features,)),
        derivative=case.derivative[1:],
        content=case.content[:, 1:],
        weights=case.weights[:, 1:],
        normalizers=case.normalizers[:, 1:],
        factors=case.factors[:, 1:],
        loss_scale=case.loss_scale[1:],
    )
    kernels = TapKernels(launcher, [tap], kind, scale[1:], weighted=True)
    launcher.upload(np.full(kernels.terms.shape, np.nan), kernels.terms)
    set_cases(launcher, kernels, kind, [second])
    run_and_check(launcher, kind, [second], kernels, [tap])
    assert np.isnan(widened(launcher.download(whole.gradient[:1]), kind)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_reaches_moments_and_terms_of_its_picture(launcher, seed, kind, bad):
    case = make_case(np.random.default_rng(seed), kind, (2, 6, 50))
    case.features[0, 1, 3, 17] = bad
    kernels, _ = make_kernels(launcher, kind, [case])
    kernels.measure()
    kernels.narrow()
    kernels.pull_back()
    kernels.add_terms()
    moments = launcher.download(kernels.moments[0])
    assert np.isfinite(moments[0]).all()
    assert not np.isfinite(moments[1, 3, [3, 6]]).any()
    assert np.isfinite(launcher.download(kernels.terms)[:, 1]).tolist() == [True, False]


@pytest.fixture
def tap() -> Tap:
    maps = np.zeros((2, 3, 4), np.float16)
    return Tap(maps, maps.copy(), style=True, content=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((2, 3), np.float16)}, r"features: needs shape \(N, P, C\)"),
        ({"features": np.zeros((2, 3, 4), np.float32)}, "features: needs .* float16"),
        ({"gradient": np.zeros((2, 3, 5), np.float16)}, r"gradient: needs shape \(2, 3, 4\)"),
        ({"style": False, "content": False}, "a style or a content term"),
    ],
)
def test_misfits_are_refused(tap, change, message):
    launcher = ShimLauncher(joined_source(*FILES))
    with pytest.raises(ShapeError, match=rf"taps\[1\].*{message}|taps\[1\]\.{message}"):
        TapKernels(launcher, [tap, replace(tap, **change)], "fp16", np.ones(2, np.float32))


def test_a_misfitting_scale_and_no_taps_are_refused(tap):
    launcher = ShimLauncher(joined_source(*FILES))
    with pytest.raises(ShapeError, match=r"loss_scale: needs shape \(2,\) float32"):
        TapKernels(launcher, [tap], "fp16", np.ones(3, np.float32))
    with pytest.raises(ShapeError, match="at least one"):
        TapKernels(launcher, [], "fp16", np.ones(2, np.float32))


def test_old_devices_multiply_no_bfloat16(tap):
    launcher = ShimLauncher(joined_source(*FILES))
    launcher.bf16_products = False
    with pytest.raises(
        SettingsError, match=r"older than compute capability 8\.0; use fp16 or fp32"
    ):
        TapKernels(launcher, [tap], "bf16", np.ones(2, np.float32))
