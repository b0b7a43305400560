"""The trainer of vgg19-lite on a few small pictures."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from teacher_file import write_data
from torch_reference import he_weights

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))  # programs, not a package

import optimised_pictures
import train_encoder
from student import LAYERS, UNTAUGHT, Data, Student, narrowed, training_pictures

from nst_fast import encoders
from nst_fast.errors import EncoderError

SHIPPED = encoders.load("vgg19-lite").path / "weights.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A teacher with random weights and pictures of noise; the first of each kind is held out."""
    return write_data(tmp_path_factory.mktemp("data"), 3 * [(48, 56)])


@pytest.fixture
def train(data, monkeypatch):
    """Run the program; returns the weights and the log."""

    def run(out: Path, *words: object):
        common = ["--data", data, "--out", out, "--batch", 2, "--crop", 32, "--threads", 1]
        words = (*common, "--report", 2, "--device", "cpu", *words)
        monkeypatch.setattr(sys, "argv", ["train_encoder.py", *map(str, words)])
        monkeypatch.setattr(train_encoder, "SCALE_BATCHES", 1)
        train_encoder.main()
        return load_file(out / "weights.safetensors"), json.loads((out / "log.json").read_text())

    return run


def test_both_phases_learn(train, tmp_path):
    _, log = train(tmp_path, "--steps", 40, 20)
    for phase, share in ((1, 0.5), (2, 0.9)):
        rows = [row for row in log if row["phase"] == phase]
        assert sum(rows[-1]["features"].values()) < share * sum(rows[0]["features"].values())
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.size[0] > 500


def test_a_run_goes_on_where_it_was(train, tmp_path):
    whole, _ = train(tmp_path / "whole", "--steps", 5, 4)
    train(tmp_path / "parts", "--steps", 5, 0)
    resumed, log = train(tmp_path / "parts", "--steps", 5, 4, "--resume")
    assert [row["step"] for row in log if row["phase"] == 1] == [0, 2, 4]
    for name, value in whole.items():
        assert (resumed[name] == value).all(), name


def test_a_start_from_wider_layers_keeps_the_strongest_channels():
    """Channels that are read weakly, strong as their own filters may be, are those to go."""
    layers = LAYERS
    student = Student(0, "zeros", torch.device("cpu"), [layers[0].conv])
    narrow = {name: value.detach().clone() for name, value in student.weights.items()}
    wide = dict(narrow)
    rng = np.random.default_rng(0)
    for layer, after in pairwise(layers):
        places = sorted(rng.choice(layer.out_channels, 5, replace=False))
        for name, axis, factor in (
            (f"{layer.conv}.weight", 0, 2.0),
            (f"{layer.conv}.bias", 0, 2.0),
            (f"{after.conv}.weight", 1, 0.01),
        ):
            more = factor * torch.index_select(wide[name], axis, torch.tensor(places))
            for count, place in enumerate(places):
                at = place + count
                before, behind = wide[name].tensor_split([at], dim=axis)
                one = more.narrow(axis, count, 1)
                wide[name] = torch.cat([before, one, behind], axis)
    found = narrowed(wide)
    assert found.keys() == narrow.keys()
    assert all(torch.equal(found[name], value) for name, value in narrow.items())


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Weights of the layout that learns."""
    path = tmp_path_factory.mktemp("begun") / "weights.safetensors"
    widths = {layer.conv: layer.out_channels for layer in LAYERS}
    arrays = {k: torch.from_numpy(v).half() for k, v in he_weights(widths, seed=0).items()}
    save_file(arrays, path)
    return path


def test_only_the_layers_asked_for_learn(train, begun, tmp_path):
    before = load_file(begun)
    words = ("--start-from", begun, "--learn", "conv4_3", "conv5_1")
    after, log = train(tmp_path / "two", "--steps", 2, 2, *words)
    moved = {name.partition(".")[0] for name in after if (before[name] != after[name]).any()}
    assert moved == {"conv4_3", "conv5_1"}
    fed = {"relu4_3", "relu4_4", "relu5_1"}
    assert set(log[0]["features"]) == fed - set(UNTAUGHT)
    with pytest.raises(SystemExit):
        train(tmp_path / "three", "--steps", 2, 2, "--learn", "conv9_9")


def test_pruned_weights_cannot_learn_on(train, tmp_path):
    with pytest.raises(EncoderError, match=r"conv3_2 has .* from before the pruning"):
        train(tmp_path, "--steps", 0, 2, "--start-from", SHIPPED)


def test_prepared_crops_teach_what_fresh_ones_do(train, begun, tmp_path):
    words = ("--steps", 0, 20, "--rates", 5e-3, 5e-3, "--start-from", begun)
    words = (*words, "--learn", "conv4_4", "conv5_1", "--prepared", 8, "--bf16")
    taught, log = train(tmp_path / "one", *words)
    assert log[-1]["features"]["relu5_1"] < 0.8 * log[0]["features"]["relu5_1"]
    again, _ = train(tmp_path / "two", *words)
    assert all((again[name] == value).all() for name, value in taught.items())


def test_held_out_pictures_are_never_trained_on(data):
    for kind in ("photos", "art"):
        kept = training_pictures(data, kind)
        held = training_pictures(data, kind, held_out=True)
        assert kept
        assert held
        assert not set(kept) & set(held)


def test_optimised_pictures_join_the_data(data, train, tmp_path, monkeypatch):
    made = tmp_path / "made"
    words = ["--data", data, "--encoder", "vgg19-lite", "--out", made, "--count", 2]
    words += ["--size", 48, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["optimised_pictures.py", *map(str, words)])
    monkeypatch.setattr(optimised_pictures, "STEPS", (2, 4))
    optimised_pictures.main()
    assert len(list(made.glob("*.png"))) == 2
    found = Data.load(data, 32, held_out=False, optimised=made)
    assert len(found.optimised) == 2
    assert len(Data.load(data, 44, held_out=False, optimised=made).optimised) == 0
    plain, _ = train(tmp_path / "plain", "--steps", 0, 2)
    mixed, _ = train(tmp_path / "mixed", "--steps", 0, 2, "--optimised", made)
    assert any((mixed[name] != value).any() for name, value in plain.items())
