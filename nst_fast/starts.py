"""Where an optimisation starts: at the content, with faint noise where it is bare, or at noise.

Where nothing tells a place from the next, a style term has the same gradient everywhere. What
breaks the tie then is the border: the zeros that convolutions see past it reach far inwards, so
strokes begin there, in parallel, and end as a frame. So a start is given what a photograph has from
its sensor: it varies at least a little everywhere, and strokes begin anywhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nst_fast import images
from nst_fast.host import Float32
from nst_fast.images import Picture
from nst_fast.kernels import Kernels
from nst_fast.smoothing import gaussian

GREY, CONTRAST = 0.5, 0.15  # of a start at noise: mean and standard deviation
# Standard deviations of Gaussians, in pixels of the coarsest size: of the noise, which no smoothing
# of the optimiser's takes away, and of what counts as near.
GRAIN, NEAR = 2.0, 4.0


def at_noise(picture: Picture, seed: int) -> Picture:
    """White noise of the size of a picture, clamped to [0, 1]."""
    noise = _normal(picture.pixels.shape, seed)
    return Picture(np.clip(np.float32(GREY) + np.float32(CONTRAST) * noise, 0, 1))


def at_content(content: Picture, least: float, seed: int, kernels: Kernels) -> Picture:
    """A content c that varies by ``least`` everywhere, if not of itself; clamped to [0, 1].

        c + √max(0, least² − G₄ * |c − G₄ * c|²) · n,   n = G₂ * white noise, of variance 1

    G_σ is a Gaussian of σ pixels, |·|² the mean over the channels: what is smooth, a gradient too,
    has no variation of its own.

    Args:
        content: at the size to start at.
        least: a standard deviation of pixel values, 0 or more; with 0 the content is returned.
        seed: of the noise.
        kernels: to smooth with.
    """
    if least == 0:
        return content
    grain, near = gaussian(GRAIN), gaussian(NEAR)
    start = images.to_tensor(content.pixels)
    noise = _normal(start.shape, seed)
    smooth = np.empty_like(start)
    kernels.smooth(start, near, smooth, share=0.0)
    smooth -= start
    varies = np.square(smooth, out=smooth).mean(axis=1, keepdims=True)
    missing = np.empty_like(varies)
    kernels.smooth(varies, near, missing, share=0.0)
    np.sqrt(np.maximum(np.float32(least**2) - missing, 0), out=missing)
    kernels.smooth(noise, grain, smooth, share=0.0)
    energy = float(np.square(grain).sum() * 2 - grain[0] ** 2)  # of a line; white noise has 1
    missing /= np.float32(energy)
    smooth *= missing
    start += smooth
    pixels = np.clip(start, 0, 1, out=start)[0].transpose(1, 2, 0)
    return replace(content, pixels=np.ascontiguousarray(pixels))


def _normal(shape: tuple[int, ...], seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
