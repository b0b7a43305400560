"""Gram kernels for CUDA against float64: on the CPU through the shim, and on a GPU if there is one.

Bounds are per entry: what rounding can do at most, from the magnitudes that were added up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shim import LAUNCHERS, ShimLauncher, joined_source, make_launcher

from nst_fast.cuda import Launcher
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.kernels.taps import STORED, Tap, TapKernels

KINDS = list(STORED)
FILES = ("device.cuh", "products.cuh", "gram.cu")
# Half a unit in the last place of what R, and the gradient, are rounded to.
RESIDUAL = {"fp16": 2**-11, "bf16": 2**-8, "fp32": 0.0, "tf32": 2**-11}
OUTPUT = {"fp16": 2**-11, "bf16": 2**-8, "fp32": 2**-24, "tf32": 2**-24}
FEATURE = {"fp16": 0.0, "bf16": 0.0, "fp32": 0.0, "tf32": 2**-11}  # rounded to be multiplied
SUM = 1e-5  # of at most a thousand products in float32, which tensor cores may cut off
SHAPES = [
    (1, 1, 1),
    (1, 3, 7),
    (2, 16, 64),
    (3, 20, 257),
    (1, 64, 512),
    (1, 130, 328),
    (1, 5, 1501),
]


@dataclass(frozen=True)
class Case:
    """One tap in float64: what is stored, targets, and factors of each picture."""

    features: np.ndarray
    style: np.ndarray | None
    content: np.ndarray | None
    a: np.ndarray
    b: np.ndarray
    scale: np.ndarray

    def gram(self) -> np.ndarray:
        return self.features @ self.features.transpose(0, 2, 1) / self.features[0].size

    def residual(self) -> np.ndarray:
        return self.gram() - self.style

    def terms(self) -> list[np.ndarray]:
        style, content = [], []
        if self.style is not None:
            style = [self.a * (self.residual() ** 2).sum(axis=(1, 2))]
        if self.content is not None:
            content = [self.b * ((self.features - self.content) ** 2).mean(axis=(1, 2))]
        return [*style, *content]

    def gradient(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """The gradient, and what an entry may differ by."""
        size, F = self.features[0].size, np.abs(self.features)
        value, slack = np.zeros_like(F), np.zeros_like(F)
        a, b = (
            (factor * self.scale * unit / size)[:, None, None]
            for factor, unit in ((self.a, 4), (self.b, 2))
        )
        if self.style is not None:
            R, G = self.residual(), np.abs(self.gram())
            value += a * (R @ self.features)
            slack += a * ((RESIDUAL[kind] + FEATURE[kind] + SUM) * np.abs(R) @ F)
            slack += a * ((2 * FEATURE[kind] + SUM) * G @ F)
        if self.content is not None:
            value += b * (self.features - self.content)
            slack += b * SUM * (F + np.abs(self.content))
        least = 2**-25 if kind == "fp16" else 2**-149
        return value, (1 + 2**-6) * (slack + OUTPUT[kind] * np.abs(value)) + least


def stored(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(STORED[kind])


def widened(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def make_case(random, kind, shape, *, style=True, content=True, factors=None, size=1.0) -> Case:
    """Features as after a ReLU, in what the kind can store."""

    def some() -> np.ndarray:
        values = size * np.maximum(random.standard_normal(shape) + 0.3, 0)
        return widened(stored(values, kind), kind)

    N, C, _ = shape
    target = random.standard_normal((N, C, C)).astype(np.float32) * size**2 / C
    target = (target + target.transpose(0, 2, 1)).astype(np.float64)
    a, b = random.uniform(0.5, 2, (2, N)) if factors is None else factors
    scale = 2.0 ** random.integers(4, 12, N)
    return Case(some(), target if style else None, some() if content else None, a, b, scale)


def on_device(launcher: Launcher, values: np.ndarray, dtype=None):
    array = launcher.zeros(values.shape, dtype or values.dtype)
    launcher.upload(values, array)
    return array


def make_kernels(launcher: Launcher, kind: str, cases: list[Case]) -> tuple[TapKernels, list[Tap]]:
    """Kernels for cases that share ``scale``; outputs hold NaN before they run."""

    def tap(case: Case) -> Tap:
        features = stored(case.features, kind)
        poison = stored(np.full(features.shape, np.nan), kind)
        return Tap(
            on_device(launcher, features),
            on_device(launcher, poison),
            None if case.style is None else on_device(launcher, case.style, np.float32),
            None if case.content is None else on_device(launcher, stored(case.content, kind)),
        )

    taps = [tap(case) for case in cases]
    kernels = TapKernels(launcher, taps, kind, on_device(launcher, cases[0].scale, np.float32))
    for array in (*kernels.residuals, kernels.terms):
        launcher.upload(np.full(array.shape, np.nan), array)
    set_factors(launcher, kernels, cases)
    return kernels, taps


def set_factors(launcher: Launcher, kernels: TapKernels, cases: list[Case]) -> None:
    a = [case.a for case in cases if case.style is not None]
    b = [case.b for case in cases if case.content is not None]
    launcher.upload(np.stack([*a, *b], axis=1), kernels.factors)


def check(launcher: Launcher, kind: str, cases: list[Case], kernels: TapKernels, taps: list[Tap]):
    """Compare everything that a run wrote with float64."""
    for case, tap in zip(cases, taps, strict=True):
        value, slack = case.gradient(kind)
        error = np.abs(widened(launcher.download(tap.gradient), kind) - value)
        assert (error <= slack).all(), (error / slack).max()
    styled = [case for case in cases if case.style is not None]
    gram = 2 * FEATURE[kind] * (1 + 2**-11) + SUM
    for case, residual in zip(styled, kernels.residuals, strict=True):
        error = np.abs(launcher.download(residual) - case.residual())
        slack = gram * np.abs(case.gram()) + 2**-24 * np.abs(case.residual())
        assert (error <= slack).all(), (error / slack).max()
    found = launcher.download(kernels.terms).T
    contents = [case for case in cases if case.content is not None]
    for case, term in zip(styled, found[: len(styled)], strict=True):
        R, G = case.residual(), case.gram()
        slack = case.a * (2 * gram * np.abs(R * G) + (gram * G) ** 2).sum(axis=(1, 2))
        assert (np.abs(term - case.terms()[0]) <= slack + SUM * term).all()
    for case, term in zip(contents, found[len(styled) :], strict=True):
        np.testing.assert_allclose(term, case.terms()[-1], rtol=1e-6)


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest, seed: int) -> Launcher:
    return make_launcher(request.param, *FILES, seed=seed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_terms_and_gradients_are_those_of_float64(launcher, seed, kind, shape):
    cases = [make_case(np.random.default_rng(seed), kind, shape)]
    kernels, taps = make_kernels(launcher, kind, cases)
    kernels.run()
    check(launcher, kind, cases, kernels, taps)


TERMS = st.sampled_from([(True, True), (True, False), (False, True)])
TAPS = st.lists(st.tuples(st.integers(1, 70), st.integers(1, 200), TERMS), min_size=1, max_size=3)


@given(kind=st.sampled_from(KINDS), pictures=st.integers(1, 3), taps=TAPS, seed=st.integers(0))
def test_taps_of_any_shape_and_any_terms(kind, pictures, taps, seed):
    random = np.random.default_rng(seed)
    cases = [
        make_case(random, kind, (pictures, C, P), style=style, content=content)
        for C, P, (style, content) in taps
    ]
    cases = [replace(case, scale=cases[0].scale) for case in cases]
    launcher = ShimLauncher(joined_source(*FILES), seed % 2**32)
    kernels, arrays = make_kernels(launcher, kind, cases)
    kernels.run()
    check(launcher, kind, cases, kernels, arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_gives_the_same_bits(seed, kind):
    """Blocks, warps and lanes run in another order each time."""
    cases = [make_case(np.random.default_rng(seed), kind, (2, 70, 1100))]
    found = []
    for order in range(3):
        launcher = ShimLauncher(joined_source(*FILES), seed + order)
        kernels, taps = make_kernels(launcher, kind, cases)
        kernels.run()
        arrays = (kernels.terms, kernels.residuals[0], taps[0].gradient)
        found.append([launcher.download(array).tobytes() for array in arrays])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", KINDS)
def test_factors_and_scale_are_read_by_every_run(launcher, seed, kind):
    random = np.random.default_rng(seed)
    cases = [make_case(random, kind, (2, 9, 40))]
    scale = on_device(launcher, cases[0].scale, np.float32)
    kernels, (tap,) = make_kernels(launcher, kind, cases)
    kernels = TapKernels(launcher, [tap], kind, scale)
    for _ in range(2):
        set_factors(launcher, kernels, cases)
        launcher.upload(cases[0].scale, scale)
        kernels.run()
        check(launcher, kind, cases, kernels, [tap])
        a, b = random.uniform(3, 4, (2, 2))
        cases = [replace(cases[0], a=a, b=b, scale=cases[0].scale / 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_target_the_residual_is_the_symmetric_gram_matrix(launcher, seed, kind):
    case = make_case(np.random.default_rng(seed), kind, (2, 83, 150))
    case = replace(case, style=np.zeros_like(case.style))
    kernels, taps = make_kernels(launcher, kind, [case])
    kernels.run()
    check(launcher, kind, [case], kernels, taps)
    gram = launcher.download(kernels.residuals[0])
    np.testing.assert_array_equal(gram, gram.transpose(0, 2, 1))


@pytest.mark.parametrize(("size", "scale"), [(8000, 2.0**-18), (2.0**-9, 2.0**32)])
def test_half_residuals_beyond_the_range_of_float16(launcher, seed, size, scale):
    """R is about 10⁶ or 10⁻⁷; one channel is far from the others besides."""
    case = make_case(np.random.default_rng(seed), "fp16", (2, 24, 90), size=size, content=False)
    features = case.features.copy()
    features[:, 5] = widened(stored(features[:, 5] / 4096, "fp16"), "fp16")
    case = replace(case, features=features, scale=np.full(2, scale))
    magnitude = np.abs(case.residual()).max()
    assert magnitude > 65504 or magnitude < 2**-14
    kernels, taps = make_kernels(launcher, "fp16", [case])
    kernels.run()
    check(launcher, "fp16", [case], kernels, taps)
    assert np.abs(launcher.download(taps[0].gradient)).max() > 2**-10


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_start_anywhere(launcher, seed, kind):
    """The second picture of two, an odd number of values behind the first."""
    case = make_case(np.random.default_rng(seed), kind, (2, 9, 33))
    _, (whole,) = make_kernels(launcher, kind, [case])
    tap = Tap(whole.features[1:], whole.gradient[1:], whole.style[1:], whole.content[1:])
    scale = on_device(launcher, case.scale, np.float32)
    kernels = TapKernels(launcher, [tap], kind, scale[1:])
    second = Case(*(value[1:] for value in vars(case).values()))
    set_factors(launcher, kernels, [second])
    kernels.run()
    check(launcher, kind, [second], kernels, [tap])
    assert np.isnan(widened(launcher.download(whole.gradient[:1]), kind)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_reaches_the_terms_of_its_picture(launcher, seed, kind, bad):
    case = make_case(np.random.default_rng(seed), kind, (2, 6, 50))
    case.features[1, 3, 17] = bad
    kernels, _ = make_kernels(launcher, kind, [case])
    kernels.run()
    finite = np.isfinite(launcher.download(kernels.terms))
    assert finite.tolist() == [[True, True], [False, False]]


@pytest.fixture
def tap() -> Tap:
    maps, square = np.zeros((2, 3, 4), np.float16), np.zeros((2, 3, 3), np.float32)
    return Tap(maps, maps.copy(), square, maps.copy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((2, 3), np.float16)}, r"features: needs shape \(N, C, P\)"),
        ({"features": np.zeros((2, 3, 4), np.float32)}, "features: needs .* float16"),
        ({"gradient": np.zeros((2, 3, 5), np.float16)}, r"gradient: needs shape \(2, 3, 4\)"),
        ({"style": np.zeros((3, 3), np.float32)}, r"style: needs shape \(2, 3, 3\)"),
        ({"content": np.zeros((2, 3, 4), np.uint16)}, "content: needs .* float16"),
        ({"style": None, "content": None}, "a style or a content target"),
    ],
)
def test_misfits_are_refused(tap, change, message):
    launcher = ShimLauncher(joined_source(*FILES))
    with pytest.raises(ShapeError, match=rf"taps\[1\].*{message}|taps\[1\]\.{message}"):
        TapKernels(launcher, [tap, replace(tap, **change)], "fp16", np.ones(2, np.float32))


def test_a_misfitting_scale_and_no_taps_are_refused(tap):
    launcher = ShimLauncher(joined_source(*FILES))
    with pytest.raises(ShapeError, match=r"scale: needs shape \(2,\) float32"):
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
