"""Moments at the taps, and the way back, by the CUDA kernels of ``csrc/taps.cu``.

One launch serves all taps. What happens between the moments and the way back, a loss on small
matrices, is the caller's.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_fast.device import ADDRESS, DeviceArray, Launcher, check_array, describe
from nst_fast.errors import SettingsError, ShapeError
from nst_fast.gpu.cutting import (
    BAND_COLUMNS,
    BAND_ROWS,
    LINES,
    MOMENT_BYTES,
    PRODUCT_BYTES,
    PRODUCT_THREADS,
    STORED,
    Cut,
    FeatureKind,
    Sizes,
)
from nst_fast.host import Float32

# Tap and Term of taps.cu.
DESCRIPTOR = np.dtype(
    [
        *(
            (name, ADDRESS)
            for name in (
                *("features", "gradient", "weights", "mass", "moments", "derivative"),
                *("content", "narrowed", "unscale", "offsets", "partials", "partial_means"),
                "content_sums",
            )
        ),
        *(
            (name, np.int32)
            for name in (
                *("channels", "pixels", "tile", "weight_stride", "narrowed_stride"),
                *("channel_stride", "slices", "slice_stages", "run_tiles", "content_stride"),
                *("style_column", "content_column", "aligned", "adds"),
            )
        ),
    ],
    align=True,
)
TERM = np.dtype([("sums", ADDRESS), ("length", np.int64), ("column", np.int64)])

Blocks = NDArray[np.int32]  # (count, 4): picture, row, column and slice of each block


@dataclass(frozen=True)
class Tap:
    """A tap as terms of the same weights see it: N pictures, P pixels (cells), C channels.

    Attributes:
        features: F, (N, P, C): float16, uint16 (the bits of bfloat16) or float32.
        gradient: (N, P, C), the type of ``features``; overwritten. Must overlap nothing else.
        style: whether a style term reads its moments.
        content: whether it has a content term.
        turn: from 0, where several share ``features`` and ``gradient``: each adds its own to what
            those of the turns before it have written.
    """

    features: DeviceArray
    gradient: DeviceArray
    style: bool
    content: bool
    turn: int = 0


class TapKernels:
    """Moments of all taps, their content terms, and the gradients at the features.

    With weights m of the pixels, f̃ = [f; 1], and [A b] that a loss makes of the moments:

        moments = s·Σ m f̃ f̃ᵀ
        gradient = loss_scale·((A F + b 1ᵀ) diag(m) + 2·factor·s·m∘(F − F_c))
        content terms = factor·s·Σ m (F − F_c)²

    Pictures may be seen in windows, one after another in the same features: the moments of windows
    add up where each counts the pixels of its own. Products are of ``kind`` with sums in float32;
    m∘F and A are rounded to the type of the features before they are multiplied by F, each row of A
    scaled by a power of two of its own. The same calls give the same bits. NaN and infinity reach
    the moments and the terms.

    Attributes:
        factors: (N, K) float64, to be set by the caller, as are ``normalizers``: of the style terms
            in the order of the taps, then of the content terms.
        normalizers: s of each term's tap, (N, K) float64.
        terms: (N, K) float64: :meth:`add_terms` overwrites the columns of the content terms; the
            others are the caller's.
        moments: (N, C+1, C+1) float32 and symmetric, of each tap with a style term.
        derivatives: [A b], (N, C, C+1) float32 with A symmetric, of the same taps, to be set by the
            caller.
    """

    def __init__(
        self,
        launcher: Launcher,
        taps: Sequence[Tap],
        kind: FeatureKind,
        loss_scale: DeviceArray,
        *,
        weighted: bool = False,
        windows: int = 1,
    ) -> None:
        """Allocate and upload all that the launches need.

        Args:
            launcher: where the arrays are.
            taps: at least one, each with a style or a content term.
            kind: how the features are stored and multiplied.
            loss_scale: (N,) float32, factor of the gradients; read by every launch.
            weighted: whether pixels have weights; all are 1 otherwise, at no cost.
            windows: in which the pictures are seen.

        Raises:
            ShapeError: arrays do not fit each other.
            SettingsError: the device does not multiply this kind.
        """
        _check_kind(kind, launcher)
        _check_arrays(taps, STORED[kind], loss_scale)
        self._launcher = launcher
        layout = functools.partial(
            _Layout,
            cut=_cut(taps, kind, launcher.multiprocessors),
            kind=kind,
            windows=windows,
            weighted=weighted,
        )
        self._layouts = list(map(layout, itertools.repeat(launcher), taps, _columns(taps)))
        styled = [layout.work for layout in self._layouts if layout.tap.style]
        self.moments: tuple[DeviceArray, ...] = tuple(work["moments"] for work in styled)
        self.derivatives: tuple[DeviceArray, ...] = tuple(work["derivative"] for work in styled)
        contents = [layout.content_term() for layout in self._layouts if layout.tap.content]
        shape = (loss_scale.shape[0], len(styled) + len(contents))
        self.factors = launcher.zeros(shape, np.float64)
        self.normalizers = launcher.zeros(shape, np.float64)
        self.terms = launcher.zeros(shape, np.float64)
        self._columns = np.int32(shape[1])
        self.loss_scale = loss_scale
        self._contents = len(contents), launcher.put(np.array(contents, TERM))
        self._tables = [
            launcher.put(np.array([tap.descriptor(w) for tap in self._layouts], DESCRIPTOR))
            for w in range(windows)
        ]
        self._moments = self._blocks(f"moments_{kind}", _Layout.moment_blocks, MOMENT_BYTES)
        self._reduce = self._blocks("reduce", _Layout.moment_bands)
        self._narrow = self._blocks(f"narrow_{kind}", _Layout.derivative_bands)
        self._pull_back = [
            self._blocks(
                f"pull_back_{kind}",
                functools.partial(_Layout.gradient_blocks, turn=turn),
                PRODUCT_BYTES,
                backwards=True,
            )
            for turn in sorted({tap.turn for tap in taps})
        ]

    def set_weights(self, index: int, weights: Float32) -> None:
        """Copy the weights of a tap in, (windows, N or 1, P) in [0, 1]; taps are ``weighted``."""
        work = self._layouts[index].work
        padded = np.zeros(work["weights"].shape, np.float32)
        padded[..., : weights.shape[-1]] = weights
        self._launcher.upload(padded, work["weights"])
        self._launcher.upload(padded.sum(axis=2, dtype=np.float64), work["mass"])

    def set_content(self, index: int, content: NDArray[Any]) -> None:
        """Copy F_c of a tap in, (windows, N or 1, P, C), of the type of the features."""
        target = self._layouts[index].work["content"]
        self._launcher.upload(np.broadcast_to(content, target.shape), target)

    def measure(self, window: int = 0) -> None:
        """Enqueue the moments of a window: the first overwrites them, the others add to them."""
        self._moments(window)
        self._reduce(window, self.normalizers, self._columns, np.int32(window > 0))

    def narrow(self) -> None:
        """Enqueue what ``pull_back`` reads of the derivatives, once for all windows."""
        self._narrow(0)

    def pull_back(self, window: int = 0) -> None:
        """Enqueue the gradients of a window, and what its content terms are summed from."""
        for add in self._pull_back:
            add(window, self.factors, self.normalizers, self._columns, self.loss_scale)

    def add_terms(self) -> None:
        """Enqueue the content terms, from what all windows left."""
        count, table = self._contents
        if count == 0:
            return
        self._launcher.launch(
            "add_terms",
            (count, self.terms.shape[0], 1),
            256,
            [table, self.factors, self.normalizers, self.terms, self._columns],
        )

    def _blocks(
        self,
        kernel: str,
        blocks_of: Callable[[_Layout], Blocks],
        shared: int = 0,
        *,
        backwards: bool = False,
    ) -> Callable[..., None]:
        """What launches a kernel, for a window, with a block for each that any tap needs.

        ``backwards`` begins with the last: what was read last is the likeliest to be in the cache.
        """
        parts = [
            np.insert(blocks_of(layout), 0, index, axis=1)
            for index, layout in enumerate(self._layouts)
        ]
        blocks = np.concatenate(parts).astype(np.int32)[:: -1 if backwards else 1]
        # Of self it would be a cycle, and keep the GPU's memory until the next collection.
        launcher, tables = self._launcher, self._tables
        uploaded, grid = launcher.put(np.ascontiguousarray(blocks)), (len(blocks), 1, 1)

        def launch(window: int, *more: DeviceArray | np.generic) -> None:
            if len(blocks):
                arguments = [tables[window], uploaded, *more]
                launcher.launch(kernel, grid, PRODUCT_THREADS, arguments, shared)

        return launch


class _Layout:
    """Sizes and work arrays of one tap, and which blocks work on it.

    Attributes:
        tap: what it is of.
        work: arrays by their names in DESCRIPTOR, and those that windows have of their own.
    """

    def __init__(
        self,
        launcher: Launcher,
        tap: Tap,
        columns: tuple[int, int],
        *,
        cut: Cut,
        kind: FeatureKind,
        windows: int,
        weighted: bool,
    ) -> None:
        self.tap = tap
        self._launcher = launcher
        self._columns = columns
        self._stored = np.dtype(STORED[kind])
        self._sizes = sizes = _sizes(tap, kind)
        self._cut = cut
        self._slices, self._runs = sizes.slices(cut.moments), sizes.runs(cut.gradient)
        N, P, C = tap.features.shape
        zeros = launcher.zeros
        self.work: dict[str, DeviceArray] = {"mass": zeros((windows, N), np.float64)}
        launcher.fill(self.work["mass"], P)
        if weighted:
            self.work["weights"] = zeros((windows, N, -(-P // LINES) * LINES))
        if tap.style:
            values = 16 // sizes.itemsize  # so that rows of any C are aligned
            self.work |= {
                "moments": zeros((N, C + 1, C + 1)),
                "derivative": zeros((N, C, C + 1)),
                "narrowed": zeros((N, C, -(-C // values) * values), self._stored),
                "unscale": zeros((N, sizes.padded)),
                "offsets": zeros((N, sizes.padded)),
                "partials": zeros((N, self._slices, sizes.triangle, sizes.tile, sizes.tile)),
                "partial_means": zeros((N, self._slices, sizes.padded)),
            }
        if tap.content:
            self.work["content"] = zeros((windows, N, P, C), self._stored)
            sums = (N, windows, self._runs * sizes.down)
            self.work["content_sums"] = zeros(sums, np.float64)

    def descriptor(self, window: int) -> NDArray[Any]:
        """What the kernels know of the tap in a window, as one DESCRIPTOR."""
        sizes, blocks = self._sizes, self._runs * self._sizes.down
        arrays = {"features": self.tap.features, "gradient": self.tap.gradient, **self.work}
        for name in ("weights", "mass", "content"):
            if name in arrays:
                arrays[name] = arrays[name][window]
        if self.tap.content:
            arrays["content_sums"] = arrays["content_sums"].reshape(-1)[window * blocks :]
        starts = [
            self._launcher.address(arrays[name])
            for name in ("features", "gradient", "content")
            if name in arrays
        ]
        pixel = sizes.channels * sizes.itemsize
        numbers = {
            "channels": sizes.channels,
            "pixels": sizes.pixels,
            "tile": sizes.tile,
            "weight_stride": self.work["weights"].shape[-1] if "weights" in self.work else 0,
            "narrowed_stride": self.work["narrowed"].shape[-1] if self.tap.style else 0,
            "channel_stride": sizes.padded,
            "slices": self._slices,
            "slice_stages": sizes.slice_stages(self._cut.moments),
            "run_tiles": sizes.run_tiles(self._cut.gradient),
            "content_stride": self.work["mass"].shape[0] * blocks,
            "style_column": self._columns[0],
            "content_column": self._columns[1],
            "aligned": all(start % 16 == 0 for start in (*starts, pixel)),
            "adds": self.tap.turn > 0,
        }
        addresses = (name for name in DESCRIPTOR.names or () if name not in numbers)
        given = {name: arrays.get(name) for name in addresses}
        return describe(self._launcher, DESCRIPTOR, given | numbers)

    def content_term(self) -> tuple[int, int, int]:
        """What adds the content term up, as a TERM."""
        sums = self.work["content_sums"]
        return self._launcher.address(sums), sums.shape[1] * sums.shape[2], self._columns[1]

    def moment_blocks(self) -> Blocks:
        """Tiles on and below the diagonal; those of the same pixels follow each other."""
        if not self.tap.style:
            return _no_blocks()
        rows, columns = np.tril_indices(self._sizes.down)
        picture, at, tile = _indices(self._sizes.pictures, self._slices, len(rows))
        return np.stack([picture, rows[tile], columns[tile], at], axis=1)

    def moment_bands(self) -> Blocks:
        """Bands of the rows of the moments, in parts that reach the diagonal or lie below."""
        side = self._sizes.channels + 1
        found = self._bands(side, -(-side // BAND_COLUMNS))
        last = np.minimum((found[:, 1] + 1) * BAND_ROWS, side) - 1
        return found[found[:, 2] * BAND_COLUMNS <= last]

    def derivative_bands(self) -> Blocks:
        """Bands of the rows of A."""
        return self._bands(self._sizes.channels, 1)

    def _bands(self, rows: int, parts: int) -> Blocks:
        if not self.tap.style:
            return _no_blocks()
        picture, band, part = _indices(self._sizes.pictures, -(-rows // BAND_ROWS), parts)
        return np.stack([picture, band, part, 0 * band], axis=1)

    def gradient_blocks(self, turn: int) -> Blocks:
        """All runs of tiles, in the tap's turn; those of the same pixels follow each other."""
        if self.tap.turn != turn:
            return _no_blocks()
        picture, run, column = _indices(self._sizes.pictures, self._runs, self._sizes.down)
        return np.stack([picture, 0 * run, column, run], axis=1)


