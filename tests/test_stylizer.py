"""Pictures in, a picture out: inputs, starting points, blends, scales."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from problems import make_problem
from stylizing import pixels, quick

from nst_fast import EngineOptions, StyleSettings, Stylizer, schedule, workspace
from nst_fast.images import Picture
from nst_fast.losses import Objective
from nst_fast.workspace import Workspace

# --------------------------------------------------------------------------------------- inputs


def test_every_kind_of_input_gives_the_same_picture(stylizer, content, style, tmp_path):
    sources = []
    for name, array in (("content", content), ("style", style)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(array).save(path)
        floats = array.astype(np.float64) / 255
        sources.append([array, path, str(path), Image.open(path), floats])
    expected = pixels(stylizer.stylize(content, style, quick()))
    for pair in zip(*sources, strict=True):
        found = pixels(stylizer.stylize(*pair, quick()))
        assert np.abs(found - expected).max() < 1e-4, type(pair[0])


def test_grey_pictures_are_taken(stylizer, content):
    result = stylizer.stylize(content[..., 0], Image.fromarray(content).convert("L"), quick())
    assert pixels(result).shape == content.shape


@pytest.mark.parametrize(
    ("size", "expected"), [(None, (97, 61)), (64, (64, 40)), (130, (130, 82)), (16, (16, 10))]
)
def test_odd_sizes_keep_size_and_aspect(stylizer, photo, style, size, expected):
    result = stylizer.stylize(photo("astronaut", 97, 61), style, quick(size=size, steps=2))
    assert result.picture.size == expected
    assert result.summary()["size"] == list(expected)
    pixels(result)


def test_padding_leaves_no_mark(stylizer, photo):
    """With the content for its style and no steps to speak of, the picture is the content."""
    picture = photo("astronaut", 97, 61)
    result = stylizer.stylize(picture, picture, quick(steps=1, style_weight=0.0, tv_weight=0.0))
    assert np.abs(pixels(result) - picture / 255).max() < 1e-3


@pytest.mark.parametrize("last", [True, False])
def test_a_last_evaluation_that_fails_can_be_tried_again(content, style, monkeypatch, last):
    """No picture is lost where, for instance, memory is short for a moment."""
    stylizer = Stylizer(EngineOptions(provider="cpu", threads=1))
    settings = quick(steps=4)
    expected = stylizer.stylize(content, style, settings)
    with stylizer.start(content, style, settings) as run:
        for _ in run if last else ():
            pass
        with monkeypatch.context() as patched:
            patched.setattr(Workspace, "measure", lambda *_: (_ for _ in ()).throw(MemoryError()))
            with pytest.raises(MemoryError):
                run.result()
        if not last:
            for _ in run:
                pass
        assert np.array_equal(pixels(run.result()), pixels(expected))


def test_sessions_of_large_pictures_are_not_kept(content, style, monkeypatch):
    """Nor those that a transparent style needs."""
    monkeypatch.setattr(workspace, "LARGE", 100)
    clear = np.dstack((style, np.full(style.shape[:2], 99, np.uint8)))
    fresh = Stylizer(EngineOptions(provider="cpu", threads=1))
    fresh.stylize(content, clear, quick(steps=2))
    here = fresh._workspace
    assert not any(cache._values for cache in (here._plans, here._targets))


# ------------------------------------------------------------------------------- starting points


def test_noise_is_reproduced_by_its_seed(stylizer, content, style):
    first, again, other = (
        pixels(stylizer.stylize(content, style, quick(init="noise", seed=seed)))
        for seed in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.05


def test_a_picture_to_start_from(stylizer, content, style, tmp_path):
    """The content as a file is the content; another size is resized."""
    path = tmp_path / "start.png"
    Image.fromarray(content).save(path)
    from_content = stylizer.stylize(content, style, quick())
    from_file = stylizer.stylize(content, style, quick(init=str(path)))
    assert np.array_equal(pixels(from_content), pixels(from_file))
    Image.fromarray(style).resize((50, 31)).save(path)
    other = stylizer.stylize(content, style, quick(init=str(path)))
    assert other.picture.size == (64, 48)
    assert other.reports[0].loss != from_content.reports[0].loss


def test_only_content_from_noise_becomes_the_content(stylizer, content, style):
    layers = {"relu1_1": 1.0, "relu2_1": 1.0}
    options = quick(init="noise", style_weight=0.0, content_layers=layers, tv_weight=0, steps=60)
    result = stylizer.stylize(content, style, options)
    assert np.abs(pixels(result) - content / 255).mean() < 0.08
    assert set(result.terms) >= {"content/relu1_1", "content/relu2_1"}
    assert result.terms["style"] == 0


# --------------------------------------------------------------------------------------- blends


def test_blends_lie_between_their_styles(stylizer, content, style, photo):
    other = photo("astronaut", 40, 56)

    def run(*styles, blend=()) -> np.ndarray:
        return pixels(stylizer.stylize(content, list(styles), quick(style_blend=blend)))

    assert np.array_equal(run(style, other, blend=(1, 0)), run(style))
    assert np.array_equal(run(style, other, blend=(0, 3)), run(other))
    equal = run(style, other)
    assert np.array_equal(equal, run(style, other, blend=(2, 2)))
    assert np.abs(equal - run(other, style)).max() < 1e-3
    assert np.abs(equal - run(style)).max() > 0.01


def test_a_larger_style_scale_makes_larger_strokes(stylizer, content):
    """Of stripes: the mean frequency of the picture, which they reach, falls with their width."""
    stripes = np.tile(np.repeat(np.uint8([27, 227]), 8)[None, :, None], (128, 8, 3))

    def frequency(scale: float) -> float:
        result = stylizer.stylize(content, stripes, quick(steps=10, style_scale=scale))
        grey = pixels(result).mean(axis=-1)
        power = np.abs(np.fft.rfft2(grey - grey.mean())) ** 2
        y, x = (f(n) for f, n in zip((np.fft.fftfreq, np.fft.rfftfreq), grey.shape, strict=True))
        return float((power * np.hypot(y[:, None], x)).sum() / power.sum())

    small, plain, large = (frequency(scale) for scale in (0.5, 1.0, 2.0))
    print(f"cycles a pixel: {small:.4f}, {plain:.4f}, {large:.4f}")
    assert small > 1.05 * plain > 1.05**2 * large


# -------------------------------------------------------------------------------- the result


@pytest.mark.parametrize(
    ("size", "margin"), [((64, 48), 7), ((96, 65), 7), ((33, 50), 0), ((33, 50), 7)]
)
def test_the_reported_loss_is_that_of_the_picture(stylizer, shipped, photo, size, margin):
    """In float64, from the pixels that came out; neither padding nor margin counts."""
    settings = quick(steps=10, tv_weight=0.3, margin=margin)
    content, style = photo("chelsea", *size), photo("coffee", max(size), 41)
    result = stylizer.stylize(content, style, settings)
    objective = Objective.from_settings(settings, shipped.encoder)
    image, c, s = (
        x.transpose(2, 0, 1)[None] for x in (pixels(result), content / 255.0, style / 255.0)
    )
    expected = make_problem(shipped, objective, image, c, s, margin=margin).terms[0]
    for name, value in zip(objective.names(), expected, strict=True):
        assert result.terms[name] == pytest.approx(value, rel=1e-3, abs=1e-9), name
    assert result.loss == pytest.approx(expected.sum(), rel=1e-4)
    style_sum = sum(v for name, v in result.terms.items() if name.startswith("style/"))
    assert result.terms["style"] == pytest.approx(style_sum)


def edges(picture: np.ndarray, first: int, last: int) -> float:
    """Mean change from a pixel to the next, away from the border, ``first`` to ``last`` inside."""
    found = []
    for turns in range(4):
        side = np.rot90(picture, turns)[:, last + 2 : -last - 2]
        found.append(np.abs(np.diff(side, axis=0))[first:last].mean())
    return float(np.mean(found))


def test_smooth_pictures_have_no_frame(stylizer, photo):
    """The borders of a bare gradient are as quiet as what lies 8 to 16 pixels inside.

    Of one picture the measure depends on its strokes; hence the mean of three.
    """
    y, x = np.mgrid[0:96, 0:96] / 96
    gradient = np.stack([0.3 + 0.4 * y, 0.4 + 0.2 * x, 0.7 - 0.3 * y], axis=-1)

    def frame(**changes) -> float:
        ratios = []
        for name in ("coffee", "astronaut", "chelsea"):
            settings = StyleSettings(size=96, steps=40, scales=1, **changes)
            picture = pixels(stylizer.stylize(gradient, photo(name, 96, 96), settings)) - gradient
            ratios.append(edges(picture, 0, 3) / edges(picture, 8, 16))
        print(f"{changes}: {ratios}")
        return float(np.mean(ratios))

    assert frame() < 1.25 < frame(margin=0)


def test_a_notebook_shows_the_picture(stylizer, content, style):
    result = stylizer.stylize(content, style, quick(steps=1))
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        assert shown.format == "PNG"
        assert np.array_equal(shown, result.image)


def test_reports_and_summary(stylizer, content, style):
    result = stylizer.stylize(content, style, quick(steps=6))
    assert [r.step for r in result.reports] == [1, 2, 3, 4, 5, 6]
    assert {r.steps for r in result.reports} == {6}
    seconds = [r.seconds for r in result.reports]
    assert seconds == sorted(seconds)
    for report in result.reports:
        parts = sum(v for name, v in report.terms.items() if name not in ("style", "content"))
        assert report.loss == pytest.approx(parts)
    summary = json.loads(json.dumps(result.summary()))
    assert summary["losses"] == [r.loss for r in result.reports]
    assert summary["settings"]["steps"] == 6
    environment = summary["environment"]
    assert environment["provider"] == "cpu"
    assert environment["encoder"] == "vgg19-lite"
    assert {"nst-fast", "numpy", "python"} <= set(environment["versions"])
    assert 0 <= result.timings["step"] <= result.timings["total"]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_optimisers_lower_the_loss(stylizer, content, style, optimizer):
    result = stylizer.stylize(content, style, quick(optimizer=optimizer, steps=30))
    assert result.loss < 0.3 * result.reports[0].loss


def test_the_same_settings_give_the_same_bits(content, style):
    for threads in (1, 2):
        results = [
            Stylizer(EngineOptions(provider="cpu", threads=threads)).stylize(
                content, style, quick(steps=8)
            )
            for _ in range(2)
        ]
        assert np.array_equal(pixels(results[0]), pixels(results[1]))


@pytest.mark.parametrize("plan", ["auto", "fused", "split"])
def test_plans_agree(stylizer, content, style, plan):
    here = Stylizer(EngineOptions(provider="cpu", plan=plan, threads=2))
    result = here.stylize(content, style, quick(steps=10))
    assert result.environment["plan"] == ("split" if plan == "split" else "fused")
    expected = stylizer.stylize(content, style, quick(steps=10))
    assert result.loss == pytest.approx(expected.loss, rel=0.01)


def test_max_pooling_works_with_default_options(max_pack, content, style):
    result = Stylizer(EngineOptions(max_pack.encoder.path)).stylize(content, style, quick(steps=10))
    assert result.loss < result.reports[0].loss


def test_bfloat16_reaches_the_loss_of_float32(backend, photo):
    """After as many steps as by default; both losses are evaluated in float32."""
    backend("openvino", "bf16")
    pictures = photo("astronaut", 128, 128), photo("coffee", 128, 96)
    losses = {
        precision: Stylizer(EngineOptions(provider="openvino", precision=precision))
        .stylize(*pictures, StyleSettings(size=128))
        .loss
        for precision in ("fp32", "bf16")
    }
    print(f"final losses: {losses}")
    assert losses["bf16"] <= 1.01 * losses["fp32"]


def test_default_weights_mean_the_same_at_every_size(photo):
    """Terms of a result at one size and at twice the size, without any weight changed.

    One that grew with the pixels would be four times the other.
    """
    here = Stylizer()
    pictures = photo("astronaut", 192, 192), photo("coffee", 192, 128)
    small, large = (
        here.stylize(*pictures, StyleSettings(size=size, scales=1, steps=60)).terms
        for size in (96, 192)
    )
    print(f"96 px: {small}, 192 px: {large}")
    for name in ("style", "content"):
        assert 0.5 < small[name] / large[name] < 2, name


# ------------------------------------------------------------------------------------- scales


@given(longest=st.integers(16, 16384), scales=st.integers(1, 8), steps=st.integers(1, 10_000))
def test_schedules(longest, scales, steps):
    sizes = schedule.scale_sizes(longest, min(scales, steps))
    assert sizes[-1] == longest
    assert 1 <= len(sizes) <= scales
    assert all(size >= schedule.SMALLEST for size in sizes[:-1])
    assert all(abs(2 * a - b) <= 1 for a, b in pairwise(sizes))
    shares = schedule.scale_steps(steps, len(sizes))
    assert len(shares) == len(sizes)
    assert sum(shares) == steps
    assert min(shares) >= 1
    if steps >= 2 ** len(sizes):  # else every size has the one step that it needs
        assert all(abs(a - 2 * b) <= 2 + len(sizes) for a, b in pairwise(shares))


@pytest.mark.parametrize(
    ("steps", "scales", "shares"),
    [(90, 1, [90]), (90, 2, [60, 30]), (70, 3, [40, 20, 10]), (3, 3, [1, 1, 1]), (5, 2, [3, 2])],
)
def test_each_size_takes_half_as_many_steps(steps, scales, shares):
    assert schedule.scale_steps(steps, scales) == shares


def test_progress_is_in_pixels_times_steps_and_what_is_left_out_is_done():
    small, large = 32 * 24, 64 * 48
    whole = 3 * small + 2 * large
    progress = schedule.Progress(Picture(np.zeros((48, 64, 3), np.float32)), [32, 64], [3, 2])
    assert progress.steps_left == 5
    progress.enter()
    progress.take()
    assert (progress.taken, progress.steps_left, progress.share) == ([1], 4, small / whole)
    progress.left = 0  # the picture no longer changes
    assert (progress.steps_left, progress.share) == (2, 3 * small / whole)
    progress.enter()
    progress.take()
    assert (progress.taken, progress.share) == ([1, 1], (3 * small + large) / whole)


@pytest.mark.usefixtures("small_scales")
def test_every_scale_ends_in_a_picture_of_full_size(stylizer, content, style):
    settings = quick(steps=7, scales=3)
    with stylizer.start(content, style, settings) as run:
        for report in run:
            result = run.result()
            assert result.picture.size == (64, 48)
            assert len(result.reports) == report.step
            pixels(result)
    assert len(run.reports) == 7
    assert np.array_equal(pixels(run.result()), pixels(stylizer.stylize(content, style, settings)))


@pytest.mark.usefixtures("small_scales")
def test_fewer_steps_than_scales(stylizer, content, style):
    result = stylizer.stylize(content, style, quick(steps=1, scales=3))
    assert len(result.reports) == 1
    assert result.picture.size == (64, 48)


# ------------------------------------------------------------------------------- dependencies


def test_no_torch_at_run_time():
    code = """
