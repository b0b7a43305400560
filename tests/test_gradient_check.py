"""The check passes on every provider here, and refuses gradients that are wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nst_fast import gradient_check
from nst_fast.config import StyleSettings
from nst_fast.encoders import CACHE_VARIABLE
from nst_fast.errors import ProviderError
from nst_fast.gradient_check import MOST_ERROR, ensure_gradient, gradient_error
from nst_fast.graph import forms
from nst_fast.graph.forms import FORMS
from nst_fast.kernels import Kernels
from nst_fast.losses import Objective

BACKENDS = [("cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")]


@pytest.fixture(autouse=True)
def forget(monkeypatch, tmp_path):
    """Check anew in every test."""
    monkeypatch.setattr(gradient_check, "_passed", set())
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def one_shape(monkeypatch) -> None:
    """Check at a single shape, where others would add nothing."""
    monkeypatch.setattr(gradient_check, "CELLS", gradient_check.CELLS[:1])


def objective(encoder, **changes) -> Objective:
    return Objective.from_settings(StyleSettings(**changes), encoder)


@pytest.mark.parametrize(
    ("pooling", "kind"), [("max", "fused"), ("max", "split"), ("average", "fused")]
)
@pytest.mark.parametrize(("provider", "precision"), BACKENDS)
def test_right_gradients_pass(request, backend, provider, precision, pooling, kind):
    """Below the limit even for random weights, which bfloat16 suits least."""
    where, pack = backend(provider, precision), request.getfixturevalue(f"{pooling}_pack")
    found = gradient_error(pack.encoder, objective(pack.encoder), where, kind)
    print(f"{provider} {precision} {kind}: {found:.4f}")
    assert 0 <= found < 0.9 * MOST_ERROR[precision]


@pytest.mark.parametrize("kind", ["fused", "split"])
@pytest.mark.parametrize(("provider", "precision"), BACKENDS)
def test_the_right_gradients_of_the_shipped_encoder_are_farther(
    shipped, backend, monkeypatch, provider, precision, kind
):
    found = []

    def kept(*arguments, **options) -> float:
        found.append(gradient_error(*arguments, **options))
        return found[0]

    monkeypatch.setattr(gradient_check, "gradient_error", kept)
    ensure_gradient(shipped.encoder, objective(shipped.encoder), backend(provider, precision), kind)
    assert 0 <= found[0] < 0.4 * MOST_ERROR[precision]


@pytest.mark.parametrize(
    "changes",
    [
        {"style_weight": 0.0},
        {"content_weight": 0.0},
        {"style_layers": {"relu1_1": 1.0}, "content_layers": {}},
        {"normalization": "textbook", "style_weight": 1e-6, "content_weight": 1e-9},
        {"normalization": "gram", "style_weight": 1e9, "content_weight": 0.0},
        {"tv_weight": 1e6, "range_weight": 1e6},
        {"style_loss": "whitened"},
        {"style_loss": "wasserstein", "shift": 0.0},
        {"style_space": "encoder", "shift": 0.5},
    ],
)
def test_any_objective_can_be_checked(shipped, backend, one_shape, changes):
    goal = objective(shipped.encoder, **changes)
    for kind in ("fused", "split"):
        assert gradient_error(shipped.encoder, goal, backend("cpu", "fp32"), kind) < 1e-3


def test_vgg19_passes_in_bfloat16(vgg19_pack, backend, one_shape):
    goal = objective(vgg19_pack.encoder)
    found = gradient_error(vgg19_pack.encoder, goal, backend("openvino", "bf16"), "fused")
    assert found < 0.1


def wrong_by(encoder, where, kind: str = "fused") -> float:
    return gradient_error(encoder, objective(encoder), where, kind)


def refused(pack, where, kind: str = "fused") -> None:
    with pytest.raises(ProviderError) as caught:
        ensure_gradient(pack.encoder, objective(pack.encoder), where, kind)
    message = str(caught.value)
    assert "\n" not in message
    for part in (where.provider, where.precision, "--provider cpu --precision fp32"):
        assert part in message


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_form_that_openvino_evaluates_wrongly_is_refused(
    shipped, backend, one_shape, monkeypatch, precision
):
    where = backend("openvino", precision)
    wrong = replace(FORMS["openvino", precision], masks="hard_sigmoid")
    monkeypatch.setitem(FORMS, ("openvino", precision), wrong)
    refused(shipped, where)


def test_soft_masks_are_refused(pack, backend, one_shape, monkeypatch):
    """A HardSigmoid that is not steep is no step function."""
    monkeypatch.setattr(forms, "STEEP", 1.0)
    refused(pack, backend("cpu", "fp32"))


def test_a_corrupted_constant_is_refused(average_pack, backend, one_shape, monkeypatch):
    """The weights of the convolution that ends in the image, turned round."""
    fold = forms._fold_pooling_factor

    def corrupt(graph) -> None:
        fold(graph)
        (name,) = (n.input[1] for n in graph.nodes if n.op_type == "Conv" and "d_image" in n.output)
        graph.constants[name] = np.ascontiguousarray(graph.constants[name][:, :, ::-1, ::-1])

    monkeypatch.setattr(forms, "_fold_pooling_factor", corrupt)
    refused(average_pack, backend("cpu", "fp32"))
    assert wrong_by(average_pack.encoder, backend("cpu", "fp32")) > MOST_ERROR["bf16"]


class WrongKernels(Kernels):
    """Take what every other channel sends back with the wrong sign."""

    def pull_back(self, features, derivative, out, **options) -> None:
        super().pull_back(features, derivative, out, **options)
        out[:, ::2] *= -1


def test_wrong_kernels_are_refused(shipped, backend, one_shape):
    where = replace(backend("cpu", "fp32"), kernels=WrongKernels(1))
    refused(shipped, where, "split")
    assert wrong_by(shipped.encoder, where, "split") > MOST_ERROR["bf16"]


class WideKernels(Kernels):
    """Wrong where a map is wider than high."""

    def pull_back(self, features, derivative, out, **options) -> None:
        super().pull_back(features, derivative, out, **options)
        if features.shape[-1] % 5 == 0:  # the pixels of a canvas of 2 × 5 cells
            out *= 2


def test_what_is_wrong_for_one_shape_alone_is_refused(shipped, backend):
    where = replace(backend("cpu", "fp32"), kernels=WideKernels(1))
    refused(shipped, where, "split")


def test_no_gradient_at_all_is_refused(shipped, backend, monkeypatch):
    monkeypatch.setattr(gradient_check, "gradient_error", lambda *_, **__: float("nan"))
    refused(shipped, backend("cpu", "fp32"))


def test_what_passed_is_not_checked_again(shipped, pack, backend, monkeypatch):
    where, calls = backend("cpu", "fp32"), []
    monkeypatch.setattr(gradient_check, "gradient_error", lambda *a, **_: calls.append(a) or 0.0)
    goal = objective(shipped.encoder)
    ensure_gradient(shipped.encoder, goal, where, "fused")
    ensure_gradient(shipped.encoder, replace(goal, tv=9.0), where, "fused")
    assert len(calls) == 1
    ensure_gradient(shipped.encoder, goal, where, "split")
    ensure_gradient(pack.encoder, goal, where, "fused")
    for changes in ({"content_weight": 0.0}, {"style_loss": "whitened"}):
        ensure_gradient(shipped.encoder, objective(shipped.encoder, **changes), where, "fused")
    assert len(calls) == 5


def test_what_passed_is_known_to_the_next_process(shipped, backend, monkeypatch):
    where, goal, calls = backend("cpu", "fp32"), objective(shipped.encoder), []
    monkeypatch.setattr(gradient_check, "gradient_error", lambda *a, **_: calls.append(a) or 0.0)
    for _ in range(2):
        monkeypatch.setattr(gradient_check, "_passed", set())
        ensure_gradient(shipped.encoder, goal, where, "fused")
    assert len(calls) == 1
    monkeypatch.setattr(gradient_check, "_passed", set())
    monkeypatch.setattr(gradient_check, "cpu_model", lambda: "another CPU")
    ensure_gradient(shipped.encoder, goal, where, "fused")
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_no_failure(shipped, backend, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(file))
    monkeypatch.setattr(gradient_check, "gradient_error", lambda *_, **__: 0.0)
    ensure_gradient(shipped.encoder, objective(shipped.encoder), backend("cpu", "fp32"), "fused")


def known(monkeypatch, shipped, where) -> bool:
    """Whether another process would take the gradient for checked."""
    calls = []
    monkeypatch.setattr(gradient_check, "_passed", set())
    monkeypatch.setattr(gradient_check, "gradient_error", lambda *a, **_: calls.append(a) or 0.0)
    ensure_gradient(shipped.encoder, objective(shipped.encoder), where, "fused")
    return not calls


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_model", lambda: "another CPU"),
        ("cpu_features", lambda: frozenset({"another"})),
        ("versions", lambda: {"onnxruntime": "9.9"}),
        ("version", lambda package: "9.9"),
    ],
)
def test_a_verdict_is_for_this_machine_and_these_versions(
    shipped, backend, monkeypatch, name, value
):
    where = backend("cpu", "fp32")
    assert not known(monkeypatch, shipped, where)
    assert known(monkeypatch, shipped, where)
    with monkeypatch.context() as patch:
        patch.setattr(gradient_check, name, value)
        assert not known(patch, shipped, where)
    assert known(monkeypatch, shipped, where)


def test_a_verdict_is_for_the_code_that_runs(shipped, backend, monkeypatch):
    """Older code, too, as after a downgrade within a checkout."""
    where, source = backend("cpu", "fp32"), Path(gradient_check.__file__)
    assert not known(monkeypatch, shipped, where)
    before = source.stat()
    try:
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns - 10**12))
        assert not known(monkeypatch, shipped, where)
    finally:
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known(monkeypatch, shipped, where)


@pytest.mark.parametrize("damage", ["folder", "file in the way", "dangling link", "half"])
def test_a_damaged_cache_is_no_verdict_and_no_failure(
    shipped, backend, monkeypatch, tmp_path, damage
):
    where = backend("cpu", "fp32")
    assert not known(monkeypatch, shipped, where)
    (record,) = (tmp_path / "cache" / "gradients").iterdir()
    record.unlink()
    if damage == "folder":
        record.mkdir()
    elif damage == "dangling link":
        record.symlink_to(tmp_path / "nothing" / "here")
    elif damage == "half":
        record.with_suffix(".tmp").touch()
    else:
        record.parent.rmdir()
        record.parent.touch()
    assert not known(monkeypatch, shipped, where)


def test_a_race_of_processes_gives_one_verdict(shipped, backend, monkeypatch):
    """Another process writes its record, or removes the folder, between our look and our record."""
    where = backend("cpu", "fp32")
    goal = objective(shipped.encoder)

    def slow(*args, **options) -> float:
        monkeypatch.setattr(gradient_check, "gradient_error", lambda *_, **__: 0.0)
        monkeypatch.setattr(gradient_check, "_passed", set())
        ensure_gradient(shipped.encoder, goal, where, "fused")
        return 0.0

    monkeypatch.setattr(gradient_check, "gradient_error", slow)
    ensure_gradient(shipped.encoder, goal, where, "fused")
    assert known(monkeypatch, shipped, where)


def test_a_refusal_is_not_taken_for_a_pass(shipped, backend, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gradient_check, "gradient_error", lambda *_, **__: 0.5)
        for _ in range(2):
            refused(shipped, backend("cpu", "fp32"))
    ensure_gradient(shipped.encoder, objective(shipped.encoder), backend("cpu", "fp32"), "fused")


def test_style_and_content_at_the_same_taps_are_different_gradients(shipped, backend, monkeypatch):
    """The graph depends on which taps are style and which content, not on the taps alone."""
    calls = []
    monkeypatch.setattr(gradient_check, "gradient_error", lambda *a, **_: calls.append(a) or 0.0)
    where = backend("cpu", "fp32")
    layers = {"relu4_2": 1.0}
    for style, content in ((layers, {}), ({}, layers), (layers, layers)):
        goal = objective(shipped.encoder, style_layers=style, content_layers=content)
        ensure_gradient(shipped.encoder, goal, where, "fused")
    assert len(calls) == 3
