"""Settings: frozen, validated on construction, the single source of defaults.

The command line, the library and settings files all read their defaults from here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

from nst_fast.errors import SettingsError

Normalization = Literal["relative", "gram", "textbook"]
StyleSpace = Literal["mapped", "encoder"]
OptimizerName = Literal["lbfgs", "adam"]
PrecisionName = Literal["auto", "fp32", "bf16", "tf32", "fp16"]
ProviderName = Literal["auto", "cpu", "openvino", "cuda", "tensorrt"]
PlanName = Literal["auto", "fused", "split"]

DEFAULT_ENCODER = "vgg19-lite"
LEAST_SMOOTHING = 0.01  # cycles a pixel: a Gaussian of 16 pixels
MOST_MARGIN = 256  # pixels: the deepest tap of VGG-19 sees no farther
MAX_SIZE = 16384  # pixels a side; beyond it index arithmetic in the providers is 32 bit


@dataclass(frozen=True)
class StyleSettings:
    """What picture to make: objective, size, starting point and optimiser.

    Attributes:
        size: longest side of the picture in pixels; None keeps the content's own size.
        steps: evaluations of loss and gradient; each size takes half as many as the one before.
        style_weight: weight of the style term, ≥ 0.
        content_weight: weight of the content term, ≥ 0.
        tv_weight: weight of the total variation (squared differences of neighbouring
            pixels, averaged over the picture), ≥ 0.
        range_weight: weight of the penalty on pixels outside [0, 1] (squared distance,
            averaged over the picture), ≥ 0; 0 leaves them to the final clamp.
        style_layers: weight λ of each tap in the style term; they are used as given.
        content_layers: weight of each tap in the content term.
        style_loss: distance between the statistics of picture and style: "gram", "whitened" or
            "wasserstein"; see ``nst_fast.losses``.
        style_space: where styles are compared: "mapped", the channels that the encoder's pack maps
            its own to (those of VGG-19), or "encoder", its own.
        shift: activation shift, as a multiple of the root mean square of the style's channels, ≥ 0;
            1 makes strokes calmer, 0 compares plain Gram matrices.
        normalization: how the terms of a tap are scaled; see ``nst_fast.losses``.
        smoothing: cycles a pixel above which the optimiser moves the picture with less force, from
            0.01 to 0.5; 0 lets it move every pixel alone.
        margin: pixels that the picture is mirrored past its borders, at least; 0 shows the encoder
            the borders themselves, which leaves a frame.
        style_blend: shares of several style pictures, normalised to 1; empty: equal shares.
        style_scale: longest side of the style picture, as a multiple of the picture's own;
            larger makes larger strokes.
        scales: sizes to go through from coarse to fine, each half of the next; 1 works at full
            size from the start.
        init: where the optimisation starts: "content", "noise", or the path of a picture,
            which is resized to the content's size.
        optimizer: "lbfgs" or "adam".
        learning_rate: Adam's step in pixel values, before smoothing; L-BFGS finds its own.
        history: pairs that L-BFGS remembers.
        seed: of the noise; the same seed and settings give the same picture on the same machine.

    Raises:
        SettingsError: a value cannot work; the message names the setting.
    """

    size: int | None = 512
    steps: int = 96
    style_weight: float = 1.0
    content_weight: float = 0.08
    tv_weight: float = 0.05
    range_weight: float = 10.0
    style_layers: Mapping[str, float] = field(
        default_factory=lambda: {
            "relu1_1": 0.2,
            "relu2_1": 0.2,
            "relu3_1": 0.25,
            "relu4_1": 0.2,
            "relu5_1": 0.15,
        }
    )
    content_layers: Mapping[str, float] = field(default_factory=lambda: {"relu4_2": 1.0})
    style_loss: str = "gram"
    style_space: StyleSpace = "mapped"
    shift: float = 1.0
    normalization: Normalization = "relative"
    smoothing: float = 0.16
    margin: int = 8
    style_blend: tuple[float, ...] = ()
    style_scale: float = 1.0
    scales: int = 2
    init: str = "content"
    optimizer: OptimizerName = "lbfgs"
    learning_rate: float = 0.02
    history: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value; the first that cannot work raises."""
        if self.size is not None:
            self._whole("size", 16, MAX_SIZE)
        self._whole("steps", 1, 1_000_000)
        self._whole("scales", 1, 8)
        self._whole("history", 1, 100)
        self._whole("seed", 0, 2**32 - 1)
        self._whole("margin", 0, MOST_MARGIN)
        for name in ("style_weight", "content_weight", "tv_weight", "range_weight", "shift"):
            self._set(name, _number(name, getattr(self, name)))
        self._set("learning_rate", _number("learning_rate", self.learning_rate, above=0.0))
        self._set("style_scale", _number("style_scale", self.style_scale, above=0.0, most=8.0))
        self._set("smoothing", _number("smoothing", self.smoothing, most=0.5))
        if 0 < self.smoothing < LEAST_SMOOTHING:
            raise SettingsError(
                f"smoothing must be 0, or from {LEAST_SMOOTHING:g} to 0.5, not {self.smoothing:g}"
            )
        for name in ("style_layers", "content_layers"):
            self._set(name, _layer_weights(name, getattr(self, name)))
        self._set("style_blend", _blend(self.style_blend))
        check_choice("style_space", self.style_space, get_args(StyleSpace))
        check_choice("normalization", self.normalization, get_args(Normalization))
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        if not isinstance(self.init, str | os.PathLike):
            raise SettingsError(f"init must be content, noise or a path, not {self.init!r}")
        self._set("init", os.fspath(self.init))
        if not self._style_taps() and not self._content_taps():
            raise SettingsError(
                "nothing to optimise: every layer of style_layers and content_layers has weight 0"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _whole(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        good = isinstance(value, Integral) and not isinstance(value, bool)
        if not good or not least <= value <= most:
            raise SettingsError(
                f"{name} must be a whole number from {least} to {most}, not {value!r}"
            )
        self._set(name, int(value))

    def _style_taps(self) -> bool:
        return self.style_weight > 0 and any(w > 0 for w in self.style_layers.values())

    def _content_taps(self) -> bool:
        return self.content_weight > 0 and any(w > 0 for w in self.content_layers.values())

    @property
    def init_path(self) -> Path | None:
        """The picture to start from, where ``init`` names one."""
        return None if self.init in ("content", "noise") else Path(self.init)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, keyed by setting."""
        return asdict(self)


def _number(name: str, value: object, above: float | None = None, most: float = 1e12) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an int of hundreds of digits
            number = math.inf
        high_enough = number >= 0 if above is None else number > above
        if math.isfinite(number) and high_enough and number <= most:
            return number
    rule = "0 or more" if above is None else f"above {above:g}"
    raise SettingsError(f"{name} must be a number, {rule} and at most {most:g}, not {value!r}")


def _layer_weights(name: str, weights: object) -> dict[str, float]:
    if not isinstance(weights, Mapping):
        raise SettingsError(f"{name} must map layers to weights, not {weights!r}")
    return {str(tap): _number(f"{name} {tap}", weight) for tap, weight in weights.items()}


def _blend(shares: object) -> tuple[float, ...]:
    if not isinstance(shares, Iterable):
        raise SettingsError(f"style_blend must be a list of shares, not {shares!r}")
    blend = tuple(_number("style_blend", share) for share in shares)
    if blend and sum(blend) <= 0:
        raise SettingsError("style_blend: at least one share must be above 0")
    return blend


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise SettingsError unless ``value`` is one of ``choices``; the message names the setting."""
    if value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def parse_device(text: str) -> tuple[Literal["auto", "cpu", "cuda"], int]:
    """Read "auto", "cpu", "cuda" or "cuda:1" into kind and index.

    Raises:
        SettingsError: it is none of them.
    """
    found = re.fullmatch(r"(auto|cpu)|cuda(?::(\d{1,3}))?", text) if isinstance(text, str) else None
    if found is None:
        raise SettingsError(f"device must be auto, cpu, cuda or cuda:NUMBER, not {text!r}")
    if found[1] == "auto":
        return "auto", 0
    return ("cpu", 0) if found[1] else ("cuda", int(found[2] or 0))
