"""Every form of the fused step is the same mathematics."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from closeness import assert_close
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import LOSSES, Problem, make_objective
from problems import make_problem as solve
from torch_reference import waves

from nst_fast.gradient_check import gradient_error
from nst_fast.graph.forms import FORMS, Form, fused_graph, statistics_graph, step_graphs
from nst_fast.graph.parts import graph_pair
from nst_fast.losses import make_goal
from nst_fast.losses.head import NORMALIZERS, PULLS, constant_name, content_name, weights_name
from nst_fast.losses.moments import Layout
from nst_fast.runtime import Session

# 48 × 32 pixels: 16384 leaves every Gram product whole, 200 cuts 1536 pixels in 8 and 384 in 2.
LAYOUTS = (Layout(), Layout(channels_last=True), Layout(channels_last=True, split_pixels=200))
ALL_FORMS = [
    Form(masks, last_layer, layout, image, blocked)
    for masks, last_layer, layout, image, blocked in itertools.product(
        ("where", "hard_sigmoid"),
        ("conv", "conv_transpose", "fours"),
        LAYOUTS,
        (False, True),
        (False, True),
    )
]
SHAPE = (2, 48, 32)
TAPS = ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu4_1", "relu4_2",
        "relu5_1")  # fmt: skip
PLAIN = {"tv_weight": 0.0, "range_weight": 0.0, "content_weight": 1.0}


def objective_of(encoder, style, content, **changes):
    layers = {"style_layers": dict.fromkeys(style, 1.0)}
    layers["content_layers"] = dict.fromkeys(content, 1.0)
    return make_objective(encoder, **PLAIN, **layers, **changes)


def make_problem(
    pack, style, content, seed: int, shape=SHAPE, *, opaque: bool = True, **changes
) -> Problem:
    """Targets of its own for each image, and the answer in float64."""
    n, height, width = shape
    objective = objective_of(pack.encoder, style, content, **changes)
    image = pack.network.clear_image(waves(seed, n, 3, height, width), seed)
    pictures = waves(seed + 2, n, 3, height, width), waves(seed + 1, n, 3, 32, 32)
    opacity = np.random.default_rng(seed).random((n, height, width), np.float32)
    return solve(pack, objective, image, *pictures, opacity=(None,) if opaque else opacity)


@pytest.fixture(scope="module")
def problem(pack) -> Problem:
    """Style and content at one tap, content at a shallow one, the deepest tap behind a pooling."""
    style = ["relu1_1", "relu2_1", "relu4_2", "relu5_1"]
    return make_problem(pack, style, ["relu3_2", "relu4_2"], seed=5)


def check(
    pack, problem: Problem, form: Form, tolerance: float = 1e-5, weighted: bool = False, **where
) -> None:
    objective, image = problem.objective, problem.image
    shape = len(image), *image.shape[2:]
    graph = fused_graph(pack.encoder, objective, shape, form, weighted=weighted)
    options = {"provider": "cpu", "precision": "fp32"} | where
    session = Session(graph, threads=1, **options)
    goal = make_goal(objective, pack.encoder, problem.targets, problem.weights, len(image))
    sources = {"image": image, NORMALIZERS: goal.normalizers, PULLS: goal.pulls}
    if weighted:
        sources |= {weights_name(tap): m[:, None] for tap, m in goal.weights.items()}
    sources |= {content_name(tap): value for tap, value in goal.content.items()}
    for tap, constants in goal.constants.items():
        sources |= {constant_name(name, tap): value for name, value in constants.items()}
    assert set(session.inputs) == set(sources)
    for name, value in sources.items():
        np.copyto(session.inputs[name], value, casting="same_kind")
    session.run()
    assert set(session.outputs) == {"d_image", "terms"}
    assert_close(session.outputs["d_image"], problem.gradient, tolerance)
    terms = session.outputs["terms"] * goal.factors
    for column in range(terms.shape[1]):
        assert_close(terms[:, column], problem.terms[:, column], tolerance)


@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda f: "-".join(map(str, vars(f).values())))
def test_every_form_on_the_cpu_provider(pack, problem, form):
    check(pack, problem, form)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_layout_with_weights(average_pack, layout, loss):
    given = make_problem(
        average_pack, ["relu1_1", "relu3_1"], ["relu2_1"], 7, opaque=False, style_loss=loss
    )
    form = replace(FORMS["cpu", "fp32"], layout=layout)
    check(average_pack, given, form, weighted=True)


def test_winograd_on_the_cpu_provider(pack, problem):
    """At every width: maps of odd sides and narrow layers among them keep their convolution."""
    for channels in (1, 64):
        check(pack, problem, replace(FORMS["cpu", "fp32"], winograd=channels))


@pytest.mark.parametrize("width", [17, 18, 20])
def test_four_pixels_at_once_at_every_width(average_pack, width):
    """Shallow taps take pictures of any sides; a width of no multiple of four has no fours."""
    shape = (1, 19, width)
    shallow = make_problem(average_pack, ["relu1_1"], ["relu1_2"], seed=width, shape=shape)
    check(average_pack, shallow, replace(FORMS["cpu", "fp32"], last_layer="fours"))


def test_the_form_of_openvino_on_openvino(pack, problem, backend):
    backend("openvino", "fp32")
    form = FORMS["openvino", "fp32"]
    check(pack, problem, form, 1e-3, provider="openvino")
    split = replace(form, layout=Layout(channels_last=True, split_pixels=200))
    check(pack, problem, split, 1e-3, provider="openvino")
    for loss in ("gram", "whitened"):
        taps = ["relu1_1", "relu3_1"], ["relu2_1"]
        given = make_problem(pack, *taps, 7, opaque=False, style_loss=loss)
        check(pack, given, split, 1e-3, weighted=True, provider="openvino")


@given(
    style=st.sets(st.sampled_from(TAPS)),
    content=st.sets(st.sampled_from(TAPS), max_size=3),
    form=st.sampled_from(
        [replace(f, rounded_maxima=False, pixels=False) for f in FORMS.values() if not f.half]
    ),
    shape=st.sampled_from([(1, 16, 16), (1, 32, 16), (2, 16, 32), (3, 16, 16)]),
    seed=st.integers(0, 2**20),
    loss=st.sampled_from(LOSSES),
    weighted=st.booleans(),
)
@settings(max_examples=15)
def test_any_taps(pack, style, content, form, shape, seed, loss, weighted):
    """Style alone, content alone, both at one tap, and images so small that P < C."""
    if not style | content:
        style = {"relu5_1"}
    # A style of one cell has no covariance, and a ridge of another kind.
    assume(loss != "wasserstein" or max(shape[1:]) > 16)
    given = make_problem(
        pack, sorted(style), sorted(content), seed, shape, opaque=not weighted, style_loss=loss
    )
    check(pack, given, form, 1e-4, weighted)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_graphs_are_valid_onnx(average_pack, name, loss):
    encoder, form = average_pack.encoder, FORMS[name]
    objective = objective_of(encoder, ["relu1_1", "relu5_1"], ["relu4_2"], style_loss=loss)
    graphs = [fused_graph(encoder, objective, SHAPE, form, weighted=w) for w in (False, True)]
    for graph in (*graphs, statistics_graph(encoder, objective, SHAPE, form)):
        onnx.checker.check_model(onnx.load_from_string(graph.to_model()), full_check=True)


@pytest.mark.parametrize("plan", ["fused", "split"])
def test_windows_find_their_maxima_in_bfloat16(max_pack, backend, plan):
    """OpenVINO compares what it has not rounded yet with maxima that are; most would be missed."""
    where = backend("openvino", "bf16")
    objective = objective_of(max_pack.encoder, ["relu1_1", "relu3_1"], ["relu4_2"])
    assert gradient_error(max_pack.encoder, objective, where, plan) < 0.2


def operators(encoder, form, style, content=()) -> list[str]:
    objective = objective_of(encoder, style, content)
    graph = fused_graph(encoder, objective, SHAPE, form, weighted=False)
    return [node.op_type for node in graph.nodes]


def test_forms_say_what_they_do(average_pack):
    """Each choice leaves its trace in the graph; else the test of every form tests one form."""

    def changed(**changes) -> list[str]:
        form = replace(Form("where", "conv", Layout()), **changes)
        return operators(average_pack.encoder, form, ["relu2_1"], ["relu1_2"])

    plain = changed()
    assert "Where" in plain
    assert not {"HardSigmoid", "ConvTranspose", "Round"} & set(plain)
    sigmoid = changed(masks="hard_sigmoid")
    assert "Where" not in sigmoid
    assert sigmoid.count("HardSigmoid") == plain.count("Where")
    assert changed(last_layer="conv_transpose").count("ConvTranspose") == 1
    assert changed(last_layer="fours").count("Transpose") == plain.count("Transpose") + 2
    assert changed(split_image=True).count("Round") == 1
    assert changed(blocked_gradients=True).count("Conv") == plain.count("Conv") + 2
    assert changed(winograd=64).count("DepthToSpace") == 0  # no layer so wide up to relu2_1
    assert changed(winograd=16).count("DepthToSpace") == 4  # conv1_2 and conv2_1, both ways
    last = changed(layout=LAYOUTS[1])
    split = changed(layout=Layout(channels_last=True, split_pixels=100))
    assert split.count("ReduceSum") == last.count("ReduceSum") + 2  # Gram matrix and mean


def test_average_pooling_costs_no_multiplication(average_pack):
    """The 1/4 of its VJP is in the weights; only the loss head multiplies."""
    form = FORMS["openvino", "fp32"]
    shallow, deep, one_more = (
        operators(average_pack.encoder, form, ["relu1_1", *taps]).count("Mul")
        for taps in ([], ["relu5_1"], ["relu1_2"])
    )
    assert deep == one_more > shallow


def test_no_step_multiplies_a_feature_map_by_the_quarter_of_average_pooling(average_pack):
    """It is in the weights; the exported backward graph has one such node for each pooling."""
    taps, shape = ("relu2_1", "relu5_1"), (1, 32, 32)
    _, exported = graph_pair(average_pack.encoder, taps, shape)
    _, folded = step_graphs(average_pack.encoder, taps, shape)
    counts = [sum(n.op_type == "Mul" for n in graph.nodes) for graph in (exported, folded)]
    assert counts == [4, 0]
