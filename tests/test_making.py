"""What a run leaves besides its picture: a recording, curves of the loss, a comparison."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import commanding
import numpy as np
import pytest
from commanding import QUICK, STYLIZE, assert_fails
from PIL import Image, ImageSequence
from stylizing import pixels, quick

from nst_fast import Picture, Recorder, Report, compare, images, plot_losses
from nst_fast.errors import ImageError
from nst_fast.making import Recording, recording

pictures = commanding.pictures
command = commanding.command
WORDS = [*STYLIZE[:5], *QUICK[:2], "--provider", "cpu", "--threads", "1"]


def plain(level: float, width: int = 24, height: int = 16) -> Picture:
    return Picture(np.full((height, width, 3), level, np.float32))


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as film:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


# ---------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("ending", ["webp", "apng", "png"])
def test_frames_are_those_that_were_added(tmp_path, ending):
    path = tmp_path / f"film.{ending}"
    levels = [0.1, 0.4, 0.9]
    with Recorder(path) as recorder:
        for level in levels:
            recorder.add(plain(level))
        assert not path.exists()
    found = frames(path)
    assert [frame.shape for frame in found] == [(16, 24, 3)] * 3
    for frame, level in zip(found, levels, strict=True):
        assert np.abs(frame / 255 - level).max() < 0.02
    with Image.open(path) as film:
        film.seek(2)
        film.load()
        assert film.info["duration"] == 1000 * recording.HOLD
    assert os.listdir(tmp_path) == [path.name]


def test_a_film_is_as_long_as_its_frames(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with Recorder(path) as recorder:
        for level in (0.1, 0.9):
            recorder.add(plain(level, 33, 21))  # odd sides, of which it has none
    with av.open(path) as film:
        found = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == recording.RATE
    assert len(found) == 2 + recording.RATE * recording.HOLD - 1
    assert {frame.shape for frame in found} == {(20, 32, 3)}
    assert abs(found[0].mean() / 255 - 0.1) < 0.03
    assert abs(found[-1].mean() / 255 - 0.9) < 0.03
    assert os.listdir(tmp_path) == [path.name]


def test_memory_has_a_bound(tmp_path, monkeypatch):
    """Every second frame goes where there are too many; the first and the last stay."""
    monkeypatch.setattr(recording, "MOST_PIXELS", 8 * 24 * 16)
    path, most = tmp_path / "film.png", 0
    with Recorder(path) as recorder:
        for step in range(101):
            recorder.add(plain(step / 100))
            most = max(most, len(recorder._writer._frames))
    assert most <= 9
    levels = [frame.mean() / 255 for frame in frames(path)]
    assert levels[0] == 0.0
    assert levels[-1] == 1.0
    gaps = np.diff(levels[:-1])
    assert np.allclose(gaps, gaps[0], atol=0.01)


def test_large_frames_are_reduced(tmp_path):
    with Recorder(tmp_path / "film.webp") as recorder:
        recorder.add(plain(0.5, 960, 400))
        recorder.add(plain(0.6, 960, 400))
    assert frames(tmp_path / "film.webp")[0].shape == (200, recording.LONGEST, 3)


@pytest.mark.parametrize("ending", ["webp", "mp4"])
def test_after_an_error_there_is_no_file(tmp_path, ending):
    if ending == "mp4":
        pytest.importorskip("av")

    def fail() -> None:
        with Recorder(tmp_path / f"film.{ending}") as recorder:
            recorder.add(plain(0.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path / "film.webp")
    recorder.add(plain(0.5))
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageError, match=r"film.webp cannot be written \(No space left"):
        recorder.close()
    assert os.listdir(tmp_path) == []


def test_frames_of_a_run(stylizer, content, style, tmp_path):
    """Its start, every third step, and its end; the pictures are those of the results."""
    expected, settings = [], quick(steps=8)
    with stylizer.start(content, style, settings) as run:
        expected.append(run.result().picture)
        for report in run:
            if report.step in (3, 6, 8):
                expected.append(run.result().picture)
    path = tmp_path / "film.png"
    with stylizer.start(content, style, settings) as run:
        with Recording(run, Recorder(path), 3) as record:
            for report in run:
                record.see(report)
        last = pixels(run.result())
    found = frames(path)
    assert len(found) == 4
    for frame, picture in zip(found, expected, strict=True):
        assert np.array_equal(frame, np.asarray(images.to_pillow(picture)))
    assert np.array_equal(expected[-1].pixels, last)


def test_reports_that_come_together_make_one_frame(tmp_path):
    """As a GPU's do: the picture is that of the last."""
    run = SimpleNamespace(reports=[], picture=lambda: plain(len(run.reports) / 100))
    path = tmp_path / "film.png"
    with Recording(run, Recorder(path), 4) as record:
        for ten in range(3):
            fresh = [SimpleNamespace(step=10 * ten + place) for place in range(1, 11)]
            run.reports += fresh
            for report in fresh:
                record.see(report)
    levels = [round(frame.mean() / 2.55) for frame in frames(path)]
    assert levels == [0, 10, 20, 30]


# ---------------------------------------------------------------------------------------- curves


