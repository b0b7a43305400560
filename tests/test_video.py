"""Films: motion, cuts, flicker, files, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import commanding
import numpy as np
import pytest
from commanding import assert_fails
from stylizing import quick

from nst_fast import StyleSettings, images
from nst_fast.images import Picture
from nst_fast.video import (
    VideoOptions,
    motion,
    stylize_frames,
    stylize_video,
    warped,
    warping_error,
)
from nst_fast.video.source import open_source
from nst_fast.video.state import NAME, State

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))  # programs, not a package
from film import Film

command = commanding.command
WIDTH, HEIGHT = 64, 48
QUICK = StyleSettings(size=None, steps=4, scales=1)


@pytest.fixture(scope="module")
def panned(photo) -> list[np.ndarray]:
    """Frames of a camera that moves 3 pixels to the right at a time."""
    wide = photo("chelsea", 96, HEIGHT)
    return [np.ascontiguousarray(wide[:, x : x + WIDTH]) for x in (0, 3, 6, 9)]


@pytest.fixture
def folder(tmp_path, monkeypatch, panned, style) -> Path:
    """The current folder, with frames, a film of them and a style."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shots").mkdir()
    for number, frame in enumerate(panned, 8):  # 10 comes behind 9
        images.save(images.load(frame), f"shots/shot{number}.png")
    images.save(images.load(style), "paint.png")
    return tmp_path


