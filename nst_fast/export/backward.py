"""Trace the vector-Jacobian product of a VGG's taps from torch autograd.

``torch.onnx.export`` cannot trace a VJP itself (torch 2.13), so ``make_fx`` does, under our
own decompositions of the backward operators into ones that carry no shape; the traced graph
then serves any N, H and W. Decompositions follow from the chain rule; each is checked
against autograd by ``nst_fast.export.check``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from nst_fast.export.vgg import Vgg

aten = torch.ops.aten


@torch.library.custom_op("nst_fast::upsample", mutates_args=())
def upsample(x: Tensor) -> Tensor:
    """Repeat every cell of (N, C, H, W) twice along H and W: nearest upsampling by 2.

    An operator of its own, so that tracing does not break it up into index arithmetic with
    the sizes written in; it exports as one ONNX Resize.
    """
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


UPSAMPLE = torch.ops.nst_fast.upsample.default


@upsample.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), dtype=x.dtype)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Any, ...]:
    """VJP of a 3×3 convolution of stride 1: convolve with the flipped, transposed weights."""
    flipped = weight.flip(2, 3).transpose(0, 1)
    return (
        aten.convolution(grad, flipped, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        None,
        None,
    )


def _relu_backward(grad: Tensor, result: Tensor, threshold: float) -> Tensor:
    return torch.where(result > threshold, grad, 0.0)


def _average_pool_backward(grad: Tensor, *_: Any) -> Tensor:
    quarter: Tensor = upsample(grad) * 0.25
    return quarter


def _max_pool_backward(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    """Cells equal to their window's maximum take equal shares of its gradient; exact but for ties.

    Where features are rounded to bfloat16, ties are frequent.
    """
    at_maximum = x == upsample(aten.max_pool2d(x, [2, 2]))
    cells = 4.0 * aten.avg_pool2d(torch.where(at_maximum, 1.0, 0.0), [2, 2])
    return torch.where(at_maximum, upsample(grad / cells), 0.0)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: _convolution_backward,
    aten.threshold_backward.default: _relu_backward,
    aten.avg_pool2d_backward.default: _average_pool_backward,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
}


def vjp(module: Vgg, image: Tensor, gradients: list[Tensor]) -> Tensor:
    """Σ_l J_lᵀ d_l: the gradient at the image for gradients at every tap, in tap order."""
    pull = torch.func.vjp(lambda x: tuple(module(x).values()), image)[1]
    result: Tensor = pull(tuple(gradients))[0]
    return result


def trace_backward(module: Vgg, image: Tensor) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """Trace the VJP as a function of the ReLU activations and the tap gradients.

    Returns the traced module, whose placeholders are the activations then the gradients in
    tap order, and example arguments for it.
    """
    with torch.no_grad():
        activations = list(module(image).values())
    gradients = [torch.ones_like(a) for a in activations]
    traced = make_fx(lambda x, *d: vjp(module, x, list(d)), decomposition_table=DECOMPOSITIONS)(
        image, *gradients
    )
    _cut_forward(traced, list(module(image)))
    return traced, (*activations, *gradients)


def _cut_forward(traced: GraphModule, taps: list[str]) -> None:
    """Read the activations from new inputs instead of computing them again."""
    graph = traced.graph
    placeholders = graph.find_nodes(op="placeholder")
    relus = graph.find_nodes(op="call_function", target=aten.relu.default)
    for tap, relu in zip(taps, relus, strict=True):
        with graph.inserting_before(placeholders[1]):
            relu.replace_all_uses_with(graph.placeholder(tap))
    graph.eliminate_dead_code()
    graph.erase_node(placeholders[0])
    traced.recompile()