def report(step: int, size: tuple[int, int], terms: dict[str, float]) -> Report:
    loss = sum(terms.values())
    return Report(step, 4, size, step / 4, loss, terms | {"style/relu1_1": 1.0}, 1.0, 1.0)


def test_curves_show_each_group_and_size(tmp_path):
    reports = [
        report(1, (32, 24), {"style": 0.5, "content": 0.1, "tv": 1e-3, "range": 0.0}),
        report(2, (32, 24), {"style": 0.4, "content": 0.2, "tv": 1e-3, "range": 0.0}),
        report(3, (64, 48), {"style": 0.6, "content": 0.1, "tv": 1e-3, "range": 0.0}),
        report(4, (64, 48), {"style": 0.3, "content": 0.1, "tv": 1e-3, "range": 0.0}),
    ]
    path = tmp_path / "loss.svg"
    plot_losses(reports, path)
    text = path.read_text()
    ElementTree.fromstring(text)
    shown = re.findall(r"<!-- (.*?) -->", text)
    assert {"loss", "style", "content", "tv", "32×24 → 64×48", "step"} <= set(shown)
    assert "range" not in shown  # 0 at every step
    assert "style/relu1_1" not in shown
    first = path.read_bytes()
    plot_losses(reports, path)
    assert path.read_bytes() == first
    plot_losses(reports[:2], path)
    assert path.read_bytes() != first
    plot_losses(reports, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as drawn:
        assert drawn.size == (1200, 675)
    plot_losses([], path)
    assert sorted(os.listdir(tmp_path)) == ["loss.png", "loss.svg"]


def test_curves_have_the_values_of_the_reports(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    genuine = Axes.plot

    def plot(axes, x, y, **options):
        drawn.append((options["label"], x, y))
        return genuine(axes, x, y, **options)

    monkeypatch.setattr(Axes, "plot", plot)
    reports = [report(1, (8, 8), {"style": 0.5}), report(2, (9, 9), {"style": 0.25})]
    plot_losses(reports, tmp_path / "loss.svg")
    assert drawn == [
        ("loss", (1,), (0.5,)),
        (None, (2,), (0.25,)),
        ("style", (1,), (0.5,)),
        (None, (2,), (0.25,)),
    ]


# ------------------------------------------------------------------------------------ comparison


def test_a_comparison_is_a_row(tmp_path):
    path = tmp_path / "row.png"
    see_through = Picture(plain(0.2).pixels, np.zeros((16, 24), np.float32))
    compare([plain(0.2, 48, 32), see_through, plain(0.8)], path)
    row = images.load(path).pixels
    assert row.shape == (16, 3 * 24 + 2 * 12, 3)
    for start, level in ((0, 0.2), (24, 1.0), (36, 1.0), (60, 1.0), (72, 0.8)):
        assert np.abs(row[:, start : start + 12] - level).max() < 0.01


def test_a_comparison_is_not_too_wide(tmp_path):
    path = tmp_path / "row.png"
    compare([plain(0.2, 4000, 40), plain(0.8, 4000, 40)], path)
    width, height = images.load(path).size
    assert width <= 4096
    assert height == 20


# --------------------------------------------------------------------------------- the command


def test_the_command_writes_all_of_them(pictures, command):
    plain_words = [*WORDS, "--steps", 6, "--scales", 1]
    assert command(*plain_words)[0] == 0
    before = Path("out.png").read_bytes()
    extras = ["--plot", "loss.svg", "--compare", "row.png", "--record", "film.webp"]
    code, out, err = command(*plain_words, *extras, "--record-every", 2)
    assert (code, err) == (0, "")
    assert out.startswith("out.png: ")
    assert Path("out.png").read_bytes() == before
    assert len(frames(Path("film.webp"))) == 4
    row, result = images.load("row.png").pixels, images.load("out.png").pixels
    assert np.array_equal(row[:, -48:], result)
    content = images.resize(images.load("photo.jpg"), 49, 34).pixels
    assert np.abs(row[:, :49] - content).max() < 0.01
    assert "48×34" in Path("loss.svg").read_text()


def test_what_cannot_be_written_is_refused_before_any_work(pictures, command, monkeypatch):
    words = [*WORDS, "--steps", 2]
    for extra, code, message in (
        (["--plot", "loss.jpg"], 1, "must end in one of .svg, .png, .pdf"),
        (["--plot", "none/loss.svg"], 1, "there is no folder"),
        (["--compare", "row.svg"], 1, "row.svg must end in one of"),
        (["--compare", "photo.jpg"], 1, "is the input photo.jpg"),
        (["--record", "film.gif"], 1, "must end in one of .webp, .png, .apng, .mp4"),
        (["--record", "film.webp", "--record-every", 0], 2, "--record-every"),
        (["--compare", "out.png"], 2, "--compare: out.png is the file of --output"),
        (["--plot", "a.png", "--record", "./a.png"], 2, "--record: a.png is the file of --plot"),
    ):
        assert_fails(command, [*words, *extra], code, message)
    genuine = importlib.util.find_spec
    missing = ("matplotlib", "av")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else genuine(name)
    )
    assert_fails(command, [*words, "--plot", "a.svg"], 1, 'pip install "nst-fast[plot]"')
    assert_fails(command, [*words, "--record", "a.mp4"], 1, 'pip install "nst-fast[video]"')
