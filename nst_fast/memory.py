"""How much memory a run takes, known before it begins, and how it is made to take less.

A model of what is resident at each stage of a run: arrays as large as the picture are counted, and
what a provider needs besides is its share of the encoder's activations, as measured. It is meant to
be above what a process takes, and not by much. Where a run is above its limit, the pictures are
seen in windows, which costs time alone; where not even windows of a useful size fit, L-BFGS
remembers fewer pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from nst_fast import images
from nst_fast.canvas import Canvas
from nst_fast.colour import BY_CONTENT
from nst_fast.config import StyleSettings
from nst_fast.encoders import Encoder, Tap
from nst_fast.errors import SettingsError
from nst_fast.library import Precision, Provider
from nst_fast.limits import memory_text
from nst_fast.losses import Objective, tap_of
from nst_fast.masks import Masks
from nst_fast.styles import style_scales
from nst_fast.tiles import halo

Size = tuple[int, int]  # width and height, in pixels

# Bytes of a process with a provider, and of what it compiles.
BASE: dict[Provider, float] = {"cpu": 160e6, "openvino": 250e6}
LOADED = 13  # times the encoder's weights: what sessions hold of them, at most
CHECKED = 28  # times the encoder's weights: a process that checks the gradient
PLANE = 12  # bytes a pixel: three channels in float32
DECODING = 27  # bytes a pixel of a file: 8 bits in Pillow and twice more, then float32
FINISHING = 9 * PLANE  # bytes a pixel: from the last step to the bytes of a file
VARIATION = 28  # bytes a pixel of a style: its total variation
ANCHOR = KEPT = PLANE + 4  # bytes a pixel: a picture, and how much it counts
# Bytes that numpy writes at once. Always counted: a run goes on from its state in the same windows,
# whether that is saved any more or not.
SAVING = 2**24
# Of the activations in float32: what a step takes for a canvas as a whole, ...
FUSED: dict[tuple[Provider, Precision], float] = {("openvino", "bf16"): 2.1}
SINGLE = 3.9  # ... elsewhere, in float32,
SPLIT = 5.5  # ... and between two sessions, as in windows;
STATISTICS = 1.6  # ... and what targets and the loss at the end take, ...
TRANSFER = 5.5  # ... and what makes a start;
REGION = 1.4  # of those at the style taps: what each region takes besides.
# Sides of windows, in margins: below the first a window is mostly margin, below the second little
# else.
USEFUL, LEAST = 6, 3
SMALLEST_START = 64  # pixels: the longest side of a start that is enlarged, at least
FEWEST_PAIRS = 3  # of L-BFGS; Nocedal and Wright 2006 speak of 3 to 20


@dataclass(frozen=True)
class Share:
    """How one size of a run fits into the memory.

    Attributes:
        side: of the windows that the picture is seen in, in pixels; None: as a whole.
        style_side: of those that the styles are seen in.
        pairs: that L-BFGS remembers.
        start: the longest side at which a transfer is made, to be enlarged; None: that of the size.
    """

    side: int | None
    style_side: int | None
    pairs: int
    start: int | None = None


@dataclass(frozen=True)
class Budget:
    """What a run takes, and how each of its sizes does with that.

    Attributes:
        needed: bytes of the whole process at its peak, at most.
        limit: bytes that it may take.
        size: width and height of the last of the run's pictures.
        pairs: that L-BFGS is to remember.
        shares: of each size of the run, in order.
    """

    needed: float
    limit: int
    size: Size
    pairs: int
    shares: tuple[Share, ...]

    def __str__(self) -> str:
        """All of it in a line."""
        last = self.shares[-1]
        amounts = f"{memory_text(self.needed)} of {memory_text(self.limit)}"
        words = [f"memory: at most {amounts}"]
        if last.side is not None:
            words.append("{}×{} in windows of {} pixels".format(*self.size, last.side))
        if last.style_side is not None:
            words.append(f"styles in windows of {last.style_side} pixels")
        if last.pairs < self.pairs:
            words.append(f"L-BFGS remembers {last.pairs} pairs in place of {self.pairs}")
        if (start := self.shares[0].start) is not None:
            words.append(f"a start of {start} pixels is enlarged")
        return ", ".join(words)

    @property
    def tight(self) -> bool:
        """Whether anything is done to take less."""
        return any(share != Share(None, None, self.pairs) for share in self.shares)

    @property
    def windows(self) -> bool:
        """Whether any picture is seen in windows."""
        return any(share.side or share.style_side for share in self.shares)


class Footprint:
    """The memory of one run, by the sizes of its pictures."""

    def __init__(
        self,
        encoder: Encoder,
        settings: StyleSettings,
        *,
        content: Size,
        styles: Sequence[Size],
        others: Sequence[Size] = (),
        anchored: bool = False,
        masks: Masks | None = None,
        provider: Provider,
        precision: Precision,
        split: bool = False,
    ) -> None:
        """Take what does not change from size to size.

        Args:
            encoder: the pack to run.
            settings: of the run.
            content: width and height of the picture as it was read.
            styles: those of each style.
            others: those of what is read besides.
            anchored: whether the picture stays close to another one at every size.
            masks: which style goes where.
            provider: that runs the encoder.
            precision: of the encoder.
            split: whether a step is evaluated between two sessions.
        """
        self._settings, self._content, self._styles = settings, content, styles
        self._base = BASE[provider]
        self._read = content, *styles, *others
        greys = [] if masks is None else [*masks.styles, *filter(None, [masks.content])]
        self._greys = [mask.grey.shape for mask in greys]
        regions = 0 if masks is None else max(1, len(masks.styles))
        # Bytes a pixel: the anchor and the photograph that stays, at every stage; and masks when
        # they are put in their places.
        self._beside = ANCHOR if anchored else 0
        self._beside += KEPT if masks is not None and masks.content is not None else 0
        self._placing = 4 * (3 * regions + 4) if regions else 0
        self._objective = objective = Objective.from_settings(settings, encoder)
        taps = _up_to(encoder, objective.taps)
        self._margin, self._stride = halo(encoder, objective.taps), taps[-1].stride
        # Bytes a pixel of the canvas.
        self._activations = _floats(taps)
        decoded = [d.tap for d in encoder.decoders] if settings.init == "transfer" else []
        self._decoded = _floats(_up_to(encoder, decoded)) if decoded else 0.0
        self._cells = sum(4 / encoder.taps[name].stride ** 2 for name in objective.taps)
        sites = [encoder.taps[tap_of(name)] for name in objective.style] * regions
        self._site_cells = self._cells + sum(4 / tap.stride**2 for tap in sites)
        self._regions = REGION * _floats(sites)
        self._kept = _floats([encoder.taps[name] for name in objective.content])
        fused = not split and (provider == "cpu" or not objective.distance.exact)
        self._whole = FUSED.get((provider, precision), SINGLE) if fused else SPLIT
        inputs = [3, *(tap.channels for tap in encoder.taps.values())]
        # Of 3×3 convolutions, each of which is a tap.
        self._weights = 4 * 9 * sum(a * b for a, b in itertools.pairwise(inputs))

    def budget(self, sizes: Sequence[int], limit: int) -> Budget:
        """How a run that goes through these longest sides stays within a limit in bytes.

        Raises:
            SettingsError: it cannot; the message names what would do.
        """
        fitted = [images.fit(self._content, size) for size in sizes]
        shares = [self._share(size, limit) for size in fitted]
        found = tuple(share for share in shares if share is not None)
        if len(found) < len(shares):
            raise SettingsError(self._refusal(fitted[-1], limit))
        needed = max(map(self._peak, fitted, found))
        if self._settings.init == "transfer":
            start = self._start(fitted[0], limit)
            found = (replace(found[0], start=start), *found[1:])
            needed = max(needed, self._transferring(fitted[0], start))
        if needed > limit:
            raise SettingsError(self._refusal(fitted[-1], limit))
        return Budget(needed, limit, fitted[-1], self._settings.history, found)

    def whole(self, size: int) -> float:
        """Bytes at the peak of a run at this longest side where nothing is done to take less."""
        fitted = images.fit(self._content, size)
        return self._peak(fitted, Share(None, None, self._settings.history))

    def least(self, size: int) -> float:
        """Bytes at the peak of a run at this longest side where all is done to take less."""
        return self._least(images.fit(self._content, size))

    def _share(self, size: Size, limit: float) -> Share | None:
        """The share that costs least among those that fit."""
        canvas, style = self._canvas(size), self._largest_style(size)

        style_side = _first(self._sides(style, LEAST), partial(self._measuring_styles, size), limit)
        if max(self._floor(), self._measuring_styles(size, style_side)) > limit:
            return None
        most = self._settings.history
        fewest = min(most, FEWEST_PAIRS) if self._settings.optimizer == "lbfgs" else most
        tries = [(pairs, USEFUL) for pairs in range(most, fewest - 1, -1)]
        for pairs, least in [*tries, (fewest, LEAST)]:
            picture = partial(self._picture, size, pairs=pairs)
            side = _first(self._sides(canvas, least), picture, limit)
            if picture(side) <= limit:
                return Share(side, style_side, pairs)
        return None

    def _start(self, size: Size, limit: float) -> int | None:
        """The longest side at which a transfer is made; None: that of the picture."""
        longest = max(size)
        if longest <= SMALLEST_START or self._transferring(size, None) <= limit:
            return None
        fits = _largest(longest, lambda side: self._transferring(size, side) <= limit)
        return max(SMALLEST_START, fits)

    def _sides(self, canvas: Size, least: int) -> Iterator[int | None]:
        """Sides of windows to try: the whole canvas, then a row of two windows, of three, …."""
        yield None
        longest, count, smallest = max(canvas), 2, least * self._margin
        while True:
            each = (longest + 2 * self._margin * (count - 1)) / count
            side = -int(-each // self._stride) * self._stride
            if side <= smallest or side >= longest:
                break
            yield side
            count += 1
        if smallest < longest:
            yield smallest

    def _canvas(self, size: Size) -> Size:
        """Height and width of the canvas of a picture."""
        width, height = size
        margin = self._settings.margin
        return Canvas.around(height, width, margin=margin, stride=self._stride).size

    def _style_sizes(self, size: Size) -> list[Size]:
        """Of each style beside a picture of that size."""
        scales = style_scales(self._settings.style_scale, len(self._styles))
        sides = [max(1, round(max(size) * scale)) for scale in scales]
        return [images.fit(*of) for of in zip(self._styles, sides, strict=True)]

    def _largest_style(self, size: Size) -> Size:
        canvases = [self._canvas(style) for style in self._style_sizes(size)]
        return max(map(max, canvases)), max(map(min, canvases))

    def _peak(self, size: Size, share: Share) -> float:
        return max(
            self._floor(),
            self._measuring_styles(size, share.style_side),
            self._picture(size, share.side, share.pairs),
        )

    def _picture(self, size: Size, side: int | None, pairs: int) -> float:
        """Of the stages at which the picture is seen."""
        return max(
            self._measuring(size, side),
            self._stepping(size, side, pairs),
            self._finishing(size, side),
        )

    def _floor(self) -> float:
        """Whatever is made of them: reading the pictures, and checking the encoder's gradient."""
        largest = max(map(_pixels, (*self._read, *self._greys)))
        reading = self._base + (DECODING - PLANE) * largest
        colouring = 0.0
        if self._settings.colour in BY_CONTENT:  # each style by what the content shows in its place
            colouring = self._base + self._placing * _pixels(self._content)
        return self._sources() + max(reading, colouring, CHECKED * self._weights)

    def _sources(self) -> float:
        """The pictures and masks as they were read, and with other colours."""
        copies = 1 if self._settings.colour in ("style", "content") else 2
        greys = 4 * sum(map(_pixels, self._greys))
        return PLANE * copies * sum(map(_pixels, self._read)) + greys

    def _loaded(self, size: Size) -> float:
        """What is there at every stage: the process, the pictures, and the content at a size."""
        content = 0 if size == self._content else PLANE * _pixels(size)
        content += self._beside * _pixels(size)
        return self._base + LOADED * self._weights + self._sources() + content

    def _measuring_styles(self, size: Size, side: int | None) -> float:
        each = []
        for style in self._style_sizes(size):
            canvas = self._canvas(style)
            seen = 3 * PLANE * _pixels(style) + (2 * PLANE + 2 * self._cells) * _pixels(canvas)
            statistics = STATISTICS * self._activations * _window(canvas, side)
            each.append(seen + max(statistics, VARIATION * _pixels(style)))
        return self._loaded(size) + 2 * PLANE * _pixels(size) + max(each)

    def _measuring(self, size: Size, side: int | None) -> float:
        canvas = self._canvas(size)
        seen = (2 * PLANE + 2 * self._site_cells + 2 * self._kept) * _pixels(canvas)
        pictures = 3 * PLANE * _pixels(size)
        statistics = max(self._statistics(canvas, side), self._placing * _pixels(size))
        return self._loaded(size) + pictures + seen + statistics

    def _statistics(self, canvas: Size, side: int | None) -> float:
        """Of the picture, in its regions."""
        return (STATISTICS * self._activations + self._regions) * _window(canvas, side)

    def _transferring(self, size: Size, start: int | None) -> float:
        small = size if start is None else images.fit(size, start)
        pictures = 4 * PLANE * _pixels(size) + self._kept * _pixels(self._canvas(size))
        made = (TRANSFER * self._decoded + self._site_cells) * _pixels(self._canvas(small))
        made += self._placing * _pixels(small)
        return self._loaded(size) + pictures + made

    def _stepping(self, size: Size, side: int | None, pairs: int) -> float:
        settings, canvas = self._settings, self._canvas(size)
        smoothed = 3 if settings.smoothing > 0 else 0  # z, its gradient, the start
        optimizer = 2 if settings.optimizer == "adam" else 2 + pairs  # a pair in bfloat16
        best = 2 if settings.until is None else 5
        averaged = 2 if settings.average > 1 else 0
        planes = PLANE * (2 + smoothed + optimizer + best + averaged) * _pixels(size)
        copies = 2 if side is None else 1
        goal = copies * (self._kept + self._site_cells) * _pixels(canvas)
        if side is None:
            each = 2 * PLANE + self._whole * self._activations + self._regions
            encoder = each * _pixels(canvas)
        else:
            encoder = SPLIT * self._activations * _window(canvas, side)
        saving = min(SAVING, planes)
        return self._loaded(size) + planes + goal + encoder + saving

    def _finishing(self, size: Size, side: int | None) -> float:
        canvas = self._canvas(size)
        colour = 0 if self._settings.colour in ("style", "linear", "cholesky") else 7 * PLANE
        measured = (2 * PLANE + 2 * self._kept + 2 * self._site_cells) * _pixels(canvas)
        measured += 3 * PLANE * _pixels(size) + self._statistics(canvas, side)
        return self._loaded(size) + max(measured, (FINISHING + colour) * _pixels(size))

    def _refusal(self, size: Size, limit: float) -> str:
        """That a picture of this size does not fit, and what would."""
        needed = self._least(size)
        told = (
            f"max_memory: {size[0]}×{size[1]} pixels take {memory_text(needed)} at least, "
            f"and {memory_text(limit)} may be taken"
        )
        low = _largest(
            max(size), lambda side: self._least(images.fit(self._content, side)) <= limit
        )
        smaller = f", or size {low // 16 * 16}" if low >= 16 else ""
        return f"{told}; give max_memory {memory_text(needed)}{smaller}"

    def _least(self, size: Size) -> float:
        """Bytes at the peak where all is done to take less."""
        smallest = [
            list(self._sides(canvas, LEAST))[-1]
            for canvas in (self._canvas(size), self._largest_style(size))
        ]
        pairs = min(self._settings.history, FEWEST_PAIRS)
        peak = self._peak(size, Share(smallest[0], smallest[1], pairs))
        if self._settings.init != "transfer":
            return peak
        return max(peak, self._transferring(size, min(SMALLEST_START, max(size))))


def _up_to(encoder: Encoder, names: Collection[str]) -> list[Tap]:
    """The taps of an encoder up to the deepest of those named."""
    last = max(index for index, name in enumerate(encoder.taps) if name in names)
    return list(encoder.taps.values())[: last + 1]


def _floats(taps: Iterable[Tap]) -> float:
    """Bytes of their features in float32, for a pixel of the canvas."""
    return sum(4 * tap.channels / tap.stride**2 for tap in taps)


def _first(
    sides: Iterable[int | None], needed: Callable[[int | None], float], limit: float
) -> int | None:
    """The first of the sides with which no more than the limit is needed, else the last."""
    side = None
    for side in sides:
        if needed(side) <= limit:
            break
    return side


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest side below ``most`` that fits, as smaller ones do; 0 where none does."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _pixels(size: Size) -> int:
    return size[0] * size[1]


def _window(canvas: Size, side: int | None) -> int:
    """Pixels of a canvas that are seen at once."""
    return _pixels(canvas) if side is None else min(side, canvas[0]) * min(side, canvas[1])
