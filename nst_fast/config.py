"""Settings: frozen, validated on construction, the single source of defaults.

The library, the command line and manifests all read names, types and defaults from here.
``EngineOptions`` say how to compute, ``StyleSettings`` what picture to make.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from nst_fast.errors import SettingsError
from nst_fast.limits import parse_memory
from nst_fast.settings_file import Stored

Normalization = Literal["relative", "gram", "textbook"]
StyleSpace = Literal["mapped", "encoder"]
Colour = Literal["style", "linear", "cholesky", "luminance", "content"]
PresetName = Literal["draft", "standard", "fine"]
OptimizerName = Literal["lbfgs", "adam"]
InitName = Literal["content", "noise", "transfer"]
PrecisionName = Literal["auto", "fp32", "bf16", "tf32", "fp16"]
ProviderName = Literal["auto", "cpu", "openvino", "cuda", "tensorrt"]
PlanName = Literal["auto", "fused", "split"]

DEFAULT_ENCODER = "vgg19-lite"
LEAST_SMOOTHING = 0.01  # cycles a pixel: a Gaussian of 16 pixels
MOST_THREADS = 1024
MOST_SHOWN = 120  # characters of a value in a message
MOST_MARGIN = 256  # pixels: the deepest tap of VGG-19 sees no farther
MAX_SIZE = 16384  # pixels a side; beyond it index arithmetic in the providers is 32 bit


class LayerWeights(Mapping[str, float]):
    """Weights by tap: a mapping that cannot be changed, and can be hashed."""

    __slots__ = ("_items",)

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Copy ``weights``, whose order is kept."""
        self._items = tuple(weights.items())

    def __getitem__(self, tap: str) -> float:
        """Weight of a tap; raises KeyError where it has none."""
        return dict(self._items)[tap]

    def __iter__(self) -> Iterator[str]:
        """Over the taps."""
        return (tap for tap, _ in self._items)

    def __len__(self) -> int:
        """How many taps have one."""
        return len(self._items)

    def __hash__(self) -> int:
        """Equal mappings have equal hashes, whatever their order."""
        return hash(frozenset(self._items))

    def __repr__(self) -> str:
        """As a dict is written."""
        return repr(dict(self._items))


STYLE_LAYERS = LayerWeights(
    {"relu1_1": 0.2, "relu2_1": 0.2, "relu3_1": 0.25, "relu4_1": 0.2, "relu5_1": 0.15}
)
CONTENT_LAYERS = LayerWeights({"relu4_2": 1.0})


@dataclass(frozen=True)
class EngineOptions(Stored, table="engine"):
    """How and where to compute; the same for every picture of a Stylizer.

    Attributes:
        encoder: The name of an encoder pack (see ``nst-fast models list``), or a pack's folder.
        device: Where to compute: "cpu", "cuda", "cuda:1", or "auto" for a GPU where one can be
            used.
        provider: What runs the encoder; "auto" takes the fastest one here.
        precision: What the encoder computes in: "fp32", on a CPU "bf16", on a GPU "tf32" or "fp16";
            "auto" takes fp16 on a GPU, bf16 where the CPU has it, and fp32 elsewhere.
        plan: How a step is evaluated: as one graph, "fused", or as two graphs around our kernels,
            "split"; "auto" takes the faster one.
        threads: How many threads provider and kernels use; None takes every usable core.
        max_memory: How much memory the process may take on a CPU, such as "8GB" or "512MiB" (in
            Python also a number of bytes); None takes what the machine or container allows.
            Pictures that need more are seen in windows.

    Raises:
        SettingsError: a value is none of its choices; the message names the option.
    """

    encoder: str = DEFAULT_ENCODER
    device: str = "auto"
    provider: ProviderName = "auto"
    precision: PrecisionName = "auto"
    plan: PlanName = "auto"
    threads: int | None = None
    max_memory: int | str | None = None

    def __post_init__(self) -> None:
        """Check every value; whether it can be had here is found out by the Stylizer."""
        if not isinstance(self.encoder, str | os.PathLike):
            raise SettingsError(f"encoder must be a name or a folder, not {shown(self.encoder)}")
        object.__setattr__(self, "encoder", os.fspath(self.encoder))
        parse_device(self.device)
        check_choice("provider", self.provider, get_args(ProviderName))
        check_choice("precision", self.precision, get_args(PrecisionName))
        check_choice("plan", self.plan, get_args(PlanName))
        if self.threads is not None:
            threads = whole_number("threads", self.threads, 1, MOST_THREADS)
            object.__setattr__(self, "threads", threads)
        object.__setattr__(self, "max_memory", _memory(self.max_memory))

    @property
    def memory_limit(self) -> int | None:
        """``max_memory`` in bytes."""
        return None if self.max_memory is None else int(self.max_memory)


