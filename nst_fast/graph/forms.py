"""The fused step in the form that each provider runs fastest: one mathematics, several graphs.

A step is forward ∘ loss head ∘ backward. The same values come out of every form; what
differs is which operators carry the ReLU masks, how the moments view the features, and
how the last convolution is written. docs/architecture.md tells what each form is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto

from nst_fast.encoders import Encoder
from nst_fast.graph.chain import Layer, chain
from nst_fast.graph.channels_last import pad_pixels, turn, turn_ends
from nst_fast.graph.exported import usable
from nst_fast.graph.graph import Graph
from nst_fast.graph.half import read_centred, read_parts, to_half
from nst_fast.graph.parts import (
    IMAGE,
    IMAGE_GRADIENT,
    Shape,
    feature_graph,
    gradient_name,
    graph_pair,
    join,
)
from nst_fast.graph.pooling import count_cells, mask_maxima
from nst_fast.graph.winograd import use_winograd
from nst_fast.losses.head import Head, statistics
from nst_fast.losses.moments import Layout
from nst_fast.losses.objective import Objective
from nst_fast.runtime import Precision, Provider

STEEP = 1e30  # slope that turns HardSigmoid into a step function


@dataclass(frozen=True)
class Form:
    """How a provider wants the step written.

    Attributes:
        masks: "where" compares and selects; "hard_sigmoid" multiplies by a HardSigmoid so
            steep that it is a step function, which onnxruntime's CPU provider keeps in its
            blocked layout (and OpenVINO evaluates wrongly).
        last_layer: the convolution that ends in the image, as "conv" with flipped weights, as
            "conv_transpose", or as "fours": a convolution that makes four pixels of a row at
            once, 12 channels where the other forms fill 3 of a vector's 16.
        layout: of the products with features; channels last is OpenVINO's own.
        split_image: feed the first convolution the image as a coarse and a fine part, each
            exact in bfloat16; an edge is a small difference of large values.
        blocked_gradients: pass tap gradients through a depthwise 1×1 convolution of ones, so
            that the CPU provider reorders them there and the additions stay blocked.
        pixels: the image and its gradient have the channels last, in pixels of 16 bytes.
        half: of pixels: the encoder computes in float16; the loss head stays in float32, and the
            tap gradients are multiplied by the loss scale before they are rounded.
        winograd: channels from which a 3×3 convolution is written with fewer multiplications
            (``nst_fast.graph.winograd``); 0 writes none so.
        rounded_maxima: round activations to bfloat16 before they are compared with the maximum of
            their window: OpenVINO rounds what pooling reads, and compares what is not yet rounded.
    """

    masks: Literal["where", "hard_sigmoid"]
    last_layer: Literal["conv", "conv_transpose", "fours"]
    layout: Layout
    split_image: bool = False
    blocked_gradients: bool = False
    pixels: bool = False
    half: bool = False
    winograd: int = 0
    rounded_maxima: bool = False


_OPENVINO = Form("where", "fours", Layout(channels_last=True, split_pixels=16384, rectified=True))
_GPU: tuple[tuple[Provider, Precision], ...] = (
    ("cuda", "fp32"),
    ("cuda", "tf32"),
    ("cuda", "fp16"),
    ("tensorrt", "tf32"),
    ("tensorrt", "fp16"),
)
FORMS: dict[tuple[Provider, Precision], Form] = {
    ("cpu", "fp32"): Form("hard_sigmoid", "conv_transpose", Layout(), blocked_gradients=True),
    ("openvino", "fp32"): replace(_OPENVINO, winograd=256),
    ("openvino", "bf16"): replace(_OPENVINO, split_image=True, rounded_maxima=True),
    **{
        (provider, precision): Form(
            "where", "conv", Layout(), pixels=True, half=precision == "fp16"
        )
        for provider, precision in _GPU
    },
}


def fused_graph(
    encoder: Encoder, objective: Objective, shape: Shape, form: Form, *, weighted: bool
) -> Graph:
    """Compose the whole step: image and goal in, gradient and terms out.

    Inputs: ``image`` (N, 3, H, W), and those of ``losses.head``. Outputs: ``d_image`` (N, 3, H, W);
    ``terms`` (N, K), unweighted. In pixels, ``image`` and ``d_image`` are (N, H, W, 4), in float16
    (N, H, W, 8), the image in two parts (``half``); ``d_image`` is multiplied by one more input,
    ``loss_scale`` (N,), then.
    """
    taps = [tap for tap in encoder.taps if tap in objective.taps]
    pair = (
        _pixel_graphs(encoder, taps, shape, half=form.half)
        if form.pixels
        else step_graphs(encoder, taps, shape)
    )
    with usable(encoder, "its pair of graphs"):
        graph = _fuse(objective, taps, pair, form, weighted)
        if form.pixels:
            turn_ends(graph, IMAGE, IMAGE_GRADIENT)
        return graph


def _fuse(
    objective: Objective, taps: list[str], pair: tuple[Graph, Graph], form: Form, weighted: bool
) -> Graph:
    forward, backward = pair
    head = Head(objective, dict(forward.outputs), form.layout, weighted=weighted, half=form.half)
    graph = join(forward, backward, head)
    if form.masks == "hard_sigmoid":
        _hard_sigmoid_masks(graph)
    if form.rounded_maxima:
        round_maxima(graph)
    if form.split_image:
        split_image(graph)
    if form.last_layer == "conv_transpose":
        _transpose_last_layer(graph)
    if form.last_layer == "fours":
        _last_layer_in_fours(graph)
    if form.blocked_gradients:
        _block_tap_gradients(graph, taps, forward.outputs)
    if form.winograd:
        use_winograd(graph, form.winograd)
    graph.remove_dead()
    return graph


def step_graphs(encoder: Encoder, taps: Sequence[str], shape: Shape) -> tuple[Graph, Graph]:
    """Forward and backward graph of a step, in float32, without what no provider needs."""
    forward, backward = graph_pair(encoder, taps, shape)
    with usable(encoder, "its pair of graphs"):
        _fold_pooling_factor(backward)
    return forward, backward


def _pixel_graphs(
    encoder: Encoder, taps: Sequence[str], shape: Shape, *, half: bool
) -> tuple[Graph, Graph]:
    """The same with fewer passes over maps, of a centred image, with pixels of 16 bytes."""
    forward, backward = step_graphs(encoder, taps, shape)
    with usable(encoder, "its pair of graphs"):
        count_cells(backward)
        mask_maxima(backward)
        read_centred(forward)
        pad_pixels(forward, backward, half=half)
        if half:
            read_parts(forward)
            to_half(forward)
            to_half(backward)
    return forward, backward


def turned_graphs(
    encoder: Encoder, taps: Sequence[str], shape: Shape, *, half: bool
) -> tuple[Graph, Graph]:
    """Forward and backward graph of a step on a GPU: the channels of all values last.

    ``image`` and ``d_image`` are (N, H, W, 4), in float16 (N, H, W, 8), as in ``fused_graph``.
    """
    forward, backward = _pixel_graphs(encoder, taps, shape, half=half)
    with usable(encoder, "its pair of graphs"):
        turn(forward)
        turn(backward)
    return forward, backward


def chain_of(
    encoder: Encoder, taps: Sequence[str], shape: Shape, *, half: bool
) -> list[Layer] | None:
    """The layers of a step as ``turned_graphs`` has them; None where the encoder is no chain."""
    return chain(*_pixel_graphs(encoder, taps, shape, half=half))


def statistics_graph(encoder: Encoder, objective: Objective, shape: Shape, form: Form) -> Graph:
    """Forward graph for what the terms compare: no feature map leaves it but the contents'.

    Inputs: ``image`` (N, 3, H, W), weights and normalizers. Outputs: ``moments_<tap>``
    (N, C+1, C+1) and ``content_<tap>`` (N, C, H/s, W/s) features. The form's layout of the
    products is used.
    """
    graph = feature_graph(encoder, objective.taps, shape)
    statistics(graph, objective, dict(graph.outputs), form.layout)
    return graph


def _fold_pooling_factor(graph: Graph) -> None:
    """Move the 1/4 of average pooling's VJP into the weights of the convolution before it."""
    producers = graph.producers()
    for node in [n for n in graph.nodes if n.op_type == "Mul"]:
        resize = producers.get(node.input[0])
        if resize is None or resize.op_type != "Resize":
            continue
        conv = producers[resize.input[0]]
        if conv.op_type != "Conv":
            continue
        factor = graph.constants[node.input[1]]
        conv.input[1] = graph.constant(graph.constants[conv.input[1]] * factor)
        graph.nodes.remove(node)
        graph.rename(node.output[0], resize.output[0])