import sys
from dataclasses import replace
import numpy as np
import nst_fast
rng = np.random.default_rng(0)
content, style = rng.random((2, 32, 32, 3))
result = nst_fast.Stylizer().stylize(content, style, nst_fast.StyleSettings(size=None, steps=2))
assert result.picture.size == (32, 32)
loaded = {"torch", "onnxscript", "safetensors.torch", "cupy"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_reports_and_results_say_their_size(stylizer, content, style):
    """A run that is left at a coarse scale says at what size its loss was evaluated."""
    with stylizer.start(content, style, StyleSettings(size=256, scales=2, steps=4)) as run:
        seen = [(report.size, report.progress) for report in run]
        result = run.result()
    coarse, fine = schedule.scale_steps(4, 2)
    assert [max(size) for size, _ in seen] == [128] * coarse + [256] * fine
    shares = [progress for _, progress in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert result.size == result.picture.size
    with stylizer.start(content, style, StyleSettings(size=256, scales=2, steps=4)) as run:
        next(iter(run))
        early = run.result()
    assert max(early.size) == 128
    assert max(early.picture.size) == 256


def test_styles_may_come_from_a_generator(stylizer, content, style):
    settings = StyleSettings(size=64, steps=1, scales=1)
    result = stylizer.stylize(content, (picture for picture in (style, style)), settings)
    assert result.picture.pixels.shape[2] == 3
