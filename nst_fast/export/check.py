"""Check an exported pair of graphs against float64 autograd before it becomes a pack."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nst_fast.errors import EncoderError
from nst_fast.export.backward import vjp
from nst_fast.export.vgg import Vgg
from nst_fast.graph.parts import IMAGE, gradient_name
from nst_fast.library import onnxruntime

TOLERANCE = {"average": 1e-5, "max": 1e-4}


def check_pair(module: Vgg, folder: Path) -> None:
    """Compare taps and VJP at a size and batch other than the traced ones.

    Raises:
        EncoderError: a relative difference above ``TOLERANCE``.
    """
    side = 2 ** len(module.spec.blocks)
    generator = torch.Generator().manual_seed(7)
    image = torch.rand(2, 3, 3 * side, 2 * side, generator=generator)
    sessions = {
        name: onnxruntime().InferenceSession(folder / f"{name}.onnx")
        for name in ("forward", "backward")
    }
    taps = list(module(image))
    found = sessions["forward"].run(taps, {IMAGE: image.numpy()})
    exact = module.double()(image.double())
    error = max(
        relative_error(torch.from_numpy(f), exact[tap]) for f, tap in zip(found, taps, strict=True)
    )
    gradients = [torch.randn(exact[tap].shape, generator=generator) for tap in taps]
    # The masks of both come from the same activations: a float32 forward pass flips a few.
    feeds = {tap: exact[tap].float().numpy() for tap in taps} | {
        gradient_name(tap): d.numpy() for tap, d in zip(taps, gradients, strict=True)
    }
    (d_image,) = sessions["backward"].run(None, feeds)
    oracle = vjp(module, image.double(), [d.double() for d in gradients])
    module.float()
    error = max(error, relative_error(torch.from_numpy(d_image), oracle))
    if not error <= TOLERANCE[module.pooling]:
        raise EncoderError(f"export: graphs differ from autograd by {error:.1e}")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found.double() - expected).norm() / expected.norm())
