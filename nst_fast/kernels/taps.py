"""Terms and gradients at the taps by the CUDA kernels of ``csrc/gram.cu``: four launches in all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast.cuda import DeviceArray, Launcher, check_array
from nst_fast.errors import SettingsError, ShapeError

FeatureKind = Literal["fp16", "bf16", "fp32", "tf32"]

STORED: dict[FeatureKind, type[np.generic]] = {
    "fp16": np.float16,
    "bf16": np.uint16,
    "fp32": np.float32,
    "tf32": np.float32,
}
TILE = 64  # rows and columns of a product, as in gram.cu
BAND = 4  # rows of R that a block reduces, as in gram.cu
STAGE_BYTES = 128  # of a row of features that are loaded at a time, as in gram.cu
# One wave of Gram blocks, whose shared memory lets an H100 hold seven side by side: four have
# enough bytes under way, and more would write more partial sums.
BLOCKS_PER_MULTIPROCESSOR = 4
LEAST_STAGES, MOST_STAGES = 4, 256  # of a slice; more would be too long a sum in float32

# Tap and Term of gram.cu.
DESCRIPTOR = np.dtype(
    [
        *(
            (name, np.uint64)
            for name in (
                *("features", "gradient", "style", "content", "residual", "scaled"),
                *("unscale", "partials", "style_sums", "content_sums"),
            )
        ),
        *(
            (name, np.int32)
            for name in (
                *("channels", "pixels", "scaled_stride", "slices", "slice_stages"),
                *("style_column", "content_column", "aligned"),
            )
        ),
    ]
)
TERM = np.dtype([("sums", np.uint64), ("length", np.int64), ("count", np.float64)])

Blocks = NDArray[np.int32]  # (count, 4): picture, row, column and slice of each block


@dataclass(frozen=True)
class Tap:
    """Arrays of one tap: N pictures, C channels, P pixels.

    Attributes:
        features: F, (N, C, P): float16, uint16 (the bits of bfloat16) or float32.
        gradient: (N, C, P), the type of ``features``; overwritten. Must overlap nothing else.
        style: T, the target of the Gram matrix, (N, C, C) float32; None: no style term.
        content: F_c, the target of the features, like ``features``; None: no content term.
    """

    features: DeviceArray
    gradient: DeviceArray
    style: DeviceArray | None
    content: DeviceArray | None


class TapKernels:
    """Style and content terms of all taps and their gradients at the features.

    G = F Fᵀ / (C·P) and R = G − T; Gatys et al. 2016, equations 1 to 6, with the factors

        terms = a·‖R‖²_F, b·mean (F − F_c)²
        gradient = scale·(a·4/(C·P)·R F + b·2/(C·P)·(F − F_c))

    Products are of ``kind`` with sums in float32; R is rounded to the type of the features before
    it is multiplied by F, each of its rows scaled by a power of two of its own. The same call gives
    the same bits. NaN and infinity reach ``terms``.

    Attributes:
        factors: (N, K) float64, to be set by the caller: a of the style terms in the order of the
            taps, then b of the content terms.
        terms: (N, K) float64, overwritten by :meth:`run`, in the order of ``factors``.
        residuals: R, (N, C, C) float32 and symmetric where T is, of each tap with a style target,
            overwritten by :meth:`run`; G where T is 0.
    """

    def __init__(
        self, launcher: Launcher, taps: Sequence[Tap], kind: FeatureKind, scale: DeviceArray
    ) -> None:
        """Allocate and upload all that :meth:`run` needs.

        Args:
            launcher: where the arrays are.
            taps: at least one, each with a style or a content target.
            kind: how the features are stored and multiplied.
            scale: (N,) float32, factor of the gradients; read by every run.

        Raises:
            ShapeError: arrays do not fit each other.
            SettingsError: the device does not multiply this kind.
        """
        _check_kind(kind, launcher)
        _check_arrays(taps, STORED[kind], scale)
        self._launcher, self._kind = launcher, kind
        stages = _slice_stages(taps, kind, launcher.multiprocessors)
        self._layouts = [
            _Layout(launcher, tap, columns, stages, kind)
            for tap, columns in zip(taps, _columns(taps), strict=True)
        ]
        self.residuals = tuple(
            layout.residual for layout in self._layouts if layout.residual is not None
        )
        terms = [layout.style_term() for layout in self._layouts if layout.tap.style is not None]
        terms += [
            layout.content_term() for layout in self._layouts if layout.tap.content is not None
        ]
        shape = (scale.shape[0], len(terms))
        self.factors = launcher.zeros(shape, np.float64)
        self.terms = launcher.zeros(shape, np.float64)
        self._terms_table = _upload(launcher, np.array(terms, TERM))
        self._products = self._plan(scale)

    def run(self) -> None:
        """Enqueue everything: no allocation, no wait, and the same arguments every time."""
        self.reduce()
        self.write_gradients()
        self.add_terms()

    def reduce(self) -> None:
        """Enqueue the first part: ``residuals``, and what the style terms are summed from."""
        for launch in self._products[:2]:
            launch()

    def write_gradients(self) -> None:
        """Enqueue the second part: the gradients, from the residuals."""
        self._products[2]()

    def add_terms(self) -> None:
        """Enqueue the end: ``terms``, from the sums of both parts."""
        N, K = self.terms.shape
        arguments = [self._terms_table, self.factors, self.terms]
        self._launcher.launch("add_terms", (K, N, 1), 256, arguments)

    def _plan(self, scale: DeviceArray) -> list[Callable[[], None]]:
        """The launches of the products, in order."""
        table = _upload(
            self._launcher, np.array([tap.descriptor() for tap in self._layouts], DESCRIPTOR)
        )
        more = (self.factors, np.int32(self.factors.shape[1]), scale)
        return [
            self._product("gram", 2 * TILE, _Layout.gram_blocks, table),
            self._product("residual", BAND * TILE, _Layout.residual_blocks, table),
            self._product("gradient", 2 * TILE, _Layout.gradient_blocks, table, *more),
        ]

    def _product(
        self,
        kernel: str,
        threads: int,
        blocks_of: Callable[[_Layout], Blocks],
        table: DeviceArray,
        *more: DeviceArray | np.generic,
    ) -> Callable[[], None]:
        """What launches a kernel with a block for each that any of the taps needs."""
        parts = [
            np.insert(blocks_of(layout), 0, index, axis=1)
            for index, layout in enumerate(self._layouts)
        ]
        blocks = np.concatenate(parts).astype(np.int32)
        if len(blocks) == 0:
            return lambda: None
        return functools.partial(
            self._launcher.launch,
            f"{kernel}_{self._kind}",
            (len(blocks), 1, 1),
            threads,
            [table, _upload(self._launcher, blocks), *more],
        )


class _Layout:
    """Sizes and work arrays of one tap, and which blocks work on it.

    Attributes:
        residual: (N, C, C) float32; None without a style term.
    """

    def __init__(
        self,
        launcher: Launcher,
        tap: Tap,
        columns: tuple[int, int],
        slice_stages: int,
        kind: FeatureKind,
    ) -> None:
        self.tap = tap
        self.residual: DeviceArray | None = None
        self._launcher = launcher
        self._columns = columns
        self._stored = np.dtype(STORED[kind])
        self._shape = N, C, P = tap.features.shape
        self._across, self._down = -(-P // TILE), -(-C // TILE)
        self._bands = -(-C // BAND)
        whole = -(-P // _depth(kind))
        self._slice_stages = min(slice_stages, whole)
        self._slices = -(-whole // self._slice_stages)
        self._work: dict[str, DeviceArray] = {}
        if tap.style is not None:
            self._add_style_work(N, C)
        if tap.content is not None:
            self._work["content_sums"] = launcher.zeros((N, self._across * self._down), np.float64)

    def _add_style_work(self, N: int, C: int) -> None:
        zeros = self._launcher.zeros
        tiles = self._down * (self._down + 1) // 2
        self.residual = zeros((N, C, C))
        self._work |= {
            "residual": self.residual,
            "scaled": zeros((N, C, self._scaled_stride()), self._stored),
            "unscale": zeros((N, C)),
            "partials": zeros((N, self._slices, tiles, TILE, TILE)),
            "style_sums": zeros((N, self._bands), np.float64),
        }

    def _scaled_stride(self) -> int:
        """C up to whole chunks of 16 bytes, so that rows of any C are aligned."""
        values = 16 // self._stored.itemsize
        return int(-(-self._shape[1] // values) * values)

    def descriptor(self) -> NDArray[Any]:
        """What the kernels know of the tap, as one DESCRIPTOR."""
        tap, (_, C, P) = self.tap, self._shape
        given = {"features": tap.features, "gradient": tap.gradient}
        given |= {"style": tap.style, "content": tap.content}
        addresses = {
            name: self._launcher.address(array)
            for name, array in (given | self._work).items()
            if array is not None
        }
        rows = [
            addresses[name] for name in ("features", "gradient", "content") if name in addresses
        ]
        numbers = {
            "channels": C,
            "pixels": P,
            "scaled_stride": self._scaled_stride(),
            "slices": self._slices,
            "slice_stages": self._slice_stages,
            "style_column": self._columns[0],
            "content_column": self._columns[1],
            "aligned": all(start % 16 == 0 for start in (*rows, P * self._stored.itemsize)),
        }
        found = np.zeros((), DESCRIPTOR)
        for name, value in (addresses | numbers).items():
            found[name] = value
        return found

    def style_term(self) -> tuple[int, int, float]:
        """What adds ‖R‖² up, as a TERM."""
        return self._launcher.address(self._work["style_sums"]), self._bands, 1.0

    def content_term(self) -> tuple[int, int, float]:
        """What adds (F − F_c)² up, as a TERM."""
        sums = self._work["content_sums"]
        return self._launcher.address(sums), sums.shape[1], float(math.prod(self._shape[1:]))

    def gram_blocks(self) -> Blocks:
        """Tiles on and below the diagonal; those of the same pixels follow each other."""
        if self.tap.style is None:
            return _no_blocks()
        rows, columns = np.tril_indices(self._down)
        picture, at, tile = _indices(self._shape[0], self._slices, len(rows))
        return np.stack([picture, rows[tile], columns[tile], at], axis=1)

    def residual_blocks(self) -> Blocks:
        """Bands of rows."""
        if self.tap.style is None:
            return _no_blocks()
        picture, band = _indices(self._shape[0], self._bands)
        return np.stack([picture, band, 0 * band, 0 * band], axis=1)

    def gradient_blocks(self) -> Blocks:
        """All tiles; those of the same pixels follow each other."""
        picture, column, row = _indices(self._shape[0], self._across, self._down)
        return np.stack([picture, row, column, 0 * row], axis=1)


def _columns(taps: Sequence[Tap]) -> list[tuple[int, int]]:
    """Columns of each tap's style and content term in ``factors``; any where it has none."""
    style = np.cumsum([tap.style is not None for tap in taps])
    content = style[-1] + np.cumsum([tap.content is not None for tap in taps])
    return list(zip((style - 1).tolist(), (content - 1).tolist(), strict=True))


