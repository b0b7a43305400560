"""The judge of encoders: its networks, its matching of content losses, its verdicts."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from closeness import assert_close
from teacher_file import write_teacher

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))  # programs, not a package

import encoder_quality
from judge import PackNetwork, Teacher, TorchWorkspace
from nst_fast import StyleSettings, images
from nst_fast.canvas import Canvas
from nst_fast.losses import Objective, Targets
from nst_fast.plan import Plan
from nst_fast.targets import TargetExtractor


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def test_torch_and_engine_agree_on_a_pack(shipped, photo, backend):
    """The routes of a verdict differ in the network alone: here it is the same one."""
    where = backend("cpu", "fp32")
    layers = {"relu1_1": 0.5, "relu4_2": 0.5}  # the second has a content term too
    encoder, settings = shipped.encoder, StyleSettings(style_layers=layers)
    objective = Objective.from_settings(settings, encoder)
    canvas = Canvas.around(31, 45, margin=settings.margin, stride=8)
    weights = {tap: canvas.weights(encoder.taps[tap].stride)[None] for tap in objective.taps}
    image, content, style = (
        images.to_tensor(images.load(photo(name, 45, 31)).pixels)
        for name in ("astronaut", "coffee", "chelsea")
    )
    workspace = TorchWorkspace(PackNetwork(encoder), where)
    measure = TargetExtractor(encoder, objective, (1, *canvas.size), where)
    for picture in (content, style):
        ours = measure(canvas.extend(picture), weights)
        theirs = workspace.measure(canvas.extend(picture), objective, weights)
        for tap in objective.style:
            assert_close(theirs.style[tap], ours.style[tap], 1e-5)
        for tap in objective.content:
            assert_close(theirs.content[tap], ours.content[tap], 1e-5)
    found = workspace.measure(canvas.extend(content), objective, weights)
    targets = Targets(ours.style, found.content)
    plans = (
        Plan(encoder, objective, canvas, where),
        workspace.take_plan(objective, canvas, 1, True, None),
    )
    for plan in plans:
        plan.set_targets(targets, weights)
        plan.gradient_at(image)
    ours, theirs = plans
    assert_close(theirs.gradient, ours.gradient, 1e-4)
    assert_close(theirs.terms, ours.terms, 1e-4)


def test_style_maps_lead_to_what_a_verdict_compares(shipped, teacher_file, photo):
    """So that an optimisation against the judge is judged in the space that it saw."""
    image = torch.from_numpy(images.to_tensor(images.load(photo("coffee", 64, 48)).pixels))
    for network in (Teacher(teacher_file), PackNetwork(shipped.encoder)):
        judged = network.judged(image)
        taps = network.features(image)
        for tap in ("relu1_1", "relu5_1"):
            H = network.style_map(tap)
            assert H.shape[1] == taps[tap].shape[1] + 1
            if tap == "relu5_1" and network.name == "teacher":
                continue  # it pools otherwise where it judges
            mapped = np.einsum("dc,nchw->ndhw", H[:, :-1], taps[tap].numpy())
            assert_close(mapped + H[:, -1, None, None], judged[tap].numpy(), 1e-5)


def test_a_picture_has_no_loss_against_itself(teacher_file, photo):
    picture = images.load(photo("coffee", 64, 48))
    other = images.load(photo("astronaut", 64, 48))
    judge = encoder_quality.Judge(Teacher(teacher_file), picture, picture)
    assert judge.score(picture) == encoder_quality.Score(0.0, 0.0)
    assert min(vars(judge.score(other)).values()) > 0.01


@pytest.mark.parametrize("wanted", [0.02, 0.3, 0.7])
def test_the_content_weight_is_found(wanted):
    """On a curve that bends as the real ones do."""

    def make(settings: StyleSettings):
        loss = 0.9 / (1 + 40 * settings.content_weight**0.7)
        return SimpleNamespace(picture=loss)

    judge = SimpleNamespace(score=lambda loss: encoder_quality.Score(0.0, loss))
    settings = StyleSettings()
    _, score, _ = encoder_quality.at_content_loss(make, judge, settings, wanted)
    assert abs(math.log(score.content / wanted)) <= encoder_quality.TOLERANCE


def test_where_no_content_weight_is_found_the_nearest_try_counts():
    """Its picture, score and weight belong together."""
    made = []

    def make(settings: StyleSettings):
        made.append(settings.content_weight)
        return SimpleNamespace(picture=(0.3, 0.7, 0.6)[len(made) % 3])

    judge = SimpleNamespace(score=lambda loss: encoder_quality.Score(0.0, loss))
    result, score, weight = encoder_quality.at_content_loss(make, judge, StyleSettings(), 0.5)
    assert len(made) == encoder_quality.TRIES
    assert result.picture == score.content == 0.6
    assert weight == made[1]


def test_pairs_use_every_picture_alike():
    contents, styles = encoder_quality.load_pictures(32)
    found = encoder_quality.pairs(list(contents), list(styles))
    assert len(found) == len(set(found)) >= 12
    for names in zip(*found, strict=True):
        assert set(Counter(names).values()) == {2}


@pytest.mark.parametrize("judge", ["teacher", "vgg19-lite as judge"])
def test_the_program_writes_its_verdicts(judge, teacher_file, tmp_path, monkeypatch, average_pack):
    own = ["--teacher", teacher_file] if judge == "teacher" else ["--judge", "vgg19-lite"]
    words = [*own, "--out", tmp_path, "--size", 32, "--steps", 3, "--pairs", 1, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["encoder_quality.py", *map(str, words)])
    if judge != "teacher":  # one random pack is enough to build
        monkeypatch.setattr(encoder_quality, "random_pack", lambda *_: average_pack.encoder.path)
    encoder_quality.main()
    facts = json.loads((tmp_path / "verdicts.json").read_text())
    routes = [verdict["route"] for verdict in facts["verdicts"]]
    assert routes == [judge, "vgg19-lite", "random weights"]
    assert facts["verdicts"][0]["gap_closed"] == 1.0
    table = (tmp_path / "verdicts.md").read_text()
    assert table.count("| vgg19-lite |") == 2
    assert images.load(tmp_path / "sheet.jpg").size[0] == 5 * 320
    assert len(list(tmp_path.glob("*.png"))) == 3