def _hard_sigmoid_masks(graph: Graph) -> None:
    """Write every Where of the VJP as a product with a 0/1 mask."""
    producers = graph.producers()
    masks: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        condition = producers.get(node.input[0]) if node.op_type == "Where" else None
        if condition is None:
            nodes.append(node)
            continue
        name = condition.output[0]
        if name not in masks:
            made = _mask(graph, condition, producers)
            masks[name] = made[-1].output[0]
            nodes += made
        nodes.append(graph.node("Mul", [node.input[1], masks[name]], node.output[0]))
    graph.nodes = nodes


def _mask(
    graph: Graph, condition: NodeProto, producers: Mapping[str, NodeProto]
) -> list[NodeProto]:
    """What makes 1 where a condition holds and 0 elsewhere; the last node's output is the mask."""
    if condition.op_type == "Greater":  # ReLU: activation > 0
        return [graph.node("HardSigmoid", [condition.input[0]], alpha=STEEP, beta=0.0)]
    activation, upsampled = condition.input  # max pooling: activation = its window's maximum
    resize = producers[upsampled]
    minus_one = graph.constant(np.full((1, 1, 1, 1), -1.0, np.float32))
    negative = graph.node("Mul", [resize.input[0], minus_one])
    up = graph.node("Resize", [negative.output[0], "", resize.input[2]])
    up.attribute.extend(resize.attribute)
    add = graph.node("Add", [activation, up.output[0]])
    mask = graph.node("HardSigmoid", [add.output[0]], alpha=STEEP, beta=1.0)
    return [negative, up, add, mask]