def _indices(*sizes: int) -> Blocks:
    return np.indices(sizes, np.int32).reshape(len(sizes), -1)


def _no_blocks() -> Blocks:
    return np.zeros((0, 4), np.int32)


def _upload(launcher: Launcher, table: NDArray[Any]) -> DeviceArray:
    """Copy a table to the device as bytes, for its arrays have no structures."""
    array = launcher.zeros((table.nbytes,), np.uint8)
    launcher.upload(table.reshape(-1).view(np.uint8), array)
    return array


def _depth(kind: FeatureKind) -> int:
    """Pixels of a stage."""
    return STAGE_BYTES // np.dtype(STORED[kind]).itemsize


def _slice_stages(taps: Sequence[Tap], kind: FeatureKind, multiprocessors: int) -> int:
    """Stages of a slice that make about one wave of equally long blocks of all taps together."""
    work = 0
    for tap in taps:
        N, C, P = tap.features.shape
        down = -(-C // TILE)
        if tap.style is not None:
            work += N * down * (down + 1) // 2 * -(-P // _depth(kind))
    stages = -(-work // (BLOCKS_PER_MULTIPROCESSOR * multiprocessors))
    return min(max(stages, LEAST_STAGES), MOST_STAGES)


def _check_kind(kind: FeatureKind, launcher: Launcher) -> None:
    if kind in ("bf16", "tf32") and not launcher.bf16_products:
        raise SettingsError(
            f"precision {kind}: {launcher.name} is older than compute capability 8.0; "
            "use fp16 or fp32"
        )


def _check_arrays(taps: Sequence[Tap], kind: DTypeLike, scale: DeviceArray) -> None:
    """Refuse arrays that do not fit each other."""
    if not taps:
        raise ShapeError("taps: needs at least one")
    pictures = taps[0].features.shape[0]
    check_array("scale", scale, (pictures,), np.float32)
    for index, tap in enumerate(taps):
        name = f"taps[{index}]"
        shape = tap.features.shape
        if len(shape) != 3 or 0 in shape:
            raise ShapeError(f"{name}.features: needs shape (N, C, P), none of them 0, not {shape}")
        N, C, P = shape
        check_array(f"{name}.features", tap.features, (pictures, C, P), kind)
        check_array(f"{name}.gradient", tap.gradient, shape, kind)
        if tap.style is None and tap.content is None:
            raise ShapeError(f"{name}: needs a style or a content target for shape {shape}")
        if tap.style is not None:
            check_array(f"{name}.style", tap.style, (N, C, C), np.float32)
        if tap.content is not None:
            check_array(f"{name}.content", tap.content, shape, kind)
