"""The space in which styles are compared: channels h = H f̃ of a tap's features f̃ = [f; 1].

A pack may bring a map H for a tap: that of ``vgg19-lite`` leads to approximations of the 64 to 512
channels of VGG-19, whose Gram matrices are the ones that people look at; the channels of a narrow
encoder have scales and correlations of their own. Without a map it is [I 0], the encoder's own.

The activation shift of Novak and Nikulin 2016 (section 3.2) compares h − s; s is a multiple of the
root mean square of the style's h.
"""

from __future__ import annotations

import numpy as np

from nst_fast.host import Float64


def style_space(H: Float64, T: Float64, shift: float) -> Float64:
    """H of each style, (N, D, C+1), scaled by √(C/D): H M Hᵀ is Σ h hᵀ/(D·P), as M is Σ f̃ f̃ᵀ/(C·P).

    Args:
        H: the map, (D, C+1).
        T: moments of the styles, (N, C+1, C+1).
        shift: s over the root mean square of the style's h; 0: no shift.
    """
    D, C = H.shape[0], H.shape[1] - 1
    scaled = np.sqrt(C / D) * H
    mean_square = np.einsum("dc,ncb,db->n", scaled, T, scaled, optimize=True).clip(0)
    shifted = np.repeat(scaled[None], len(T), axis=0)
    shifted[:, :, C] -= np.sqrt(C / D) * shift * np.sqrt(mean_square)[:, None]
    return shifted