def round_maxima(graph: Graph) -> None:
    """Round to bfloat16 what max pooling's VJP compares with the maximum of its window."""
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "Equal":
            rounded = graph.node("Cast", [node.input[0]], to=TensorProto.BFLOAT16)
            back = graph.node("Cast", [rounded.output[0]], to=TensorProto.FLOAT)
            node.input[0] = back.output[0]
            nodes += [rounded, back]
        nodes.append(node)
    graph.nodes = nodes


def split_image(graph: Graph) -> None:
    """Write the centred image x as [c, x − c] with c = round(128 x) / 128, weights repeated.

    c has eight bits for |x| ≤ 2 and is exact in bfloat16, the rest keeps eight more.
    """
    (centre,) = graph.consumers()[IMAGE]
    (first,) = (n for n in graph.consumers()[centre.output[0]] if n.op_type == "Conv")
    steps = graph.float_constant(128.0)
    scaled = graph.node("Mul", [centre.output[0], steps])
    rounded = graph.node("Round", [scaled.output[0]])
    coarse = graph.node("Div", [rounded.output[0], steps])
    fine = graph.node("Sub", [centre.output[0], coarse.output[0]])
    both = graph.node("Concat", [coarse.output[0], fine.output[0]], axis=1)
    place = graph.nodes.index(first)
    graph.nodes[place:place] = [scaled, rounded, coarse, fine, both]
    weights = graph.constants[first.input[1]]
    first.input[0] = both.output[0]
    first.input[1] = graph.constant(np.concatenate([weights, weights], axis=1))


def _transpose_last_layer(graph: Graph) -> None:
    """Write the convolution that ends in the image as a ConvTranspose of the forward weights."""
    producers = graph.producers()
    node = producers[IMAGE_GRADIENT]
    flipped = graph.constants[node.input[1]]
    weights = np.ascontiguousarray(flipped[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    index = graph.nodes.index(node)
    graph.nodes[index] = graph.node(
        "ConvTranspose", [node.input[0], graph.constant(weights)], IMAGE_GRADIENT, pads=[1, 1, 1, 1]
    )


def _last_layer_in_fours(graph: Graph) -> None:
    """Write the convolution that ends in the image so that it makes four pixels of a row at once.

    A 3×6 kernel of stride (1, 4) holds the 3×3 weights at four places: half the multiplications of
    three channels padded to sixteen. Where the width is no multiple of four, the convolution stays.
    """
    n, colours, height, width = graph.outputs[IMAGE_GRADIENT]
    if width % 4:
        return
    node = graph.producers()[IMAGE_GRADIENT]
    weights = graph.constants[node.input[1]]
    fours = np.zeros((4, *weights.shape[:3], 6), np.float32)
    for column in range(4):
        fours[column, ..., column : column + 3] = weights
    kernels = graph.constant(fours.reshape(-1, *fours.shape[2:]))
    conv = graph.node("Conv", [node.input[0], kernels], pads=[1, 1, 1, 1], strides=[1, 4])
    # With the channels last, four pixels of three channels and one of twelve are the same memory.
    last = graph.node("Transpose", [conv.output[0]], perm=[0, 2, 3, 1])
    shape = graph.shape_constant(n, height, width, colours)
    pixels = graph.node("Reshape", [last.output[0], shape])
    first = graph.node("Transpose", [pixels.output[0]], IMAGE_GRADIENT, perm=[0, 3, 1, 2])
    place = graph.nodes.index(node)
    graph.nodes[place : place + 1] = [conv, last, pixels, first]


def _block_tap_gradients(
    graph: Graph, taps: Sequence[str], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Send each tap gradient through a depthwise 1×1 convolution of ones."""
    for tap in taps:
        name = gradient_name(tap)
        channels = shapes[tap][1]
        ones = graph.constant(np.ones((channels, 1, 1, 1), np.float32))
        node = graph.node("Conv", [name, ones], group=channels)
        graph.rename(name, node.output[0])
        node.input[0] = name
        producer = graph.producers()[name]
        graph.nodes.insert(graph.nodes.index(producer) + 1, node)
