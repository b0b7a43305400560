"""Moments and the way back: numpy against autograd, operators of a graph against both."""

from __future__ import annotations

import numpy as np
import torch
import torch_reference
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st
from torch_reference import tensor

from nst_fast.graph.graph import Graph
from nst_fast.losses.moments import FeatureMatrix, Layout, moments, normalizer, pull_back
from nst_fast.runtime import Session

LAYOUTS = (Layout(), Layout(channels_last=True), Layout(channels_last=True, split_pixels=8))
SIDES = st.integers(1, 9)


def sources(n, channels, height, width, seed, weighted=True):
    """Features, weights with zeros among them (of all pictures, or of each), and a symmetric D."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, channels, height, width), np.float32)
    weights = rng.random((rng.choice([1, n]), height, width), np.float32)
    weights *= rng.random(weights.shape) > 0.3
    weights[:, 0, 0] = 0.5
    symmetric = rng.standard_normal((n, channels + 1, channels + 1))
    symmetric += symmetric.transpose(0, 2, 1)
    return features, weights if weighted else np.ones_like(weights), symmetric


@given(n=st.integers(1, 3), channels=st.integers(1, 9), height=SIDES, width=SIDES,
       seed=st.integers(0, 2**31))  # fmt: skip
def test_numpy_is_what_autograd_finds(n, channels, height, width, seed):
    features, weights, D = sources(n, channels, height, width, seed)
    x = tensor(features).requires_grad_()
    expected = torch_reference.moments(x, tensor(weights))
    s = normalizer(channels, weights)
    found = moments(features, weights, np.broadcast_to(s, n))
    assert_close(found, expected.detach().numpy(), 1e-12)
    assert np.array_equal(found, found.transpose(0, 2, 1))
    assert np.allclose(found[:, -1, -1], 1 / channels)
    (gradient,) = torch.autograd.grad((tensor(D) * expected).sum(), x)
    derivative = 2 * np.broadcast_to(s, n)[:, None, None] * D[:, :-1]
    assert_close(pull_back(features, weights, derivative), gradient.numpy(), 1e-12)


def test_nothing_that_shows_has_no_moments():
    weights = np.zeros((2, 3, 4), np.float32)
    weights[1] = 1
    s = normalizer(5, weights)
    assert s.tolist() == [0.0, 1 / 60]
    features = np.random.default_rng(0).random((2, 5, 3, 4), np.float32)
    assert not moments(features, weights, s)[0].any()


@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 9),
    height=SIDES,
    width=SIDES,
    seed=st.integers(0, 2**31),
    layout=st.sampled_from(LAYOUTS),
    weighted=st.booleans(),
)
def test_operators_are_the_reference(n, channels, height, width, seed, layout, weighted):
    features, weights, D = sources(n, channels, height, width, seed, weighted)
    s = np.broadcast_to(normalizer(channels, weights), n)
    shape = features.shape
    inputs = {
        "features": shape,
        "normalizers": (n, 1, 1),
        "derivative": (n, channels, channels + 1),
    }
    inputs |= {"weights": (n, 1, height, width)} if weighted else {}
    square = n, channels + 1, channels + 1
    graph = Graph([], {}, inputs, {"moments": square, "gradient": shape})
    matrix = FeatureMatrix(graph, "features", shape, layout, "weights" if weighted else None)
    graph.add("Identity", [matrix.moments("normalizers")], "moments")
    graph.add("Identity", [matrix.pull_back("derivative")], "gradient")
    session = Session(graph, provider="cpu", precision="fp32", threads=1)
    values = {"features": features, "normalizers": s[:, None, None], "derivative": D[:, :-1]}
    values["weights"] = np.broadcast_to(weights[:, None], (n, 1, height, width))
    for name, array in session.inputs.items():
        np.copyto(array, values[name], casting="same_kind")
    session.run()
    assert_close(session.outputs["moments"], moments(features, weights, s), 1e-5)
    expected = pull_back(features, weights, D[:, :-1])
    assert_close(session.outputs["gradient"], expected, 1e-5)