# What each preset changes in the defaults.
PRESETS: Mapping[PresetName, Mapping[str, Any]] = {
    "draft": {"steps": 36},  # to choose a style by: what the standard will be, less finished
    "standard": {},
    "fine": {"size": 1024, "scales": 3, "steps": 224},  # for print: 128 + 64 + 32
}


@dataclass(frozen=True)
class StyleSettings(Stored):
    """What picture to make: its size, what it is compared with, and how it is optimised.

    Attributes:
        size: The longest side of the picture in pixels; None keeps the content's own size.
        steps: How many times the loss and its gradient are evaluated; each size takes half as many
            steps as the coarser one before it.
        until: Go on to the next size, or end, once the picture changes by less than this over 8
            steps: a root mean square, in levels of 8 bits. None takes all steps.
        max_seconds: End after so many seconds with the best picture so far; None sets no limit.
        style_weight: The weight of the style term, 0 or more.
        content_weight: The weight of the content term, 0 or more; more keeps more of the
            photograph.
        tv_weight: The weight of the total variation (how far values differ from their neighbours,
            averaged over the picture, and relative to the style's own), 0 or more; more makes flats
            calmer between strokes.
        range_weight: The weight of the penalty on pixels outside [0, 1] (squared distance, averaged
            over the picture), 0 or more; 0 leaves them to the final clamp.
        style_layers: The weight of each tap in the style term; the first taps see strokes and
            colours, the last ones shapes.
        content_layers: The weight of each tap in the content term.
        style_loss: How the statistics of picture and style are compared: "gram", "whitened" or
            "wasserstein".
        style_space: Where they are compared: in the channels that the encoder's pack maps its own
            to (those of VGG-19), "mapped", or in its own, "encoder".
        shift: The activation shift, as a multiple of the root mean square of the style's channels;
            1 makes strokes calmer, 0 compares plain Gram matrices.
        normalization: How the terms of a tap are scaled: "relative" to the style's own, by the size
            of the "gram" matrix, or as in the "textbook" of Gatys et al.
        smoothing: The frequency, in cycles a pixel, above which the optimiser moves the picture
            with less force, from 0.01 to 0.5; 0 lets it move every pixel alone.
        margin: By how many pixels, at least, the picture is mirrored past its borders; 0 shows the
            encoder the borders themselves, which leaves a frame.
        colour: Whose colours the picture gets: the "style"'s; the style's moved to the content's
            mean and covariance, "linear" or by "cholesky"; or the content's own, by optimising
            "luminance" alone, or by putting them back afterwards, "content".
        style_blend: The shares of several style pictures, scaled to sum to 1; empty means equal
            shares.
        style_scale: The longest side of the style picture, as a multiple of the picture's own; more
            makes larger strokes. Of several style pictures, one for all or one for each.
        style_mask: The path of a grey picture for each style picture, in their order, white where
            that style goes; it may be given several times.
        style_regions: The path of a picture with a colour for each style picture, the darkest for
            the first one, in place of a mask for each.
        content_mask: The path of a grey picture, white where the photograph stays.
        scales: How many sizes to go through from coarse to fine, each half of the next; 1 works at
            full size from the start.
        init: Where the optimisation starts: at the "content", at "noise", at a quick "transfer" by
            the encoder's decoders, or at the path of a picture, which is resized to the content's
            size.
        init_noise: How much the content varies everywhere when it is what the optimisation starts
            at: where it is barer than that, a standard deviation of pixel values from 0 to 1, faint
            noise is added, so that strokes begin all over a flat sky and not along its border; 0
            starts at the content as it is.
        transfer_share: How much of the content's features goes into a transfer, from 0 to 1; less
            lets it go further.
        optimizer: What moves the picture: "lbfgs" or "adam".
        learning_rate: Adam's step in pixel values, before smoothing; L-BFGS finds its own.
        history: How many pairs L-BFGS remembers.
        average: Over about how many of the last steps the picture is averaged; 1 takes it as the
            last step left it.
        seed: The seed of the noise; another one paints bare places in another way, the same seed
            and settings give the same picture on the same machine.

    Raises:
        SettingsError: a value cannot work; the message names the setting.
    """

    size: int | None = 512
    steps: int = 96
    until: float | None = None
    max_seconds: float | None = None
    style_weight: float = 1.0
    content_weight: float = 0.15
    tv_weight: float = 0.005
    range_weight: float = 10.0
    style_layers: Mapping[str, float] = STYLE_LAYERS
    content_layers: Mapping[str, float] = CONTENT_LAYERS
    style_loss: str = "gram"
    style_space: StyleSpace = "mapped"
    shift: float = 1.0
    normalization: Normalization = "relative"
    smoothing: float = 0.16
    margin: int = 16
    colour: Colour = "style"
    style_blend: tuple[float, ...] = ()
    style_scale: float | tuple[float, ...] = 1.0
    style_mask: tuple[str, ...] = ()
    style_regions: str | None = None
    content_mask: str | None = None
    scales: int = 2
    init: InitName | str | os.PathLike[str] = "content"
    init_noise: float = 0.03
    transfer_share: float = 0.6
    optimizer: OptimizerName = "lbfgs"
    learning_rate: float = 0.02
    history: int = 10
    average: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value; the first that cannot work raises."""
        if self.size is not None:
            self._set("size", whole_number("size", self.size, 16, MAX_SIZE))
        self._set("steps", whole_number("steps", self.steps, 1, 1_000_000))
        self._set("scales", whole_number("scales", self.scales, 1, 8))
        self._set("history", whole_number("history", self.history, 1, 100))
        self._set("average", whole_number("average", self.average, 1, 1_000_000))
        self._set("seed", whole_number("seed", self.seed, 0, 2**32 - 1))
        self._set("margin", whole_number("margin", self.margin, 0, MOST_MARGIN))
        for name in ("style_weight", "content_weight", "tv_weight", "range_weight", "shift"):
            self._set(name, number(name, getattr(self, name)))
        for name in ("until", "max_seconds"):
            if getattr(self, name) is not None:
                self._set(name, number(name, getattr(self, name), above=0.0))
        self._set("learning_rate", number("learning_rate", self.learning_rate, above=0.0))
        self._set("style_scale", _style_scale(self.style_scale))
        self._set("init_noise", number("init_noise", self.init_noise, most=1.0))
        self._set("transfer_share", number("transfer_share", self.transfer_share, most=1.0))
        self._set("smoothing", number("smoothing", self.smoothing, most=0.5))
        if 0 < self.smoothing < LEAST_SMOOTHING:
            raise SettingsError(
                f"smoothing must be 0, or from {LEAST_SMOOTHING:g} to 0.5, not {self.smoothing:g}"
            )
        for name in ("style_layers", "content_layers"):
            self._set(name, _layer_weights(name, getattr(self, name)))
        self._set("style_blend", _blend(self.style_blend))
        self._set("style_mask", _paths("style_mask", self.style_mask))
        for name in ("style_regions", "content_mask"):
            if getattr(self, name) is not None:
                self._set(name, *_paths(name, [getattr(self, name)]))
        if self.style_mask and self.style_regions is not None:
            raise SettingsError("style_regions: give it or style_mask, not both")
        check_choice("style_space", self.style_space, get_args(StyleSpace))
        check_choice("colour", self.colour, get_args(Colour))
        check_choice("normalization", self.normalization, get_args(Normalization))
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        if not isinstance(self.style_loss, str):
            raise SettingsError(f"style_loss must be a name, not {shown(self.style_loss)}")
        if not isinstance(self.init, str | os.PathLike):
            raise SettingsError(
                f"init must be content, noise, transfer or a path, not {shown(self.init)}"
            )
        self._set("init", os.fspath(self.init))
        if not self._style_taps() and not self._content_taps():
            raise SettingsError(
                "nothing to optimise: every layer of style_layers and content_layers has weight 0"
            )

    @classmethod
    def preset(cls, name: PresetName, **changes: Any) -> StyleSettings:
        """The settings of a preset, with some changed.

        "draft" is for choosing a style: in half the time or less, what "standard", the defaults,
        will be; "fine" is for print: twice the size, in three sizes and more steps.

        Raises:
            SettingsError: there is no such preset, or a value cannot work.
        """
        check_choice("preset", name, get_args(PresetName))
        return cls(**(dict(PRESETS[name]) | changes))

    @classmethod
    def _expanded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of a file, which may name a preset; its other values win."""
        given = dict(values)
        name = given.pop("preset", "standard")
        check_choice("preset", name, get_args(PresetName))
        return dict(PRESETS[name]) | given

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _style_taps(self) -> bool:
        return self.style_weight > 0 and any(w > 0 for w in self.style_layers.values())

    def _content_taps(self) -> bool:
        return self.content_weight > 0 and any(w > 0 for w in self.content_layers.values())

    @property
    def mask_paths(self) -> tuple[str, ...]:
        """The masks and the picture of regions that are named."""
        return *self.style_mask, *filter(None, (self.style_regions, self.content_mask))

    @property
    def init_path(self) -> Path | None:
        """The picture to start from, where ``init`` names one."""
        return None if self.init in get_args(InitName) else Path(self.init)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, keyed by setting."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {name: dict(values[name]) for name in ("style_layers", "content_layers")}


