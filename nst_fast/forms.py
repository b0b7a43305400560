"""The fused step in the form that each provider runs fastest: one mathematics, several graphs.

A step is forward ∘ Gram head ∘ backward. The same values come out of every form; what
differs is which operators carry the ReLU masks, how the Gram matrix views the features, and
how the last convolution is written. docs/architecture.md tells what each form is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto

from nst_fast.encoders import Encoder
from nst_fast.graphs import (
    IMAGE,
    IMAGE_GRADIENT,
    Graph,
    Shape,
    backward_graph,
    feature_graph,
    gradient_name,
    join,
)
from nst_fast.half import read_parts, to_half
from nst_fast.runtime import Precision, Provider
from nst_fast.winograd import use_winograd

TERMS = "terms"
COEFFICIENTS = "coefficients"
LOSS_SCALE = "loss_scale"
STEEP = 1e30  # slope that turns HardSigmoid into a step function


def target_name(tap: str, kind: Literal["style", "content"]) -> str:
    """Name of the input that holds a tap's target."""
    return f"{kind}_{tap}"


def mask_name(tap: str) -> str:
    """Name of the input that a tap's features are multiplied by."""
    return f"mask_{tap}"


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
        gram: view of the features in the Gram products: "channels_first", (C, P), or
            "channels_last", (P, C), which is OpenVINO's own layout.
        split_pixels: P is cut so that each partial Gram product sums about this many pixels;
            0 leaves it whole.
        split_image: feed the first convolution the image as a coarse and a fine part, each
            exact in bfloat16; an edge is a small difference of large values.
        blocked_gradients: pass tap gradients through a depthwise 1×1 convolution of ones, so
            that the CPU provider reorders them there and the additions stay blocked.
        half: the encoder computes in float16; the loss head stays in float32, and the tap
            gradients are multiplied by the loss scale before they are rounded.
        winograd: channels from which a 3×3 convolution is written with fewer multiplications
            (``nst_fast.winograd``); 0 writes none so.
    """

    masks: Literal["where", "hard_sigmoid"]
    last_layer: Literal["conv", "conv_transpose", "fours"]
    gram: Literal["channels_first", "channels_last"]
    split_pixels: int = 0
    split_image: bool = False
    blocked_gradients: bool = False
    half: bool = False
    winograd: int = 0


_OPENVINO = Form("where", "fours", "channels_last", split_pixels=16384)
_GPU: tuple[tuple[Provider, Precision], ...] = (
    ("cuda", "fp32"),
    ("cuda", "tf32"),
    ("cuda", "fp16"),
    ("tensorrt", "tf32"),
    ("tensorrt", "fp16"),
)
FORMS: dict[tuple[Provider, Precision], Form] = {
    ("cpu", "fp32"): Form(
        "hard_sigmoid", "conv_transpose", "channels_first", blocked_gradients=True
    ),
    ("openvino", "fp32"): replace(_OPENVINO, winograd=256),
    ("openvino", "bf16"): replace(_OPENVINO, split_image=True),
    **{
        (provider, precision): Form("where", "conv", "channels_first", half=precision == "fp16")
        for provider, precision in _GPU
    },
}


def fused_graph(
    encoder: Encoder,
    style_taps: Sequence[str],
    content_taps: Sequence[str],
    shape: Shape,
    form: Form,
) -> Graph:
    """Compose the whole step: image, targets and coefficients in, gradient and terms out.

    Inputs: ``image`` (N, 3, H, W); ``style_<tap>`` (N, C, C) target Gram matrices;
    ``content_<tap>`` (N, C, H/s, W/s) target features; ``coefficients`` (N, K), the weight of
    each term. Outputs: ``d_image`` (N, 3, H, W); ``terms`` (N, K), unweighted:
    ‖G − T‖²_F per style tap, then the mean of (F − F_content)² per content tap. In float16,
    ``image`` is (N, 6, H, W) as ``half.split`` makes it, ``d_image`` is float16 too, and multiplied
    by one more input, ``loss_scale`` (N,).
    """
    taps = [tap for tap in encoder.taps if tap in {*style_taps, *content_taps}]
    backward = backward_graph(encoder, taps, shape)
    activations = [name for name in backward.inputs if name in encoder.taps]
    forward = feature_graph(encoder, {*activations, *taps}, shape)
    if form.half:
        read_parts(forward)
        to_half(forward)
        to_half(backward)
    head = _Head(shape[0], style_taps, content_taps, dict(forward.outputs), form)
    graph = join(forward, backward, head)
    _fold_pooling_factor(graph)
    if form.masks == "hard_sigmoid":
        _hard_sigmoid_masks(graph)
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


def statistics_graph(
    encoder: Encoder,
    style_taps: Sequence[str],
    content_taps: Sequence[str],
    shape: Shape,
    form: Form,
    *,
    masked: bool = False,
) -> Graph:
    """Forward graph for what the terms compare: no feature map leaves it but the contents'.

    Input: ``image`` (N, 3, H, W). Outputs: ``style_<tap>`` (N, C, C) Gram matrices;
    ``content_<tap>`` (N, C, H/s, W/s) features. The form's view of the Gram products is used.
    Where it is ``masked`` there are inputs ``mask_<tap>`` (1, 1, H/s, W/s), too, which the features
    are multiplied by for the Gram matrices.
    """
    graph = feature_graph(encoder, dict.fromkeys((*style_taps, *content_taps)), shape)
    shapes, graph.outputs = graph.outputs, {}
    head = _Head(shape[0], style_taps, content_taps, shapes, form)
    for tap in style_taps:
        n, channels = shapes[tap][:2]
        features = tap
        if masked:
            graph.inputs[mask_name(tap)] = (1, 1, *shapes[tap][2:])
            features = graph.add("Mul", [tap, mask_name(tap)])
            shapes[features] = shapes[tap]
        _, gram = head.gram(graph, features)
        name = graph.add("Identity", [gram], target_name(tap, "style"))
        graph.outputs[name] = (n, channels, channels)
    for tap in content_taps:
        name = graph.add("Identity", [tap], target_name(tap, "content"))
        graph.outputs[name] = shapes[tap]
    return graph


class _Head:
    """Adds the loss head to a graph: Gram products, content differences, tap gradients."""

    def __init__(
        self,
        batch: int,
        style_taps: Sequence[str],
        content_taps: Sequence[str],
        shapes: dict[str, tuple[int, ...]],
        form: Form,
    ) -> None:
        self.batch = batch
        self.style_taps = style_taps
        self.content_taps = content_taps
        self.shapes = shapes
        self.form = form

    def __call__(self, graph: Graph) -> None:
        kinds = [("style", t) for t in self.style_taps] + [
            ("content", t) for t in self.content_taps
        ]
        graph.inputs[COEFFICIENTS] = (self.batch, len(kinds))
        graph.outputs[TERMS] = (self.batch, len(kinds))
        terms: list[str] = []
        gradients: dict[str, list[str]] = {}
        for index, (kind, tap) in enumerate(kinds):
            coefficient = graph.add(
                "Slice",
                [COEFFICIENTS, *(graph.shape_constant(v) for v in (index, index + 1, 1))],
            )
            add_term = self._style if kind == "style" else self._content
            term, gradient = add_term(graph, tap, coefficient)
            terms.append(term)
            gradients.setdefault(tap, []).append(gradient)
        graph.add("Concat", terms, TERMS, axis=1)
        for tap, parts in gradients.items():
            op = "Add" if len(parts) == 2 else "Identity"
            if self.form.half:
                self._to_half(graph, graph.add(op, parts), gradient_name(tap))
            else:
                graph.add(op, parts, gradient_name(tap))

    def _to_half(self, graph: Graph, gradient: str, output: str) -> None:
        """Multiply by the loss scale and round to float16."""
        graph.inputs[LOSS_SCALE] = (self.batch,)
        shape = graph.shape_constant(self.batch, 1, 1, 1)
        scale = graph.add("Reshape", [LOSS_SCALE, shape])
        scaled = graph.add("Mul", [gradient, scale])
        graph.add("Cast", [scaled], output, to=TensorProto.FLOAT16)

    def _features(self, graph: Graph, tap: str) -> str:
        """The tap in float32."""
        return graph.add("Cast", [tap], to=TensorProto.FLOAT) if self.form.half else tap

    def _scaled(self, graph: Graph, coefficient: str, factor: float, rank: int) -> str:
        """The (N, 1) coefficient times a constant, as (N, 1, …, 1) of ``rank`` dimensions."""
        scaled = graph.add("Mul", [coefficient, graph.float_constant(factor)])
        shape = graph.shape_constant(self.batch, *(1,) * (rank - 1))
        return graph.add("Reshape", [scaled, shape])

    def _sum_of_squares(self, graph: Graph, x: str, rank: int) -> str:
        """Σ x² of each image, (N, 1)."""
        square = graph.add("Mul", [x, x])
        axes = graph.shape_constant(*range(1, rank))
        total = graph.add("ReduceSum", [square, axes], keepdims=0)
        return graph.add("Reshape", [total, graph.shape_constant(self.batch, 1)])

    def gram(self, graph: Graph, tap: str) -> tuple[str, str]:
        """The features of a tap as a matrix, in the form's view, and their Gram matrix."""
        n, channels, height, width = self.shapes[tap]
        last = self.form.gram == "channels_last"
        features = self._features(graph, tap)
        pixels = height * width
        if last:
            features = graph.add("Transpose", [features], perm=[0, 2, 3, 1])
        matrix_shape = (n, pixels, channels) if last else (n, channels, pixels)
        matrix = graph.add("Reshape", [features, graph.shape_constant(*matrix_shape)])
        product = self._gram(graph, matrix, matrix_shape)
        count = channels * pixels
        return matrix, graph.add("Mul", [product, graph.float_constant(1.0 / count)])

    def _style(self, graph: Graph, tap: str, coefficient: str) -> tuple[str, str]:
        n, channels, height, width = self.shapes[tap]
        count = channels * height * width
        target = target_name(tap, "style")
        graph.inputs[target] = (n, channels, channels)
        last = self.form.gram == "channels_last"
        matrix, scaled = self.gram(graph, tap)
        residual = graph.add("Sub", [scaled, target])
        term = self._sum_of_squares(graph, residual, 3)
        factor = self._scaled(graph, coefficient, 4.0 / count, 3)
        weighted = graph.add("Mul", [residual, factor])
        product = graph.add("MatMul", [matrix, weighted] if last else [weighted, matrix])
        if not last:
            shape = graph.shape_constant(n, channels, height, width)
            return term, graph.add("Reshape", [product, shape])
        shape = graph.shape_constant(n, height, width, channels)
        image = graph.add("Reshape", [product, shape])
        return term, graph.add("Transpose", [image], perm=[0, 3, 1, 2])

    def _gram(self, graph: Graph, matrix: str, shape: tuple[int, int, int]) -> str:
        """Σ_p f_p f_pᵀ, (N, C, C)."""
        if self.form.gram == "channels_first":
            transposed = graph.add("Transpose", [matrix], perm=[0, 2, 1])
            return graph.add("MatMul", [matrix, transposed])
        n, pixels, channels = shape
        parts = _parts(pixels, self.form.split_pixels)
        if parts == 1:
            transposed = graph.add("Transpose", [matrix], perm=[0, 2, 1])
            return graph.add("MatMul", [transposed, matrix])
        split_shape = graph.shape_constant(n, parts, pixels // parts, channels)
        split = graph.add("Reshape", [matrix, split_shape])
        transposed = graph.add("Transpose", [split], perm=[0, 1, 3, 2])
        partial = graph.add("MatMul", [transposed, split])
        return graph.add("ReduceSum", [partial, graph.shape_constant(1)], keepdims=0)

    def _content(self, graph: Graph, tap: str, coefficient: str) -> tuple[str, str]:
        shape = self.shapes[tap]
        count = int(np.prod(shape[1:]))
        target = target_name(tap, "content")
        graph.inputs[target] = shape
        difference = graph.add("Sub", [self._features(graph, tap), target])
        total = self._sum_of_squares(graph, difference, 4)
        term = graph.add("Mul", [total, graph.float_constant(1.0 / count)])
        factor = self._scaled(graph, coefficient, 2.0 / count, 4)
        return term, graph.add("Mul", [difference, factor])


def _parts(pixels: int, per_part: int) -> int:
    """Into how many equal parts to cut P: a power of two that divides it."""
    parts = 1
    while per_part and pixels // parts > per_part and pixels % (2 * parts) == 0:
        parts *= 2
    return parts


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
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        condition = producers.get(node.input[0]) if node.op_type == "Where" else None
        if condition is None:
            nodes.append(node)
            continue
        if condition.op_type == "Greater":  # ReLU: activation > 0
            difference, beta = condition.input[0], 0.0
        else:  # max pooling: activation = its window's maximum
            activation, upsampled = condition.input
            resize = producers[upsampled]
            minus_one = graph.constant(np.full((1, 1, 1, 1), -1.0, np.float32))
            negative = graph.node("Mul", [resize.input[0], minus_one])
            up = graph.node("Resize", [negative.output[0], "", resize.input[2]])
            up.attribute.extend(resize.attribute)
            add = graph.node("Add", [activation, up.output[0]])
            nodes += [negative, up, add]
            difference, beta = add.output[0], 1.0
        mask = graph.node("HardSigmoid", [difference], alpha=STEEP, beta=beta)
        nodes += [mask, graph.node("Mul", [node.input[1], mask.output[0]], node.output[0])]
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
