"""Style terms in several regions of a picture: loss and gradient against float64 autograd."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import host_gpus
import numpy as np
import pytest
import torch_reference
from closeness import assert_close
from problems import (
    LOSSES,
    Problem,
    around,
    cell_weights,
    clear_image,
    make_objective,
    make_problem,
    make_targets,
)
from torch_reference import waves

from nst_fast.gradient_check import gradient_error
from nst_fast.graph.forms import FORMS
from nst_fast.losses import Objective, exact_terms, make_goal, site
from nst_fast.losses.moments import share
from nst_fast.plan import make_plan
from nst_fast.targets import TargetExtractor

host_gpu = host_gpus.host_gpu

WIDTH, HEIGHT = 45, 37
LAYERS = {
    "style_layers": {"relu1_1": 0.5, "relu2_1": 1.0, "relu2_2": 0.7},
    "content_layers": {"relu2_1": 0.5, "relu3_1": 0.4},
}
# Left out, of a region that is too small for it.
MISSING = site("relu2_2", 2)


def soft_masks(seed: int) -> np.ndarray:
    """Shares of two styles, (2, H, W), between 0 and 1; in places they leave some to neither."""
    return 0.9 * waves(seed, 2, 1, HEIGHT, WIDTH)[:, 0].clip(0, 1).astype(np.float32)


def regional(objective: Objective) -> Objective:
    sites = [site(tap, region) for tap in objective.style for region in (1, 2)]
    return objective.at([each for each in sites if each != MISSING])


def in_regions(pack, whole: Problem, others, masks, opacity) -> Problem:
    """The same pictures with another style in the second region, solved anew."""
    objective = regional(whole.objective)
    weights, style = dict(whole.weights), {}
    for region, targets in enumerate((whole.targets, others), 1):
        shown = [masks[region - 1] if a is None else a * masks[region - 1] for a in opacity]
        cells = cell_weights(pack.encoder, whole.objective, whole.canvas, shown)
        weights |= {site(tap, region): cells[tap] for tap in whole.objective.style}
        style |= {site(tap, region): M for tap, M in targets.style.items()}
    targets = replace(whole.targets, style=style)
    solved = torch_reference.evaluate(
        pack.network, pack.encoder, objective, whole.image, whole.canvas, targets, weights
    )
    return replace(
        whole,
        objective=objective,
        targets=targets,
        weights=weights,
        terms=solved[0],
        gradient=solved[1],
    )


@pytest.fixture(scope="module")
def solved(average_pack, batch):
    """Problems by loss, each solved once: two pictures with a margin, opacity, and soft masks."""
    pack = average_pack

    @cache
    def make(loss: str = "gram") -> Problem:
        objective = make_objective(pack.encoder, style_loss=loss, **LAYERS)
        image, content = batch("astronaut chelsea", WIDTH, HEIGHT), batch("coffee", WIDTH, HEIGHT)
        image = clear_image(pack, objective, image, 3, margin=5)
        opacity = np.random.default_rng(3).random((2, HEIGHT, WIDTH), np.float32)
        styles = batch("coffee", 40, 33), batch("rocket", 36, 44)
        whole = make_problem(pack, objective, image, content, styles[0], margin=5, opacity=opacity)
        others = make_targets(pack, objective, content, styles[1], margin=5)
        return in_regions(pack, whole, others, soft_masks(3), opacity)

    return make


def plan_of(pack, given: Problem, where, kind: str):
    side = 32 if kind == "tiled" else None
    asked = "auto" if side else kind
    options = {"pictures": len(given.image), "side": side}
    plan = make_plan(pack.encoder, given.objective, given.canvas, where, asked, **options)
    assert plan.kind == kind
    return plan


def evaluate(plan, given: Problem) -> tuple[np.ndarray, np.ndarray]:
    plan.set_targets(given.targets, given.weights)
    gradient = plan.gradient_at(given.image)
    terms = plan.terms
    if isinstance(terms, tuple):
        terms = np.concatenate(terms, axis=1)
    return terms, gradient


@pytest.mark.parametrize("kind", ["fused", "split", "tiled"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_of_two_regions(average_pack, solved, backend, loss, kind):
    given = solved(loss)
    plan = plan_of(average_pack, given, backend("cpu", "fp32"), kind)
    terms, gradient = evaluate(plan, given)
    np.testing.assert_allclose(terms, given.terms, rtol=1e-5, atol=1e-15)
    for n in range(2):
        assert_close(gradient[n], given.gradient[n], 1e-5)


@pytest.mark.parametrize("kind", ["fused", "split", "tiled"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 5e-2)])
def test_on_the_path_of_a_gpu(average_pack, solved, host_gpu, kind, precision, tolerance):
    given, where = solved(), host_gpu(precision)
    plan = plan_of(average_pack, given, where, kind)
    terms, gradient = evaluate(plan, given)
    np.testing.assert_allclose(terms, given.terms, rtol=tolerance, atol=0)
    for n in range(2):
        assert_close(gradient[n], given.gradient[n], tolerance)


@pytest.mark.parametrize("provider", [key for key in FORMS if key[0] in ("cpu", "openvino")])
def test_the_gradient_check_is_of_regions_too(average_pack, backend, provider):
    objective = regional(make_objective(average_pack.encoder, **LAYERS))
    where = backend(*provider)
    error = gradient_error(average_pack.encoder, objective, where, "fused")
    assert error < {"fp32": 1e-3, "bf16": 0.12}[where.precision]


def test_what_was_measured_and_the_exact_terms(average_pack, solved, backend):
    """Targets by site, whole and in windows; the loss that is reported is that of autograd."""
    given = solved()
    canvas, objective, encoder = given.canvas, given.objective, average_pack.encoder
    goal = make_goal(objective, encoder, given.targets, given.weights, 2)
    for side in (None, 32):
        extract = TargetExtractor(
            encoder, objective, (2, *canvas.size), backend("cpu", "fp32"), side=side
        )
        found = exact_terms(objective, extract(canvas.extend(given.image), given.weights), goal)
        np.testing.assert_allclose(found, given.terms[:, : found.shape[1]], rtol=1e-4)


def test_one_region_that_is_everywhere_is_none(average_pack, batch, backend):
    objective = make_objective(average_pack.encoder, **LAYERS)
    image = batch("astronaut", WIDTH, HEIGHT)
    canvas = around(average_pack.encoder, objective, image)
    weights = cell_weights(average_pack.encoder, objective, canvas)
    targets = make_targets(average_pack, objective, image, batch("coffee", 40, 33))
    everywhere = objective.at([site(tap, 1) for tap in objective.style])
    found = []
    for each in (objective, everywhere):
        plan = make_plan(average_pack.encoder, each, canvas, backend("cpu", "fp32"))
        style = dict(zip(each.style, targets.style.values(), strict=True))
        named = {place: weights[place.split("/")[0]] for place in each.style}
        plan.set_targets(replace(targets, style=style), weights | named)
        found.append((plan.gradient_at(image[:, :, ::-1]).copy(), plan.terms.copy()))
    assert_close(found[1][0], found[0][0], 1e-6)
    assert_close(found[1][1], found[0][1], 1e-6)


def test_the_share_of_a_region():
    whole, part = np.ones((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)
    part[0, :, 0] = 0.5
    np.testing.assert_array_equal(share(part, whole), [1 / 8, 0])
    np.testing.assert_array_equal(share(part[1:], part[1:]), [1])
