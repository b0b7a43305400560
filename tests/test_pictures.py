"""The judge that looks: its list of pairs, its style terms, its sheet and its table."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from teacher_file import write_teacher

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))  # programs, not a package

import pictures
from judge import CONTENT_TAP, Judge, Teacher
from nst_fast import images
from nst_fast.images import Picture

TAPS = ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def noise(seed: int, width: int, height: int) -> Picture:
    return Picture(np.random.default_rng(seed).random((height, width, 3), np.float32))


@pytest.mark.parametrize("size", [(48, 32), (37, 53)])
def test_the_losses_are_those_of_the_formulas(teacher_file, size):
    """Against float64, term by term, on sides that no pooling divides."""
    network = Teacher(teacher_file)
    content, style, picture = noise(0, *size), noise(1, 64, 41), noise(2, *size)

    def features(shown: Picture) -> dict[str, np.ndarray]:
        found = network.judged(torch.from_numpy(images.to_tensor(shown.pixels)))
        return {tap: x[0].flatten(1).double().numpy() for tap, x in found.items()}

    def gram(x: np.ndarray) -> np.ndarray:
        return x @ x.T / x.size

    terms, loss = Judge(network, content, style).losses(picture)
    assert list(terms) == TAPS
    h, h_s, h_c = features(picture), features(style), features(content)
    for tap in TAPS:
        s = np.sqrt((h_s[tap] ** 2).mean())
        want = gram(h_s[tap] - s)
        expected = ((gram(h[tap] - s) - want) ** 2).sum() / (want**2).sum()
        assert terms[tap] == pytest.approx(expected, rel=1e-4)
    difference = ((h[CONTENT_TAP] - h_c[CONTENT_TAP]) ** 2).mean()
    assert loss == pytest.approx(difference / (h_c[CONTENT_TAP] ** 2).mean(), rel=1e-4)


def test_the_teacher_judges_by_linear_heads(teacher_file):
    """They may be negative; the content is compared in its own features."""
    network = Teacher(teacher_file)
    image = torch.from_numpy(images.to_tensor(noise(0, 48, 32).pixels))
    judged, features = network.judged(image), network.features(image)
    assert torch.equal(judged[CONTENT_TAP], features[CONTENT_TAP])
    assert all(judged[tap].min() < 0 for tap in TAPS)


def test_pairs_are_read_beside_their_list(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text('# a remark\n\na.png "b c.jpg"\n/x/content_d.png style_e.png 0.25,1 # crop\n')
    first, second = pictures.read_pairs(path)
    assert first == pictures.Pair(tmp_path / "a.png", tmp_path / "b c.jpg", (0.5, 0.5))
    assert second.content == Path("/x/content_d.png")
    assert second.middle == (0.25, 1.0)
    assert second.name == "d_e"


@pytest.mark.parametrize("line", ["a.png", "a b 0.5", "a b x,y", "a b 1,2,3", "a b 0,0 c", 'a "b'])
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    path = tmp_path / "pairs.txt"
    path.write_text(f"a b\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.txt, line 2"):
        pictures.read_pairs(path)


def test_our_own_pairs_are_there():
    pairs = pictures.read_pairs(pictures.EXAMPLES / "pairs.txt")
    assert len({pair.name for pair in pairs}) == len(pairs) >= 4
    assert all(pair.content.is_file() and pair.style.is_file() for pair in pairs)


@pytest.mark.parametrize("middle", [(0.5, 0.5), (0.0, 1.0), (1.0, 0.1)])
@pytest.mark.parametrize("size", [(90, 70), (20, 16)])
def test_a_crop_shows_pixels_three_times_as_large(middle, size):
    picture = noise(0, *size)
    found = pictures.crop(picture, middle, 96)
    small = found.pixels[1::3, 1::3]
    assert small.shape[:2] == (min(24, size[1]), min(32, size[0]))
    assert (found.pixels == small.repeat(3, 0).repeat(3, 1)).all()
    rows = np.lib.stride_tricks.sliding_window_view(picture.pixels, small.shape)
    assert (rows == small).all((3, 4, 5)).any(), "a part of the picture"


def test_a_sheet_leaves_out_what_nobody_has_and_enlarges_nothing():
    rows = [
        ("one", [noise(0, 90, 40), None, None]),
        ("two", [noise(1, 30, 20), None, noise(2, 20, 60)]),
    ]
    paper = np.asarray(pictures.sheet(rows, ["a", "b", "c"], tile=50))
    assert paper.shape == (24 + (24 + 22 + 6) + (24 + 50 + 6), 2 * 56, 3)
    assert (paper[48:70, 56:] == 255).all(), "blank"
    shown = images.to_pillow(rows[1][1][0])
    assert (paper[100:120, :30] == np.asarray(shown)).all()


def run(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", *map(str, words)])
    pictures.main()


def test_the_program_makes_judges_and_shows(teacher_file, tmp_path, monkeypatch, capsys):
    for name, seed in (("content_a", 0), ("style_b", 1)):
        images.save(noise(seed, 48, 32), tmp_path / f"{name}.png")
    words = ["--pair", tmp_path / "content_a.png", tmp_path / "style_b.png"]
    words += ["--teacher", teacher_file, "--size", 32]
    short = ["--", "--steps", 2, "--scales", 1, "--threads", 1]
    run(monkeypatch, *words, "--out", tmp_path / "first", *short)
    shutil.copytree(tmp_path / "first", tmp_path / "references")
    capsys.readouterr()
    run(
        monkeypatch,
        *words,
        "--out",
        tmp_path / "second",
        "--reference",
        tmp_path / "references",
        *short,
    )
    table = capsys.readouterr().out
    assert table == (tmp_path / "second" / "verdicts.md").read_text("utf-8")
    assert "style, ours / reference: mean 1.000, most 1.000" in table
    facts = json.loads((tmp_path / "second" / "verdicts.json").read_text())
    assert facts["options"] == list(map(str, short[1:]))
    reference, ours = facts["verdicts"]
    assert (reference["picture"], reference["steps"]) == ("reference", None)
    assert (ours["pair"], ours["picture"], ours["steps"]) == ("a_b", "ours", 2)
    assert ours["seconds"] > 0
    assert ours["style"] == pytest.approx(np.mean(list(ours["style_terms"].values())))
    assert images.load(tmp_path / "second" / "a_b.png").size == (32, 21)
    widths = []
    for folder in ("first", "second"):
        with Image.open(tmp_path / folder / "sheet.jpg") as sheet:
            widths.append(sheet.width // (312 + 6))
    assert widths == [4, 6], "without references the sheet has no columns for them"