def shown(value: object) -> str:
    """A value as Python writes it, for a message of one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of too many digits, or whatever an object's own code raises
        text = f"a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """An int; spreadsheets and numpy write whole numbers as 512.0, and they mean 512.

    Raises:
        SettingsError: it is none, or not from ``least`` to ``most``; the message names the setting.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        found = value if isinstance(value, int) else float(value)
        if least <= found <= most and found == int(found):
            return int(found)
    raise SettingsError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")


def number(name: str, value: object, above: float | None = None, most: float = 1e12) -> float:
    """A float, from 0 or ``above`` some number, to ``most``.

    Raises:
        SettingsError: it is no number, or beyond these; the message names the setting.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # an int of hundreds of digits
            found = math.inf
        high_enough = found >= 0 if above is None else found > above
        if math.isfinite(found) and high_enough and found <= most:
            return found
    rule = "0 or more" if above is None else f"above {above:g}"
    raise SettingsError(f"{name} must be a number, {rule} and at most {most:g}, not {shown(value)}")


def _memory(value: object) -> int | None:
    """Bytes of an amount of memory."""
    if value is None:
        return None
    amount = parse_memory(value) if isinstance(value, str) else value
    if isinstance(amount, int | float) and not isinstance(amount, bool) and 0 < amount < math.inf:
        return int(amount)
    raise SettingsError(
        f"max_memory must be an amount with its unit, such as 8GB, 7.5GiB or 900MB, "
        f"not {shown(value)}"
    )


def _layer_weights(name: str, weights: object) -> LayerWeights:
    if not isinstance(weights, Mapping):
        raise SettingsError(f"{name} must map layers to weights, not {shown(weights)}")
    return LayerWeights({str(t): number(f"{name} {t}", weight) for t, weight in weights.items()})


def _blend(shares: object) -> tuple[float, ...]:
    if not isinstance(shares, Iterable):
        raise SettingsError(f"style_blend must be a list of shares, not {shown(shares)}")
    blend = tuple(number("style_blend", share) for share in shares)
    if blend and sum(blend) <= 0:
        raise SettingsError("style_blend: at least one share must be above 0")
    return blend


def _style_scale(scale: object) -> float | tuple[float, ...]:
    if isinstance(scale, Iterable) and not isinstance(scale, str | bytes | Mapping):
        each = tuple(number("style_scale", one, above=0.0, most=8.0) for one in scale)
        if not each:
            raise SettingsError("style_scale must be a number, or one for each style picture")
        return each if len(each) > 1 else each[0]
    return number("style_scale", scale, above=0.0, most=8.0)


def _paths(name: str, paths: object) -> tuple[str, ...]:
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise SettingsError(f"{name} must be paths, not {shown(paths)}")
    given = list(paths)
    for path in given:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise SettingsError(f"{name} must be a path, not {shown(path)}")
    return tuple(os.fsdecode(path) for path in given)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise SettingsError unless ``value`` is one of ``choices``; the message names the setting."""
    if not isinstance(value, str) or value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}")


def parse_device(text: str) -> tuple[Literal["auto", "cpu", "cuda"], int]:
    """Read "auto", "cpu", "cuda" or "cuda:1" into its word and the index.

    Raises:
        SettingsError: it is none of them.
    """
    found = re.fullmatch(r"(auto|cpu)|cuda(?::(\d{1,3}))?", text) if isinstance(text, str) else None
    if found is None:
        raise SettingsError(f"device must be auto, cpu, cuda or cuda:NUMBER, not {shown(text)}")
    if found[1] == "auto":
        return "auto", 0
    return ("cpu", 0) if found[1] else ("cuda", int(found[2] or 0))
