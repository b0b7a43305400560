"""The trainer of the decoders on a few small pictures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from teacher_file import write_data

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))  # programs, not a package

import train_decoders
from train_decoders import TAPS, Decoders

from nst_fast import encoders
from nst_fast.transfer import decoder_graph

SHIPPED = encoders.load("vgg19-lite")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pictures of noise; the first of each kind is held out."""
    return write_data(tmp_path_factory.mktemp("data"), 3 * [(48, 56)])


@pytest.fixture
def pack(tmp_path) -> Path:
    folder = tmp_path / "vgg19-lite"
    shutil.copytree(SHIPPED.path, folder)
    return folder


@pytest.fixture
def train(data, pack, monkeypatch):
    """Run the program; returns the decoders and the log."""

    def run(out: Path, *words: object):
        common = ["--data", data, "--out", out, "--pack", pack, "--batch", 2, "--crop", 32]
        words = (*common, "--held", 1, "--styles", 3, "--report", 5, *words)
        monkeypatch.setattr(sys, "argv", ["train_decoders.py", *map(str, words)])
        monkeypatch.setattr(train_decoders, "STYLE_CROP", 32)
        train_decoders.main()
        return load_file(out / "decoders.safetensors"), json.loads((out / "log.json").read_text())

    return run


def test_both_phases_learn(train, tmp_path):
    _, log = train(tmp_path, "--steps", 40, 20)
    first, second = ([row for row in log if row["phase"] == phase] for phase in (1, 2))
    assert sum(first[-1]["decoded"].values()) < 0.7 * sum(first[0]["decoded"].values())
    before, after = (sum(second[index]["transferred"].values()) for index in (0, -1))
    assert after < before
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.size[0] > 500


def test_a_pack_gets_the_decoders_and_the_same_run_the_same(train, pack, tmp_path):
    made = [train(tmp_path / name, "--steps", 2, 2)[0] for name in ("one", "two")]
    for name, value in made[0].items():
        assert torch.equal(made[1][name], value), name
    decoders = encoders.load(pack).decoders
    assert [decoder.tap for decoder in decoders] == list(TAPS)
    weight, bias = decoders[0].layers[0]
    assert (weight == made[0]["relu5_1.0.weight"].float().numpy()).all()
    assert (bias == made[0]["relu5_1.0.bias"].float().numpy()).all()


def test_a_run_starts_from_decoders_of_an_earlier_one(train, tmp_path):
    before, _ = train(tmp_path / "one", "--steps", 1, 0)
    words = ("--start-from", tmp_path / "one" / "decoders.safetensors")
    after, _ = train(tmp_path / "two", "--steps", 1, 0, *words, "--rates", 1e-9, 0)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_decoders_learn_as_the_graphs_compute():
    import onnxruntime

    decoders = Decoders()
    decoders.take(load_file(SHIPPED.path / "decoders.safetensors"))
    generator = torch.Generator().manual_seed(0)
    for decoder in SHIPPED.decoders:
        x = torch.randn(2, SHIPPED.taps[decoder.tap].channels, 3, 5, generator=generator)
        graph = decoder_graph(SHIPPED, decoder, tuple(x.shape), mixed=False)
        session = onnxruntime.InferenceSession(graph.to_model())
        (found,) = session.run(None, {"features": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), decoders.decode(decoder.tap, x))