def _columns(taps: Sequence[Tap]) -> list[tuple[int, int]]:
    """Columns of each tap's style and content term in ``factors``; any where it has none."""
    style = np.cumsum([tap.style for tap in taps])
    content = style[-1] + np.cumsum([tap.content for tap in taps])
    return list(zip((style - 1).tolist(), (content - 1).tolist(), strict=True))


def _indices(*sizes: int) -> Blocks:
    return np.indices(sizes, np.int32).reshape(len(sizes), -1)


def _no_blocks() -> Blocks:
    return np.zeros((0, 4), np.int32)


def _sizes(tap: Tap, kind: FeatureKind) -> Sizes:
    pictures, pixels, channels = tap.features.shape
    return Sizes(pictures, pixels, channels, kind)


def _cut(taps: Sequence[Tap], kind: FeatureKind, multiprocessors: int) -> Cut:
    styled = [_sizes(tap, kind) for tap in taps if tap.style]
    return Cut.of(styled, [_sizes(tap, kind) for tap in taps], multiprocessors)


def _check_kind(kind: FeatureKind, launcher: Launcher) -> None:
    if kind in ("bf16", "tf32") and not launcher.bf16_products:
        raise SettingsError(
            f"precision {kind}: {launcher.name} is older than compute capability 8.0; "
            "use fp16 or fp32"
        )


def _check_arrays(taps: Sequence[Tap], kind: DTypeLike, loss_scale: DeviceArray) -> None:
    """Refuse arrays that do not fit each other."""
    if not taps:
        raise ShapeError("taps: needs at least one")
    pictures = taps[0].features.shape[0]
    check_array("loss_scale", loss_scale, (pictures,), np.float32)
    for index, tap in enumerate(taps):
        name = f"taps[{index}]"
        shape = tap.features.shape
        if len(shape) != 3 or 0 in shape:
            raise ShapeError(f"{name}.features: needs shape (N, P, C), none of them 0, not {shape}")
        check_array(f"{name}.features", tap.features, (pictures, *shape[1:]), kind)
        check_array(f"{name}.gradient", tap.gradient, shape, kind)
        if not (tap.style or tap.content):
            raise ShapeError(f"{name}: needs a style or a content term")
