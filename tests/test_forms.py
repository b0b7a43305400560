"""Every form of the fused step is the same mathematics."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
import torch_reference
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_reference import waves

from nst_fast.config import StyleSettings
from nst_fast.forms import FORMS, Form, fused_graph
from nst_fast.losses import Objective
from nst_fast.runtime import Session

# 48 × 32 pixels: 16384 leaves every Gram product whole, 200 cuts 1536 pixels in 8 and 384 in 2.
SPLITS = {"channels_first": (0,), "channels_last": (0, 200)}
ALL_FORMS = [
    Form(masks, last_layer, gram, split, image, blocked)
    for masks, last_layer, gram, image, blocked in itertools.product(
        ("where", "hard_sigmoid"),
        ("conv", "conv_transpose", "fours"),
        ("channels_first", "channels_last"),
        (False, True),
        (False, True),
    )
    for split in SPLITS[gram]
]
SHAPE = (2, 48, 32)
TAPS = ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu4_1", "relu4_2",
        "relu5_1")  # fmt: skip


@dataclass(frozen=True)
class Problem:
    image: np.ndarray
    style: dict[str, np.ndarray]
    content: dict[str, np.ndarray]
    coefficients: np.ndarray
    objective: Objective
    gradient: np.ndarray
    terms: np.ndarray


def make_problem(pack, style: list[str], content: list[str], seed: int, shape=SHAPE) -> Problem:
    """Targets, coefficients that differ for each image and term, and the answer in float64."""
    n, height, width = shape
    objective = Objective.from_settings(
        StyleSettings(
            style_layers=dict.fromkeys(style, 1.0),
            content_layers=dict.fromkeys(content, 1.0),
            style_weight=1.0,
            content_weight=1.0,
            tv_weight=0.0,
            range_weight=0.0,
            normalization="gram",
        ),
        pack.encoder,
    )
    network = pack.network
    image = network.clear_image(waves(seed, n, 3, height, width), seed)
    styles = torch_reference.style_targets(network, waves(seed + 1, n, 3, 32, 32), objective.style)
    contents = torch_reference.content_targets(
        network, waves(seed + 2, n, 3, height, width), objective.content
    )
    rng = np.random.default_rng(seed)
    count = len(objective.style) + len(objective.content)
    factors = rng.uniform(0.5, 2.0, (n, count)).astype(np.float32)
    x = torch_reference.tensor(image).requires_grad_()
    found = torch_reference.terms(network, objective, x, styles, contents)
    values = [found[name] for name in objective.names()[:count]]
    total = sum(
        (torch_reference.tensor(f) * v).sum() for f, v in zip(factors.T, values, strict=True)
    )
    total.backward()
    terms = np.stack([v.detach().numpy() for v in values], axis=1)
    return Problem(image, styles, contents, factors, objective, x.grad.numpy(), terms)


@pytest.fixture(scope="module")
def problem(pack) -> Problem:
    """Style and content at one tap, content at a shallow one, the deepest tap behind a pooling."""
    style = ["relu1_1", "relu2_1", "relu4_2", "relu5_1"]
    return make_problem(pack, style, ["relu3_2", "relu4_2"], seed=5)


def check(
    pack, problem: Problem, form: Form, tolerance: float = 1e-4, shape=SHAPE, **where
) -> None:
    graph = fused_graph(
        pack.encoder, list(problem.objective.style), list(problem.objective.content), shape, form
    )
    options = {"provider": "cpu", "precision": "fp32"} | where
    session = Session(graph, threads=1, **options)
    sources = {"image": problem.image, "coefficients": problem.coefficients}
    sources |= {f"style_{tap}": value for tap, value in problem.style.items()}
    sources |= {f"content_{tap}": value for tap, value in problem.content.items()}
    assert set(session.inputs) == set(sources)
    for name, value in sources.items():
        np.copyto(session.inputs[name], value)
    session.run()
    assert set(session.outputs) == {"d_image", "terms"}
    assert_close(session.outputs["d_image"], problem.gradient, tolerance)
    for column in range(problem.terms.shape[1]):
        assert_close(session.outputs["terms"][:, column], problem.terms[:, column], tolerance)


@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda f: "-".join(map(str, vars(f).values())))
def test_every_form_on_the_cpu_provider(pack, problem, form):
    check(pack, problem, form)


def test_winograd_on_the_cpu_provider(pack, problem):
    """At every width: maps of odd sides and narrow layers among them keep their convolution."""
    for channels in (1, 64):
        check(pack, problem, replace(FORMS["cpu", "fp32"], winograd=channels))


@pytest.mark.parametrize("width", [17, 18, 20])
def test_four_pixels_at_once_at_every_width(average_pack, width):
    """Shallow taps take pictures of any sides; a width of no multiple of four has no fours."""
    shape = (1, 19, width)
    shallow = make_problem(average_pack, ["relu1_1"], ["relu1_2"], seed=width, shape=shape)
    form = replace(FORMS["cpu", "fp32"], last_layer="fours")
    check(average_pack, shallow, form, shape=shape)


def test_the_form_of_openvino_on_openvino(pack, problem, backend):
    backend("openvino", "fp32")
    check(pack, problem, FORMS["openvino", "fp32"], 1e-3, provider="openvino")
    split = replace(FORMS["openvino", "fp32"], split_pixels=200)
    check(pack, problem, split, 1e-3, provider="openvino")


@given(
    style=st.sets(st.sampled_from(TAPS)),
    content=st.sets(st.sampled_from(TAPS), max_size=3),
    form=st.sampled_from([form for form in FORMS.values() if not form.half]),
    shape=st.sampled_from([(1, 16, 16), (1, 32, 16), (2, 16, 32), (3, 16, 16)]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=15)
def test_any_taps(pack, style, content, form, shape, seed):
    """Style alone, content alone, both at one tap, and images so small that P < C."""
    if not style | content:
        style = {"relu5_1"}
    problem = make_problem(pack, sorted(style), sorted(content), seed, shape)
    check(pack, problem, form, shape=shape)


@pytest.mark.parametrize("name", FORMS)
def test_fused_graphs_are_valid_onnx(pack, name):
    graph = fused_graph(pack.encoder, ["relu1_1", "relu5_1"], ["relu4_2"], SHAPE, FORMS[name])
    onnx.checker.check_model(onnx.load_from_string(graph.to_model()), full_check=True)


def test_forms_say_what_they_do(average_pack):
    """Each choice leaves its trace in the graph; else the test of every form tests one form."""

    def operators(**changes) -> list[str]:
        form = replace(Form("where", "conv", "channels_first"), **changes)
        graph = fused_graph(average_pack.encoder, ["relu2_1"], ["relu1_2"], SHAPE, form)
        return [node.op_type for node in graph.nodes]

    plain = operators()
    assert "Where" in plain
    assert not {"HardSigmoid", "ConvTranspose", "Round"} & set(plain)
    sigmoid = operators(masks="hard_sigmoid")
    assert "Where" not in sigmoid
    assert sigmoid.count("HardSigmoid") == plain.count("Where")
    assert operators(last_layer="conv_transpose").count("ConvTranspose") == 1
    assert operators(last_layer="fours").count("Transpose") == plain.count("Transpose") + 2
    assert operators(split_image=True).count("Round") == 1
    assert operators(blocked_gradients=True).count("Conv") == plain.count("Conv") + 2
    assert operators(winograd=64).count("DepthToSpace") == 0  # no layer so wide up to relu2_1
    assert operators(winograd=16).count("DepthToSpace") == 4  # conv1_2 and conv2_1, both ways
    last = operators(gram="channels_last")
    split = operators(gram="channels_last", split_pixels=100)
    assert split.count("ReduceSum") == last.count("ReduceSum") + 1


def test_average_pooling_costs_no_multiplication(average_pack):
    """The 1/4 of its VJP is in the weights; only the loss head multiplies."""
    style = ["relu1_1"]
    shallow = fused_graph(average_pack.encoder, style, [], SHAPE, FORMS["openvino", "fp32"])
    deep = fused_graph(
        average_pack.encoder, [*style, "relu5_1"], [], SHAPE, FORMS["openvino", "fp32"]
    )

    def multiplications(graph) -> int:
        return sum(node.op_type == "Mul" for node in graph.nodes)

    per_tap = multiplications(deep) - multiplications(shallow)
    one_more = fused_graph(
        average_pack.encoder, [*style, "relu1_2"], [], SHAPE, FORMS["openvino", "fp32"]
    )
    assert per_tap == multiplications(one_more) - multiplications(shallow)
