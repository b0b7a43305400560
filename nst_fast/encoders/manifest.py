"""The form of a pack, and the code that reads and verifies it; ``writing`` writes it.

A pack is a folder: ``forward.onnx`` (image → taps), ``backward.onnx`` (taps and their gradients →
image gradient), ``weights.safetensors`` that both point into, and ``manifest.json``, which says
what the graphs compute and holds the SHA-256 of every other file::

    {"format": 1, "name": "vgg19-lite", "pooling": "average", "mean": [0.485, 0.456, 0.406],
     "taps": {"relu1_1": {"channels": 16, "stride": 1}, ...in network order...},
     "files": {"forward.onnx": "<64 hex digits>", ...},
     "source": "...", "licence": "...", "created_with": {"torch": "2.13.0", ...}}

A pack may also hold ``style_space.safetensors``: by tap a float16 (D, C+1), a linear map from the
tap's C channels and 1 to the D channels in which styles are compared. And
``decoders.safetensors``: for some taps a decoder, convolutions ``<tap>.<i>.weight`` (out, in, 3, 3)
and ``<tap>.<i>.bias`` in float16, that lead from its features to those of the tap before it that
has one, the first tap's to the picture (``nst_fast.transfer``).
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeGuard, TypeVar, cast, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nst_fast.encoders.bounds import MOST_CHANNELS, MOST_STRIDE, check_file
from nst_fast.encoders.cache import sha256
from nst_fast.errors import EncoderError
from nst_fast.host import Float32, Float64

Pooling = Literal["average", "max"]
Arrays = Mapping[str, np.ndarray[Any, Any]]
Checked = TypeVar("Checked")

FORMAT = 1
MANIFEST = "manifest.json"
FORWARD = "forward.onnx"
BACKWARD = "backward.onnx"
WEIGHTS = "weights.safetensors"
STYLE_SPACE = "style_space.safetensors"
DECODERS = "decoders.safetensors"
OPTIONAL = (STYLE_SPACE, DECODERS)

_NAME = re.compile(r"(?=.{1,64}$)[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
NAME_RULE = "at most 64 letters, digits, '.', '_' and '-'"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Tap:
    """A ReLU output that the encoder exposes: its channels, and its stride in pixels."""

    channels: int
    stride: int


Taps = Mapping[str, Tap]


@dataclass(frozen=True)
class Decoder:
    """What leads from a tap's features to those of another tap, or to the picture.

    Attributes:
        tap: that it reads.
        after: the tap whose features it makes; None: it makes the picture.
        layers: weights (out, in, 3, 3) and bias (out,) of its convolutions, in order.
    """

    tap: str
    after: str | None
    layers: tuple[tuple[Float32, Float32], ...]


@dataclass(frozen=True)
class Encoder:
    """A verified pack.

    Attributes:
        name: the name in its manifest.
        path: its folder, absolute.
        pooling: how its network pools.
        mean: RGB mean that its graphs subtract, in pixel values of [0, 1].
        taps: the taps in network order, strides never falling.
        source: where the weights come from.
        licence: of the weights.
        digest: SHA-256 of the manifest in hex; it identifies weights, graphs and style maps.
        has_style_space: whether it holds style maps.
        has_decoders: whether it holds decoders.
        remedy: ends the message of an error.
    """

    name: str
    path: Path
    pooling: Pooling
    mean: tuple[float, float, float]
    taps: Mapping[str, Tap]
    source: str
    licence: str
    digest: str
    has_style_space: bool
    has_decoders: bool
    remedy: str = field(compare=False, repr=False)

    def __hash__(self) -> int:
        """Equal packs have equal manifests."""
        return hash(self.digest)

    @property
    def forward_path(self) -> Path:
        """The graph from the image to the taps."""
        return self.path / FORWARD

    @property
    def backward_path(self) -> Path:
        """The graph from the taps and their gradients to the gradient of the image."""
        return self.path / BACKWARD

    def style_map(self, tap: str) -> Float64:
        """The map (D, C+1) from a tap's channels and 1 to those in which styles are compared.

        [I | 0] where the pack has none for this tap.

        Raises:
            EncoderError: the file of the maps is damaged, or a map does not fit its tap.
        """
        channels = self.taps[tap].channels
        found = self._style_maps.get(tap)
        return np.eye(channels, channels + 1) if found is None else found

    @cached_property
    def _style_maps(self) -> Mapping[str, Float64]:
        if not self.has_style_space:
            return {}
        return self._read(STYLE_SPACE, stored_style_maps)

    @cached_property
    def decoders(self) -> tuple[Decoder, ...]:
        """From the deepest tap that has one to the picture; none where the pack has none.

        Raises:
            EncoderError: the file is damaged, or a decoder does not fit its taps.
        """
        return self._read(DECODERS, stored_decoders) if self.has_decoders else ()

    def _read(self, file: str, check: Callable[[Taps, Arrays], Checked]) -> Checked:
        """The arrays of an optional file, as ``check`` makes them of the taps and these."""
        try:
            return check(self.taps, load_file(self.path / file))
        except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
            # The last two come from safetensors, for types that numpy lacks.
            fault = f"{file} cannot be used ({error})"
            raise EncoderError(f"encoder pack {self.path}: {fault}; {self.remedy}") from error


def is_name(value: object) -> TypeGuard[str]:
    """Whether this can name an encoder, a tap or a file: it has no separator and no "..".

    Such a name stays inside its folder, whatever a manifest says.
    """
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def read_pack(
    folder: Path, remedy: str, name: str | None = None
) -> tuple[Encoder, Mapping[str, str]]:
    """Read a pack and compare the hash of every file.

    Args:
        folder: of the pack, absolute.
        remedy: ends the message of an error.
        name: that the manifest must give, where it must.

    Returns:
        The encoder, and the SHA-256 of each of its files in hex.

    Raises:
        EncoderError: the pack is incomplete, malformed or damaged.
    """
    try:
        check_file(folder / MANIFEST)
        encoder, files = parse((folder / MANIFEST).read_bytes(), folder, remedy)
        if name not in (None, encoder.name):
            raise ValueError(f"{MANIFEST}: its name is {encoder.name}, not {name}")
        for file, expected in files.items():
            check_file(folder / file)
            actual = sha256(folder / file)
            if actual != expected:
                hashes = f"SHA-256 {actual[:8]}…, expected {expected[:8]}…"
                raise ValueError(f"{file} is damaged or was changed ({hashes})")
    except OSError as error:
        fault = f"{Path(error.filename or 'a file').name} cannot be read ({error.strerror})"
        raise EncoderError(f"encoder pack {folder}: {fault}; {remedy}") from error
    except ValueError as error:
        raise EncoderError(f"encoder pack {folder}: {error}; {remedy}") from error
    return encoder, files


def parse(data: bytes, folder: Path, remedy: str) -> tuple[Encoder, Mapping[str, str]]:
    """Read a manifest; raise ValueError with what is wrong in one line."""
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{MANIFEST} must hold an object, not {reprlib.repr(manifest)}")
    version = manifest.get("format")
    if _is_count(version) and version > FORMAT:
        raise ValueError(
            f"{MANIFEST} has format {reprlib.repr(version)} and this nst-fast reads {FORMAT}:"
            " upgrade nst-fast"
        )
    _require("format", version, _is_count(version), str(FORMAT))
    for key in ("source", "licence"):
        _require(key, manifest.get(key), _is_line(manifest.get(key)), "one line of text")
    name, pooling = manifest.get("name"), manifest.get("pooling")
    _require("name", name, is_name(name), NAME_RULE)
    _require("pooling", pooling, pooling in get_args(Pooling), "average or max")
    for package, release in _object(manifest, "created_with").items():
        good = _is_line(package) and _is_line(release)
        _require("created_with", {package: release}, good, "versions in text")
    files = _files(_object(manifest, "files"))
    encoder = Encoder(
        name=manifest["name"],
        path=folder,
        pooling=manifest["pooling"],
        mean=_mean(manifest.get("mean")),
        taps=_taps(_object(manifest, "taps")),
        source=manifest["source"],
        licence=manifest["licence"],
        digest=hashlib.sha256(data).hexdigest(),
        has_style_space=STYLE_SPACE in files,
        has_decoders=DECODERS in files,
        remedy=remedy,
    )
    return encoder, files


def _mean(value: object) -> tuple[float, float, float]:
    good = isinstance(value, list) and len(value) == 3
    numbers = value if isinstance(value, list) else []
    good = good and all(type(v) in (int, float) and 0 <= v <= 1 for v in numbers)
    _require("mean", value, good, "three numbers from 0 to 1")
    red, green, blue = map(float, numbers)
    return red, green, blue


def _taps(shapes: dict[str, Any]) -> Mapping[str, Tap]:
    _require("taps", shapes, len(shapes) > 0, "one tap or more")
    taps: dict[str, Tap] = {}
    deepest = 1
    for name in shapes:
        _require("the name of a tap", name, is_name(name), NAME_RULE)
        numbers = _object(shapes, name)
        for key, most in (("channels", MOST_CHANNELS), ("stride", MOST_STRIDE)):
            value = numbers.get(key)
            rule = f"a whole number from 1 to {most}"
            _require(f"{key} of {name}", value, _is_count(value) and value <= most, rule)
        stride = numbers["stride"]
        _require(f"stride of {name}", stride, stride >= deepest, f"{deepest} or more, as before it")
        taps[name] = Tap(numbers["channels"], stride)
        deepest = stride
    return MappingProxyType(taps)


def _files(hashes: dict[str, Any]) -> Mapping[str, str]:
    for file, digest in hashes.items():
        good = is_name(file) and file != MANIFEST
        _require("a name in files", file, good, "of a file beside the manifest")
        good = isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
        _require(f"the hash of {file}", digest, good, "64 hex digits")
    for file in (FORWARD, BACKWARD, WEIGHTS):
        _require("files", sorted(hashes), file in hashes, f"a list with {file}")
    return MappingProxyType(hashes)


def stored_style_maps(taps: Taps, arrays: Arrays) -> Mapping[str, Float64]:
    """Stored style maps in float64; ValueError where one does not fit."""
    for tap, array in arrays.items():
        if tap not in taps:
            raise ValueError(f"there is no tap {reprlib.repr(tap)}")
        columns = taps[tap].channels + 1
        if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] != columns:
            raise ValueError(f"{tap} must have shape (D, {columns}), not {array.shape}")
        _require_half(tap, array)
    return {tap: array.astype(np.float64) for tap, array in arrays.items()}


def stored_decoders(taps: Taps, arrays: Arrays) -> tuple[Decoder, ...]:
    """Stored decoders, the deepest first; ValueError where one does not fit."""
    left = dict(arrays)
    decoders: list[Decoder] = []
    after, channels, stride = None, 3, 1
    for tap in (tap for tap in taps if f"{tap}.0.weight" in arrays):
        layers: list[tuple[Float32, Float32]] = []
        inputs = taps[tap].channels
        while f"{tap}.{len(layers)}.weight" in left:
            name = f"{tap}.{len(layers)}"
            weight, bias = left.pop(f"{name}.weight"), left.pop(f"{name}.bias", None)
            if weight.ndim != 4 or weight.shape[1:] != (inputs, 3, 3):
                raise ValueError(f"{name}.weight must be (…, {inputs}, 3, 3), not {weight.shape}")
            inputs = len(weight)
            if bias is None or bias.shape != (inputs,):
                raise ValueError(f"{name}.bias must have shape ({inputs},)")
            _require_half(name, weight, bias)
            layers.append((weight.astype(np.float32), bias.astype(np.float32)))
        if inputs != channels or taps[tap].stride not in (stride, 2 * stride):
            raise ValueError(f"the decoder of {tap} does not lead to {after or 'the picture'}")
        decoders.insert(0, Decoder(tap, after, tuple(layers)))
        after, channels, stride = tap, taps[tap].channels, taps[tap].stride
    if left or not decoders:
        raise ValueError(f"nothing reads {reprlib.repr(sorted(left))}")
    return tuple(decoders)


def _require_half(name: str, *arrays: np.ndarray[Any, Any]) -> None:
    if any(array.dtype != np.float16 or not np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{name} must hold finite float16")


def _object(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    _require(key, value, isinstance(value, dict), "an object")
    return cast(dict[str, Any], value)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 1


def _is_line(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value != "" and value.isprintable()


def _require(what: str, value: object, good: bool, rule: str) -> None:
    if not good:
        raise ValueError(f"{MANIFEST}: {what} must be {rule}, not {reprlib.repr(value)}")
