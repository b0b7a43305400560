"""Loss and gradient of a Plan against torch autograd in float64 on the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch_reference
from closeness import assert_close
from problems import SHAPE, Problem, make_objective, make_problem

from nst_fast.losses import Targets, exact_terms
from nst_fast.optimizers import Adam
from nst_fast.plan import FeatureExtractor, Plan, TargetExtractor

TOLERANCE = {"cpu": 1e-4, "openvino": 1e-3}
BACKENDS = [(p, kind) for p in TOLERANCE for kind in ("fused", "split")]


def check(plan: Plan, problem: Problem, tolerance: float) -> None:
    np.copyto(plan.image, problem.image)
    plan.set_targets(problem.targets)
    loss = plan.value_and_grad()
    assert_close(plan.gradient, problem.gradient, tolerance)
    for n, gradient in enumerate(problem.gradient):
        assert_close(plan.gradient[n], gradient, tolerance)
    for column, name in enumerate(problem.objective.names()):
        found, expected = plan.terms[:, column], problem.terms[:, column]
        assert np.allclose(found, expected, rtol=tolerance, atol=0), (name, found, expected)
    assert_close(loss, problem.terms.sum(axis=1), tolerance)
    assert np.array_equal(plan.image, problem.image)


@pytest.mark.parametrize(("provider", "kind"), BACKENDS)
def test_loss_and_gradient(pack, problem, backend, provider, kind):
    given = problem(pack)
    plan = Plan(pack.encoder, given.objective, SHAPE, backend(provider, "fp32"), kind)
    assert plan.kind == kind
    check(plan, given, TOLERANCE[provider])


@pytest.mark.parametrize("normalization", ["relative", "gram", "textbook"])
@pytest.mark.parametrize("kind", ["fused", "split"])
def test_every_normalisation(average_pack, problem, backend, normalization, kind):
    given = problem(average_pack, normalization)
    plan = Plan(average_pack.encoder, given.objective, SHAPE, backend("cpu", "fp32"), kind)
    check(plan, given, 1e-4)


@pytest.mark.parametrize("kind", ["fused", "split"])
def test_targets_can_be_set_again(average_pack, problem, backend, kind):
    first, second = problem(average_pack), problem(average_pack, swapped=True)
    plan = Plan(average_pack.encoder, first.objective, SHAPE, backend("cpu", "fp32"), kind)
    addresses = (plan.image.ctypes.data, plan.gradient.ctypes.data)
    for given in (first, second, first):
        check(plan, given, 1e-4)
    assert (plan.image.ctypes.data, plan.gradient.ctypes.data) == addresses


def test_targets_are_copied(average_pack, problem, backend):
    given = problem(average_pack)
    for kind in ("fused", "split"):
        plan = Plan(average_pack.encoder, given.objective, SHAPE, backend("cpu", "fp32"), kind)
        targets = Targets(
            *({tap: v.copy() for tap, v in part.items()} for part in vars(given.targets).values())
        )
        plan.set_targets(targets)
        for part in (targets.style, targets.content):
            for value in part.values():
                value[:] = np.nan
        np.copyto(plan.image, given.image)
        plan.value_and_grad()
        assert_close(plan.gradient, given.gradient, 1e-4)


@pytest.mark.parametrize("kind", ["fused", "split"])
@pytest.mark.parametrize(
    "changes",
    [
        {"content_weight": 0.0, "tv_weight": 0.0, "range_weight": 0.0},
        {"style_weight": 0.0},
        {"style_layers": {"relu5_1": 1.0}, "content_layers": {"relu1_2": 1.0}},
        {"style_weight": 1e6, "content_weight": 1e-3, "tv_weight": 1e3},
    ],
    ids=["style alone", "content alone", "deep style", "far weights"],
)
def test_parts_of_the_objective(average_pack, photos, backend, kind, changes):
    network = average_pack.network
    objective = make_objective(average_pack.encoder, **changes)
    image = network.clear_image(photos("chelsea"), seed=2)
    given = make_problem(network, objective, image, photos("coffee"), photos("astronaut"))
    plan = Plan(average_pack.encoder, objective, (1, 48, 64), backend("cpu", "fp32"), kind)
    check(plan, given, 1e-4)


@pytest.mark.parametrize("kind", ["fused", "split"])
def test_images_of_a_batch_do_not_mix(average_pack, problem, backend, kind):
    """Each image alone gives what it gives in company."""
    given = problem(average_pack)
    plan = Plan(average_pack.encoder, given.objective, (1, 48, 64), backend("cpu", "fp32"), kind)
    for n in range(2):
        targets = Targets(
            *({t: v[n : n + 1] for t, v in part.items()} for part in vars(given.targets).values())
        )
        plan.set_targets(targets)
        np.copyto(plan.image, given.image[n : n + 1])
        loss = plan.value_and_grad()
        assert_close(plan.gradient[0], given.gradient[n], 1e-4)
        assert_close(loss, given.terms[n : n + 1].sum(axis=1), 1e-4)


def test_repeated_evaluation_gives_the_same_bits(average_pack, problem, backend):
    given = problem(average_pack)
    for kind in ("fused", "split"):
        plan = Plan(average_pack.encoder, given.objective, SHAPE, backend("cpu", "fp32"), kind)
        plan.set_targets(given.targets)
        np.copyto(plan.image, given.image)
        values = [(plan.value_and_grad().copy(), plan.gradient.copy()) for _ in range(3)]
        for loss, gradient in values[1:]:
            assert np.array_equal(loss, values[0][0])
            assert np.array_equal(gradient, values[0][1])


@pytest.mark.parametrize("provider", TOLERANCE)
def test_exact_terms_are_a_second_route_to_the_loss(average_pack, problem, backend, provider):
    given, where = problem(average_pack), backend(provider, "fp32")
    extract = TargetExtractor(average_pack.encoder, given.objective, SHAPE, where)
    kept = given.image.copy()
    found = extract(given.image)
    grams = {tap: gram.copy() for tap, gram in found.style.items()}
    terms = exact_terms(given.objective, given.image, found, given.targets, where.kernels)
    assert np.allclose(terms, given.terms, rtol=TOLERANCE[provider] / 10, atol=0)
    assert np.array_equal(given.image, kept)
    for tap, gram in found.style.items():
        assert np.array_equal(gram, grams[tap])


@pytest.mark.parametrize("provider", TOLERANCE)
def test_targets_are_what_autograd_finds(pack, problem, backend, provider):
    """On a large picture too: a Gram matrix adds up all of its pixels."""
    given, where = problem(pack), backend(provider, "fp32")
    extract = TargetExtractor(pack.encoder, given.objective, SHAPE, where)
    found = extract(given.image)
    image = torch_reference.tensor(given.image)
    grams = torch_reference.style_targets(pack.network, image, given.objective.style)
    features = torch_reference.content_targets(pack.network, image, given.objective.content)
    for tap, gram in found.style.items():
        assert_close(gram, grams[tap], 1e-5)
    for tap, map_ in found.content.items():
        assert_close(map_, features[tap], 1e-5)
    large = np.random.default_rng(0).random((1, 3, 256, 384), dtype=np.float32)
    shallow = make_objective(pack.encoder, style_layers={"relu1_1": 1.0}, content_weight=0.0)
    made = TargetExtractor(pack.encoder, shallow, (1, 256, 384), where)(large)
    extract_features = FeatureExtractor(pack.encoder, ["relu1_1"], (1, 256, 384), where)
    F = extract_features(large)["relu1_1"].reshape(1, -1, 256 * 384).astype(np.float64)
    assert_close(made.style["relu1_1"], reference.gram(F), 1e-5)


# ------------------------------------------------------------------------------------- bfloat16


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def bf16_cosines(pack, photos, backend, kind: str) -> list[float]:
    """Of the bfloat16 gradient and the one in float64, at photographs."""
    objective = make_objective(pack.encoder)
    where = backend("openvino", "bf16")
    plan = Plan(pack.encoder, objective, (1, 48, 64), where, kind)
    found = []
    names = ["chelsea", "astronaut", "coffee"]
    for index in range(3):
        image, content, style = (photos(names[(index + i) % 3]) for i in range(3))
        given = make_problem(pack.network, objective, image, content, style)
        plan.set_targets(given.targets)
        np.copyto(plan.image, image)
        loss = plan.value_and_grad()
        assert_close(loss, given.terms.sum(axis=1), 0.02)
        found.append(cosine(plan.gradient.astype(np.float64), given.gradient))
    print(f"{pack.encoder.name} {kind} bf16: cosines {found}")
    return found


@pytest.mark.parametrize("kind", ["fused", "split"])
def test_bfloat16_gradient_of_vgg19(vgg19_pack, photos, backend, kind):
    """Least at the third photograph, which is dark and flat: rounding flips more of its ReLUs."""
    found = bf16_cosines(vgg19_pack, photos, backend, kind)
    assert np.median(found) >= 0.999
    assert min(found) >= 0.995


@pytest.mark.parametrize("kind", ["fused", "split"])
def test_bfloat16_gradient_of_the_shipped_encoder(shipped, photos, backend, kind, record_property):
    found = bf16_cosines(shipped, photos, backend, kind)
    record_property("bf16_cosines", found)
    assert min(found) >= 0.98


# --------------------------------------------------------------------------------- optimisation


@pytest.mark.parametrize("kind", ["fused", "split"])
def test_twenty_steps_of_adam_follow_torch(shipped, batch, backend, kind):
    """Product: Plan and fused Adam in float32. Oracle: autograd and textbook Adam in float64."""
    objective = make_objective(shipped.encoder, tv_weight=0.05)
    image, content, style = (batch(name, 48, 32) for name in ("chelsea", "coffee", "astronaut"))
    given = make_problem(shipped.network, objective, image, content, style)
    plan = Plan(shipped.encoder, objective, (1, 32, 48), backend("cpu", "fp32"), kind)
    plan.set_targets(given.targets)
    np.copyto(plan.image, image)
    adam = Adam(plan.image.reshape(-1), backend("cpu", "fp32").kernels)
    oracle = reference.Adam(image.astype(np.float64), 0.02, 0.9, 0.99, 1e-8)
    losses, expected = [], []
    for _ in range(20):
        losses.append(float(plan.value_and_grad()[0]))
        adam.step(losses[-1], plan.gradient.reshape(-1))
        terms, gradient = torch_reference.evaluate(
            shipped.network, objective, oracle.x, given.targets.style, given.targets.content
        )
        expected.append(terms.sum())
        oracle.step(gradient, 0.0, 1.0)
    assert losses[-1] < 0.5 * losses[0]
    assert np.allclose(losses, expected, rtol=1e-3, atol=0), (losses, expected)