def write_clip(path: str, frames, rate: int = 12, sound: str = "") -> None:
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        heard = out.add_stream(sound, rate=48000) if sound else None
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
        if heard is not None:
            tone = np.sin(np.arange(48000 * len(frames) // rate) / 20).astype(np.float32)[None]
            packed = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            packed.sample_rate = 48000
            out.mux([*heard.encode(packed), *heard.encode(None)])


def sound_of(path: str) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.size]


# --------------------------------------------------------------------------------- motion and cuts


def test_motion_is_that_of_a_film_with_known_flow() -> None:
    film = Film(width=192, height=108)
    moved = motion(Picture(film.frame(9)), Picture(film.frame(10)))
    truth, seen = film.flow(10)
    error = np.linalg.norm(moved.flow - truth, axis=2)
    trusted = moved.seen > 0
    assert error[trusted & seen].mean() < 0.25
    assert (trusted & ~seen).sum() < 0.4 * (~seen).sum()  # hidden before, or outside
    assert (trusted & seen).sum() > 0.8 * seen.sum()
    assert moved.explained > 0.6


def test_a_picture_moves_with_the_motion(panned) -> None:
    old, new = (images.load(frame) for frame in panned[:2])
    moved = motion(old, new)
    assert not moved.seen[:, -3:].any()  # came in from the right
    assert np.median(moved.flow[..., 0]) == pytest.approx(3, abs=0.1)
    found = warped(old, moved).pixels
    inner = moved.seen > 0
    assert np.abs(found - new.pixels)[inner].mean() < 0.01
    still = type(moved)(np.zeros_like(moved.flow), moved.seen, 1.0)
    assert warping_error(old, new, still) > 20 * warping_error(old, new, moved)


def test_warping_error_is_a_mean_of_squares_over_what_was_seen() -> None:
    rng = np.random.default_rng(0)
    old, new = (Picture(rng.random((5, 7, 3), np.float32)) for _ in range(2))
    flow = np.zeros((5, 7, 2), np.float32)
    flow[..., 0] = 1
    seen = np.zeros((5, 7), np.float32)
    seen[1:3, 2:6] = 1
    moved = type(motion(old, old))(flow, seen, 1.0)
    expected = np.mean((new.pixels[1:3, 2:6] - old.pixels[1:3, 3:7]).astype(np.float64) ** 2)
    assert warping_error(old, new, moved) == pytest.approx(expected, rel=1e-5)
    nowhere = type(moved)(flow, np.zeros_like(seen), 1.0)
    assert np.isnan(warping_error(old, new, nowhere))


@pytest.mark.parametrize("other", ["coffee", "astronaut", "rocket"])
def test_cuts_are_told_from_motion(photo, panned, other) -> None:
    old = images.load(panned[0])
    assert motion(old, images.load(panned[3])).explained > 0.5
    assert motion(old, images.load(photo(other, WIDTH, HEIGHT))).explained < 0.15


# ----------------------------------------------------------------------------------------- frames


def test_a_cut_begins_anew(stylizer, panned, photo, style) -> None:
    other = photo("coffee", WIDTH, HEIGHT)[::-1].copy()
    made = list(stylize_frames(stylizer, [*panned[:2], other], style, quick(steps=6)))
    assert [frame.cut for frame in made] == [True, False, True]
    assert [len(frame.result.reports) for frame in made] == [6, 3, 6]
    assert made[1].seen > 0.5
    assert made[1].error is not None
    assert made[2].error is None
    alone = stylizer.stylize(other, style, quick(steps=6)).picture.pixels
    assert np.array_equal(made[2].result.picture.pixels, alone)
    options = VideoOptions(cut_share=0, follow_steps=5)
    joined = list(stylize_frames(stylizer, [panned[0], other], style, QUICK, options))
    assert not joined[1].cut
    assert len(joined[1].result.reports) == 5


def flicker(stylizer, frames, style, **changes) -> float:
    options = VideoOptions(**({"follow_steps": 8} | changes))
    made = stylize_frames(stylizer, frames, style, quick(steps=8, smoothing=0.0), options)
    return float(np.mean([frame.error for frame in made if frame.error is not None]))


def test_the_temporal_term_holds_a_frame_to_the_one_before(stylizer, panned, style) -> None:
    free = flicker(stylizer, panned[:3], style, temporal_weight=0.0)
    held = flicker(stylizer, panned[:3], style, temporal_weight=300.0)
    assert held < 0.7 * free


def test_frames_flicker_less_than_those_made_by_themselves(stylizer, panned, style) -> None:
    options = VideoOptions(measure=True)
    noisy = [
        np.clip(f + np.random.default_rng(i).normal(0, 6, f.shape), 0, 255).astype(np.uint8)
        for i, f in enumerate(panned)
    ]
    made = list(stylize_frames(stylizer, noisy, style, quick(steps=24), options))
    assert made[0].alone_error is None
    errors = [(frame.error, frame.alone_error) for frame in made[1:]]
    held, alone = np.mean(errors, axis=0)
    assert held < alone / 2


def test_a_start_and_an_anchor_are_taken_as_far_as_they_are_opaque(stylizer, content, style):
    half = np.zeros((48, 64), np.float32)
    half[:, :32] = 1
    anchor = Picture(np.full((48, 64, 3), 0.5, np.float32), half)
    with stylizer.start(content, style, quick(), anchor=anchor, temporal_weight=1.0) as run:
        begun = run.painting().pixels
        report = next(iter(run))
    assert np.array_equal(begun[:, :32], anchor.pixels[:, :32])
    assert np.array_equal(begun[:, 32:], images.load(content).pixels[:, 32:])
    assert report.terms["temporal"] == 0  # it starts there
    moved = {}
    for weight in (1.0, 300.0):
        with stylizer.start(content, style, quick(), anchor=anchor, temporal_weight=weight) as run:
            for _ in run:
                pass
            assert run.result().terms["temporal"] > 0
            moved[weight] = np.abs(run.painting().pixels - begun).mean(axis=(0, 2))
    assert moved[300.0][:32].mean() < 0.5 * moved[1.0][:32].mean()
    assert moved[300.0][40:].mean() > 0.5 * moved[1.0][40:].mean()


def test_frames_of_two_sizes_are_refused(stylizer, panned, style) -> None:
    frames = [panned[0], panned[1][:40].copy()]
    with pytest.raises(Exception, match=r"different sizes \(64×48, then 64×40\)"):
        list(stylize_frames(stylizer, frames, style, QUICK))


# ------------------------------------------------------------------------------------------ files


def test_a_folder_becomes_a_folder_in_natural_order(stylizer, folder) -> None:
    summary = stylize_video(stylizer, "shots", "paint.png", "out", QUICK)
    made = sorted(p.name for p in Path("out").glob("*.png"))
    assert made == ["shot10.png", "shot11.png", "shot8.png", "shot9.png"]
    state = State.load(Path("out"))
    assert state is not None
    assert [row.file for row in state.rows] == [f"shot{n}.png" for n in (8, 9, 10, 11)]
    assert (summary.frames, summary.made, summary.cuts) == (4, 4, 1)
    again = stylize_video(stylizer, "shots/*.png", "paint.png", "out", QUICK)
    assert (again.frames, again.made, again.flicker) == (4, 0, summary.flicker)


def test_a_film_keeps_rate_times_size_and_sound(stylizer, folder, panned) -> None:
    odd = [frame[:47, :63].copy() for frame in panned]
    even = [np.pad(frame, ((0, 1), (0, 1), (0, 0)), mode="edge") for frame in odd]
    write_clip("clip.mp4", even, sound="aac")
    summary = stylize_video(stylizer, "clip.mp4", "paint.png", "out.mp4", quick(size=61))
    assert summary.frames == 4
    assert sorted(os.listdir()) == ["clip.mp4", "out.mp4", "paint.png", "shots"]
    with av.open("out.mp4") as made, av.open("clip.mp4") as given:
        stream, source = made.streams.video[0], given.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (62, 46)  # 61×46, made even
        assert stream.average_rate == source.average_rate == 12
        times = [frame.time for frame in made.decode(stream)]
        assert times == pytest.approx([frame.time for frame in given.decode(source)])
    assert sound_of("out.mp4") == sound_of("clip.mp4")
    done = stylize_video(stylizer, "clip.mp4", "paint.png", "out.mp4", quick(size=61))
    assert (done.frames, done.made) == (0, 0)


def test_colours_survive_a_film(stylizer, folder) -> None:
    from nst_fast.video import writing

    colours = [(200, 40, 30), (30, 180, 60), (40, 60, 210), (128, 128, 128), (250, 240, 235)]
    frame = np.repeat(np.array(colours, np.uint8)[None, :, None], 40, axis=0)
    frame = np.ascontiguousarray(np.repeat(frame, 20, axis=2).reshape(40, 100, 3))
    images.save(images.load(frame), "colours.png")
    shots = open_source("shots", 30000 / 1001)
    assert shots.fps == Fraction(30000, 1001)
    writing.write_film(Path("c.mp4"), [(Path("colours.png"), 0)], shots, limited=False, mark="m")
    assert writing.mark_of(Path("c.mp4")) == "m"
    (taken,) = open_source("c.mp4", None).frames()
    inner = np.abs(taken.picture.pixels * 255 - frame)[:, 6::20]
    assert inner.max() < 5


def test_sound_that_does_not_fit_is_left_out(stylizer, folder, panned, caplog) -> None:
    write_clip("clip.mkv", panned, sound="pcm_s16le")
    stylize_video(
        stylizer, "clip.mkv", "paint.png", "out.mp4", QUICK, options=VideoOptions(frames=1)
    )
    assert "cannot hold the sound" in caplog.text
    with av.open("out.mp4") as made:
        assert not made.streams.audio
        assert len(list(made.decode(video=0))) == 1
    stylize_video(stylizer, "clip.mkv", "paint.png", "out.mkv", QUICK, options=VideoOptions())
    assert sound_of("out.mkv") == sound_of("clip.mkv")


def test_a_film_that_was_cut_off_is_told(folder, panned, caplog) -> None:
    """By what it says of itself; not where fewer frames were asked for."""
    write_clip("whole.mkv", [panned[number % 4] for number in range(40)])
    data = Path("whole.mkv").read_bytes()
    Path("cut.mkv").write_bytes(data[: len(data) // 2])
    assert len([*open_source("whole.mkv", None).frames()]) == 40
    next(open_source("cut.mkv", None).frames())
    assert not caplog.records
    for first in (0, 3):
        count = first + len([*open_source("cut.mkv", None).frames(first)])
        assert 3 < count < 30
        told = f"cut.mkv ends after {count} of 40 frames; is all of it there?"
        assert caplog.messages.pop() == told
        caplog.clear()


def test_turned_films_are_upright(folder, panned, monkeypatch) -> None:
    write_clip("clip.mp4", panned)
    upright = next(iter(open_source("clip.mp4", None).frames())).picture.pixels
    from nst_fast.video import source

    class Turned:
        rotation = 90

        def __init__(self, frame) -> None:
            self._frame = frame

        def __getattr__(self, name):
            return getattr(self._frame, name)

    plain = source._picture
    monkeypatch.setattr(source, "_picture", lambda frame: plain(Turned(frame)))
    turned = next(iter(open_source("clip.mp4", None).frames())).picture
    assert turned.size == (HEIGHT, WIDTH)
    assert np.array_equal(turned.pixels, np.rot90(upright))


KILLED = """
import os, signal, sys
from nst_fast import EngineOptions, StyleSettings, Stylizer
from nst_fast.video import stylize_video
def kill(row, number, total):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
stylize_video(Stylizer(EngineOptions(provider="cpu", threads=1)), "shots", "paint.png", "out",
              StyleSettings(size=None, steps=4, scales=1), observer=kill)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(stylizer, folder) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = {p.name: p.stat().st_mtime_ns for p in Path("out").glob("*.png")}
    assert sorted(kept) == ["shot8.png", "shot9.png"]
    summary = stylize_video(stylizer, "shots", "paint.png", "out", QUICK)
    assert (summary.frames, summary.made) == (4, 2)
    assert {name: Path("out", name).stat().st_mtime_ns for name in kept} == kept
    stylize_video(stylizer, "shots", "paint.png", "whole", QUICK)
    for path in Path("whole").glob("*.png"):
        assert path.read_bytes() == Path("out", path.name).read_bytes()


def test_a_trial_of_a_few_frames_is_gone_on_from(stylizer, folder) -> None:
    stylize_video(stylizer, "shots", "paint.png", "out", QUICK, options=VideoOptions(frames=1))
    assert stylize_video(stylizer, "shots", "paint.png", "out", QUICK).made == 3


def test_frames_of_other_settings_are_not_mixed(stylizer, folder) -> None:
    one = VideoOptions(frames=1)
    stylize_video(stylizer, "shots", "paint.png", "out", QUICK, options=one)
    with pytest.raises(Exception, match="out has frames of another film, style or other settings"):
        stylize_video(stylizer, "shots", "paint.png", "out", quick(steps=3), options=one)
    redo = VideoOptions(frames=1, redo=True)
    assert (
        stylize_video(stylizer, "shots", "paint.png", "out", quick(steps=3), options=redo).made == 1
    )
    Path("out/shot8.png").unlink()
    with pytest.raises(Exception, match=r"shot8\.png is missing or was changed; give --redo"):
        stylize_video(stylizer, "shots", "paint.png", "out", quick(steps=3), options=one)
    Path("out", NAME).write_bytes(b"PK no")
    with pytest.raises(Exception, match="is damaged"):
        stylize_video(stylizer, "shots", "paint.png", "out", quick(steps=3), options=one)


# ---------------------------------------------------------------------------------------- command


FEW = ["--size", "48", "--steps", "3", "--frames", "2", "--threads", "1", "--provider", "cpu"]


def test_the_command_tells_what_it_made(folder, command) -> None:
    words = ["video", "shots", "paint.png", "-o", "out", *FEW]
    code, out, _ = command(*words)
    assert code == 0
    assert out.startswith("out: 2 frames, 1 shot in ")
    assert "flicker" in out
    code, out, _ = command(*words, "--json")
    summary = json.loads(out)
    assert (code, summary["frames"], summary["made"]) == (0, 2, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.mp4", "paint.png", "-o", "out.mp4"], "none.mp4: no such file"),
        (["none/*.png", "paint.png", "-o", "out"], "none/*.png: no pictures there"),
        (["shots", "none.jpg", "-o", "out.mp4"], "none.jpg: no such file"),
        (["paint.png", "paint.png", "-o", "out.mp4"], "paint.png is a picture; use nst-fast styl"),
        (["text.mp4", "paint.png", "-o", "out.mp4"], "text.mp4 cannot be read as a film"),
        (["shots", "paint.png", "-o", "out.avi"], "out.avi must end in one of .mp4, .mov, .mkv"),
        (["shots", "paint.png", "-o", "shots"], "output shots is the input"),
        (["shots", "paint.png", "-o", "no/out.mp4"], "there is no folder no; create it"),
        (["shots", "paint.png", "-o", "shots", "--fps", "0"], "--fps must be a number, above 0.01"),
        (["text.mp4", "paint.png", "-o", "o.mp4", "--fps", "9"], "--fps is for a folder"),
        (["shots", "paint.png", "-o", "out", "--cut-share", "2"], "--cut-share must be a number"),
        (["shots", "paint.png", "-o", "out", "--follow-steps", "0"], "--follow-steps must be"),
        (["shots", "paint.png", "-o", "out", "--temporal-weight", "-1"], "--temporal-weight must"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(folder, command, words, message) -> None:
    Path("text.mp4").write_text("no film")
    misused = message.startswith("--") and "is for" not in message
    assert_fails(command, ["video", *words], 2 if misused else 1, message)


def test_without_the_extra_one_line_names_it(folder) -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from nst_fast import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["video", "shots", "paint.png", "-o", "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'pip install "nst-fast[video]"' in done.stderr
    assert done.stderr.count("\n") == 1
