"""Write packs: the manifest as their last file, style maps and decoders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from nst_fast.encoders.cache import sha256
from nst_fast.encoders.manifest import (
    BACKWARD,
    DECODERS,
    FORMAT,
    FORWARD,
    MANIFEST,
    OPTIONAL,
    STYLE_SPACE,
    WEIGHTS,
    Arrays,
    Encoder,
    Pooling,
    Tap,
    Taps,
    parse,
    stored_decoders,
    stored_style_maps,
)
from nst_fast.errors import EncoderError
from nst_fast.files import write_atomically
from nst_fast.host import Float64

_REBUILD = "build the pack again"


def write_manifest(
    folder: Path,
    *,
    name: str,
    pooling: Pooling,
    mean: tuple[float, float, float],
    taps: Mapping[str, Tap],
    source: str,
    licence: str,
    created_with: Mapping[str, str],
) -> Encoder:
    """Hash the files of a pack and write its manifest, as the last file of the pack.

    Args:
        folder: holds both graphs, the weights and, if so wished, style maps and decoders; its
            other files are left out.
        name: of the encoder.
        pooling: how its network pools.
        mean: RGB mean that the graphs subtract, in pixel values of [0, 1].
        taps: in network order.
        source: one line: where the weights come from.
        licence: one line: of the weights.
        created_with: versions of the packages that made the graphs.

    Raises:
        EncoderError: a file is missing, or a value does not fit the format.
    """
    manifest = {
        "format": FORMAT,
        "name": name,
        "pooling": pooling,
        "mean": [float(value) for value in mean],
        "taps": {tap: asdict(shape) for tap, shape in taps.items()},
        "files": {},
        "source": source,
        "licence": licence,
        "created_with": dict(created_with),
    }
    return _write(folder, manifest)


def write_style_space(folder: Path, maps: Mapping[str, Float64]) -> Encoder:
    """Give a pack style maps, or others than it had; they are rounded to float16.

    Args:
        folder: of a pack.
        maps: (D, C+1) by tap.

    Raises:
        EncoderError: a file of the pack is missing, or a map does not fit its tap; nothing is
            written then.
    """
    return _add(folder, STYLE_SPACE, maps, stored_style_maps)


def write_decoders(folder: Path, arrays: Arrays) -> Encoder:
    """Give a pack decoders, as ``write_style_space`` gives it maps.

    Args:
        folder: of a pack.
        arrays: weights and biases by the names that they have in the file.

    Raises:
        EncoderError: a file of the pack is missing, or a decoder does not fit its taps; nothing is
            written then.
    """
    return _add(folder, DECODERS, arrays, stored_decoders)


def _add(
    folder: Path, file: str, arrays: Arrays, check: Callable[[Taps, Arrays], object]
) -> Encoder:
    """Write an optional file, in float16, and the manifest."""
    try:
        data = (folder / MANIFEST).read_bytes()
        encoder, _ = parse(data, folder.absolute(), _REBUILD)
        with np.errstate(over="ignore"):  # the check finds it
            rounded = {name: np.ascontiguousarray(a, np.float16) for name, a in arrays.items()}
        check(encoder.taps, rounded)
        (folder / file).write_bytes(save(rounded))
    except (OSError, ValueError) as error:
        raise EncoderError(f"cannot write {file} of encoder pack {folder}: {error}") from error
    return _write(folder, json.loads(data))


def _write(folder: Path, manifest: dict[str, Any]) -> Encoder:
    """Write a manifest with the hashes of the files that are there."""
    optional = [file for file in OPTIONAL if (folder / file).exists()]
    try:
        hashes = {file: sha256(folder / file) for file in (FORWARD, BACKWARD, WEIGHTS, *optional)}
        data = (json.dumps(manifest | {"files": hashes}, indent=2) + "\n").encode()
        encoder, _ = parse(data, folder.absolute(), _REBUILD)
        write_atomically(folder / MANIFEST, data)
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"cannot write the manifest of encoder pack {folder}: {error}"
        ) from error
    return encoder
