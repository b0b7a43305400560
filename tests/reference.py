"""The kernels once more, in float64 and straight from the equations of ``nst_fast.kernels``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def total_variation(x: Float64, corner: float, w: Float64) -> tuple[Float64, Float64]:
    """Return the losses (N,) and the gradient of the total variation of x (N, 3, H, W)."""
    across, down = np.diff(x, axis=3), np.diff(x, axis=2)
    squares = np.zeros_like(x)
    squares[..., :-1] += across**2
    squares[:, :, :-1] += down**2
    s = np.sqrt(corner**2 + squares)
    gradient = np.zeros_like(x)
    gradient[..., 1:] += across / s[..., :-1]
    gradient[..., :-1] -= across / s[..., :-1]
    gradient[:, :, 1:] += down / s[:, :, :-1]
    gradient[:, :, :-1] -= down / s[:, :, :-1]
    losses = (squares / (s + corner)).sum(axis=(1, 2, 3))
    return w * losses, w[:, None, None, None] * gradient


def range_penalty(x: Float64, w: Float64) -> tuple[Float64, Float64]:
    """Return the losses (N,) and the gradient of the range penalty of x (N, 3, H, W)."""
    outside = x - x.clip(0, 1)
    return w * (outside**2).sum(axis=(1, 2, 3)), w[:, None, None, None] * 2 * outside


def temporal_loss(x: Float64, a: Float64, m: Float64, w: Float64) -> tuple[Float64, Float64]:
    """Return the losses (N,) and the gradient of Σ m (x − a)², x and a (N, 3, H, W)."""
    off = x - a
    weighted = m[:, None] * off
    return w * (weighted * off).sum(axis=(1, 2, 3)), w[:, None, None, None] * 2 * weighted


def bfloat16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 to the nearest bfloat16, ties to even, by comparing both neighbours."""
    low = (x.view(np.uint32) >> 16).astype(np.uint16)
    high = low + np.uint16(1)
    below, above = (np.abs(widen(h).astype(np.float64) - x) for h in (low, high))
    up = (above < below) | ((above == below) & (low % 2 == 1))
    return np.where(up, high, low)


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def lbfgs_direction(
    gradient: Float64, pairs: list[tuple[Float64, Float64]], scale: float
) -> Float64:
    """−Hg with BFGS's dense inverse Hessian, from H₀ = scale·I and the pairs, oldest first.

    Nocedal & Wright 2006, equation 6.17: independent of the two-loop recursion.
    """
    H = scale * np.eye(gradient.size)
    for s, y in pairs:
        rho = 1 / (s @ y)
        V = np.eye(gradient.size) - rho * np.outer(y, s)
        H = V.T @ H @ V + rho * np.outer(s, s)
    return -H @ gradient


class Adam:
    """Kingma & Ba 2015, algorithm 1, with a clamp."""

    def __init__(self, x: Float64, rate: float, beta1: float, beta2: float, epsilon: float) -> None:
        self.x, self.m, self.v, self.t = x.copy(), np.zeros_like(x), np.zeros_like(x), 0
        self.rate, self.beta1, self.beta2, self.epsilon = rate, beta1, beta2, epsilon

    def step(self, g: Float64, low: float, high: float) -> None:
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        m_hat = self.m / (1 - self.beta1**self.t)
        v_hat = self.v / (1 - self.beta2**self.t)
        self.x = np.clip(self.x - self.rate * m_hat / (np.sqrt(v_hat) + self.epsilon), low, high)


def convolution(x: Float64, weights: Float64, bias: Float64) -> Float64:
    """3×3 cross-correlation of x (N, C, H, W) with weights (O, C, 3, 3), padded by zeros."""
    _, _, height, width = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = np.stack(
        [padded[:, :, r : r + height, c : c + width] for r in range(3) for c in range(3)]
    )
    taps = weights.astype(np.float64).reshape(*weights.shape[:2], 9)
    found = np.einsum("knchw,ock->nohw", shifted, taps, optimize=True)
    return found + bias.astype(np.float64)[:, None, None]
