"""Read the weights of a VGG: torchvision's layout or our own names, ``.pth`` or safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nst_fast.errors import EncoderError, one_line
from nst_fast.export.vgg import VggSpec

MOST_BYTES = 4 << 30  # the largest VGG has half a gigabyte


def read_checkpoint(path: Path, spec: VggSpec) -> dict[str, Tensor]:
    """Return ``convB_I.weight`` and ``convB_I.bias`` as float32, by our names.

    Accepts torchvision's names (``features.0.weight`` …; its classifier is ignored) and ours,
    in a safetensors file or a torch file; the latter is loaded with ``weights_only``, so that
    nothing in it can run.

    Raises:
        EncoderError: not a file of weights; the message names it.
    """
    names = torchvision_names(spec)
    try:
        if not path.is_file():  # a device or a pipe may never end
            raise FileNotFoundError
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 30} GiB")
        if path.suffix == ".safetensors":
            arrays = load_file(path)
        else:
            arrays = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(arrays, dict) or not all(isinstance(v, Tensor) for v in arrays.values()):
            raise ValueError("it holds no named tensors")
        return {names.get(key, key): value.float() for key, value in arrays.items()}
    except FileNotFoundError:
        raise EncoderError(f"{path}: no such checkpoint file") from None
    except Exception as error:
        reason = one_line(error) if str(error) else "it is empty"
        raise EncoderError(f"{path}: not a readable checkpoint ({reason})") from None


def torchvision_names(spec: VggSpec) -> dict[str, str]:
    """Map torchvision's entries (positions in its ``features`` list) to our names."""
    names = {}
    position = 0
    for layer in spec.layers():
        position += 1 if layer.pooled else 0
        for part in ("weight", "bias"):
            names[f"features.{position}.{part}"] = f"{layer.conv}.{part}"
        position += 2  # the convolution and its ReLU
    return names
