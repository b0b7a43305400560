"""Masks: what they say, what they refuse, and that pictures follow them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from stylizing import pixels, quick
from torch_reference import moments, tensor

from nst_fast import StyleSettings, images, masks
from nst_fast.batch import Job, Row, work
from nst_fast.canvas import Canvas
from nst_fast.errors import ImageError, SettingsError
from nst_fast.images import Picture
from nst_fast.losses import Objective
from nst_fast.masks import in_regions

WIDTH, HEIGHT = 64, 48
LEFT = np.zeros((HEIGHT, WIDTH), np.uint8)
LEFT[:, : WIDTH // 2] = 255
RIGHT = 255 - LEFT
EDGE = np.zeros_like(LEFT)
EDGE[:, -8:] = 255
SOFT = np.linspace(0, 255, WIDTH, dtype=np.uint8)[None].repeat(HEIGHT, axis=0)


def placed(width=WIDTH, height=HEIGHT, blend=(), **given):
    found = masks.load(StyleSettings(style_blend=blend), max(len(blend), 2), **given)
    assert found is not None
    return found.at(width, height)


# ---------------------------------------------------------------------------------- what they say


def test_shares_are_what_masks_blend_and_content_say():
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
    grey[:, :9] = np.array([255, 0, 0])[:, None, None]
    found = placed(blend=(0.5, 0.2, 0.3), style_mask=list(grey[:3]), content_mask=SOFT)
    M = grey[:3].astype(np.float64) / 255
    weighted = M * np.array([0.5, 0.2, 0.3])[:, None, None]
    free = 1 - SOFT.astype(np.float64) / 255
    expected = weighted / weighted.sum(axis=0) * np.minimum(1, M.sum(axis=0)) * free
    np.testing.assert_allclose(found.shares, expected, atol=1e-6)
    np.testing.assert_allclose(found.kept, 1 - free, atol=1e-6)
    np.testing.assert_allclose(found.shares[0, :9], free[:9], atol=1e-6)


def test_a_style_without_a_share_takes_no_place():
    found = placed(blend=(1, 0), style_mask=[LEFT // 2, SOFT])
    np.testing.assert_allclose(found.shares[0], LEFT // 2 / 255, atol=1e-6)
    assert not found.shares[1].any()


def test_masks_of_any_size_are_resized_without_ripples():
    large = np.repeat(np.repeat(RIGHT, 5, axis=0), 5, axis=1)
    for second in (RIGHT, large):
        found = placed(200, 150, style_mask=[LEFT, second]).shares
        assert found.shape == (2, 150, 200)
        for columns, expected in ((slice(0, 95), (1, 0)), (slice(105, None), (0, 1))):
            for share, value in zip(found, expected, strict=True):
                np.testing.assert_allclose(share[:, columns], value, atol=1e-6)
        assert (np.diff(found[0], axis=1) <= 1e-6).all()
    np.testing.assert_allclose(placed(200, 150, style_mask=[LEFT, RIGHT]).shares.sum(axis=0), 1)


def test_what_is_transparent_in_a_mask_is_black():
    both = np.dstack([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), SOFT])
    np.testing.assert_allclose(placed(style_mask=[both, LEFT]).shares.max(), 1)
    np.testing.assert_allclose(
        placed(style_mask=[both, RIGHT]).shares[0, :, 0], SOFT[:, 0] / 255, atol=1e-6
    )


def test_regions_are_ordered_from_dark_to_light(tmp_path):
    colours = {"navy": (0, 0, 128), "red": (200, 0, 0), "yellow": (250, 240, 30)}
    picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    picture[..., 3] = 255
    picture[:, :20, :3], picture[:, 20:50, :3] = colours["yellow"], colours["navy"]
    picture[:, 50:, :3] = colours["red"]
    picture[:7, :7] = (1, 2, 3, 0)  # no colour that anybody sees
    Image.fromarray(picture).save(tmp_path / "rgb.png")
    Image.fromarray(picture[7:, :, :3]).quantize(8).save(tmp_path / "indexed.png")
    found = placed(blend=(1, 1, 1), style_regions=tmp_path / "rgb.png").shares
    for region, columns in enumerate([slice(20, 50), slice(50, None), slice(0, 20)]):
        assert (found[region, 7:, columns] == 1).all()
        assert found[region, 7:].sum() == found[region, 7:, columns].sum()
    assert not found[:, :7, :7].any()
    indexed = masks.load(StyleSettings(), 3, style_regions=tmp_path / "indexed.png")
    for mask, share in zip(indexed.styles, found, strict=True):
        np.testing.assert_array_equal(mask.grey, share[7:])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"style_mask": [np.full_like(LEFT, 255)] * 2},
        {"content_mask": np.zeros_like(LEFT)},
        {"style_mask": [np.full_like(LEFT, 255)] * 2, "content_mask": np.zeros_like(LEFT)},
    ],
)
def test_masks_that_say_nothing_are_none(given):
    assert masks.load(StyleSettings(), 2, **given) is None


def test_a_digest_is_of_all_that_masks_say():
    given = [
        {"style_mask": [LEFT, RIGHT]},
        {"style_mask": [RIGHT, LEFT]},
        {"style_mask": [LEFT, RIGHT], "content_mask": SOFT},
        {"style_mask": [LEFT[::2, ::2], RIGHT]},
        {"content_mask": LEFT},
    ]
    found = [masks.load(StyleSettings(), 2, **each).digest for each in given]
    found.append(masks.load(StyleSettings(style_blend=(1, 2)), 2, **given[0]).digest)
    assert len(set(found)) == len(found)
    assert masks.load(StyleSettings(), 2, **given[0]).digest == found[0]


def test_a_content_is_seen_by_each_style_in_its_place():
    alpha = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    content = Picture(np.zeros((HEIGHT, WIDTH, 3), np.float32), alpha)
    found = masks.load(StyleSettings(), 2, style_mask=[LEFT, RIGHT]).seen(content)
    np.testing.assert_array_equal(found[0].alpha, LEFT / 510)
    np.testing.assert_array_equal(found[1].alpha, RIGHT / 510)


def test_a_region_of_few_cells_is_left_out_of_that_tap(shipped):
    objective = Objective.from_settings(StyleSettings(), shipped.encoder)
    strides = {name: tap.stride for name, tap in shipped.encoder.taps.items()}
    canvas = Canvas.around(HEIGHT, WIDTH, margin=8, stride=16)
    small = np.zeros((HEIGHT, WIDTH), np.float32)
    small[:16, :16] = 1
    shares = np.stack([1 - small, small])
    found, weights, left_out = in_regions(objective, strides, canvas, shares, [None])
    assert left_out == {2: ["relu5_1"]}
    sites = [place for place in weights if place not in strides]
    assert list(found.style) == sites
    every = {f"{tap}/{region}" for tap in objective.style for region in (1, 2)}
    assert set(sites) == every - {"relu5_1/2"}
    # A place that is all of a small picture is not too small for it.
    tiny = Canvas.around(16, 16, margin=0, stride=16)
    _, _, left_out = in_regions(objective, strides, tiny, np.ones((1, 16, 16), np.float32), [None])
    assert not left_out


# ------------------------------------------------------------------------------ what they refuse


BLACK, WHITE = np.zeros_like(LEFT), np.full_like(LEFT, 255)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"style_mask": [LEFT]}, "style_mask: 1 masks for 2 style pictures"),
        ({"style_mask": [LEFT, RIGHT, SOFT]}, "style_mask: 3 masks for 2 style pictures"),
        ({"style_mask": [LEFT, BLACK]}, "the mask of the 2nd style is black"),
        ({"style_mask": [BLACK, BLACK]}, "the mask of the 1st style is black"),
        ({"style_mask": [LEFT, RIGHT], "style_regions": LEFT}, "style_regions: give it or"),
        ({"style_regions": SOFT}, "the picture of regions has 64 colours for 2 style pictures"),
        ({"style_regions": BLACK}, "has 1 colours for 2 style pictures"),
        ({"content_mask": WHITE}, "the content mask is white, nothing would be painted"),
        ({"style_mask": [LEFT.T, RIGHT]}, "48×64 pixels, of other proportions than the content's"),
        ({"content_mask": LEFT[:, ::2]}, "32×48 pixels, of other proportions"),
        ({"style_mask": [LEFT, LEFT], "content_mask": LEFT}, "too small a place for every style"),
    ],
)
def test_masks_that_do_not_fit_are_refused_in_one_line(stylizer, content, style, given, message):
    with pytest.raises(SettingsError) as caught:
        stylizer.start(content, [style, style], quick(), **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masks_that_cannot_be_read_are_refused(stylizer, content, style):
    for given in ({"style_mask": "no/such.png"}, {"content_mask": "no/such.png"}):
        with pytest.raises(ImageError, match=r"no/such\.png: no such file"):
            stylizer.start(content, style, quick(), **given)
        with pytest.raises(ImageError, match=r"no/such\.png: no such file"):
            stylizer.start(content, style, quick(**given))
    with pytest.raises(ImageError, match="the mask of the 1st style: an array must be"):
        stylizer.start(content, style, quick(), style_mask=LEFT.astype(np.int64))


# ------------------------------------------------------------------------- pictures follow them


@pytest.fixture(scope="module")
def other(photo) -> np.ndarray:
    return photo("rocket", 64, 48)


def distances(network, result, styles) -> np.ndarray:
    """Of the moments of the left and of the right half to those of each style, (2, 2)."""

    def of(picture, weights):
        features = network(tensor(images.to_tensor(picture)))
        whole = torch.ones(1, HEIGHT, WIDTH) if weights is None else tensor(weights[None] / 255)
        return {
            tap: moments(features[tap], torch.nn.functional.avg_pool2d(whole, stride))
            for tap, stride in (("relu1_1", 1), ("relu2_1", 2), ("relu3_1", 4))
        }

    wanted = [of(style.astype(np.float32) / 255, None) for style in styles]
    halves = [of(pixels(result), half) for half in (LEFT, RIGHT)]
    return np.array(
        [
            [
                sum(float((half[t] - T[t]).square().sum() / T[t].square().sum()) for t in half)
                for T in wanted
            ]
            for half in halves
        ]
    )


def test_each_half_follows_its_style(stylizer, shipped, content, style, other):
    settings, styles = quick(steps=16), [style, other]
    found = {}
    for name, order in (("ordered", [LEFT, RIGHT]), ("swapped", [RIGHT, LEFT]), ("none", None)):
        result = stylizer.stylize(content, styles, settings, style_mask=order)
        found[name] = distances(shipped.network, result, styles)
    ordered, swapped, blend = found["ordered"], found["swapped"], found["none"]
    assert ordered[0, 0] < 0.5 * ordered[0, 1]
    assert ordered[1, 1] < 0.5 * ordered[1, 0]
    assert swapped[0, 1] < 0.5 * swapped[0, 0]
    assert swapped[1, 0] < 0.5 * swapped[1, 1]
    assert ordered[0, 0] < 0.5 * blend[0, 0]
    assert ordered[1, 1] < 0.5 * blend[1, 1]


@pytest.mark.parametrize("init", ["content", "noise", "transfer"])
def test_the_photograph_stays_where_its_mask_is_white(stylizer, content, style, small_scales, init):
    """At every size and from every start; with grey, it stays in part."""
    grey = (LEFT * 0.5).astype(np.uint8)
    photograph = content.astype(np.float32) / 255
    settings = quick(scales=2, steps=6, init=init)
    plain = pixels(stylizer.stylize(content, style, settings))
    found = pixels(stylizer.stylize(content, style, settings, content_mask=LEFT))
    half = pixels(stylizer.stylize(content, style, settings, content_mask=grey))
    np.testing.assert_allclose(found[:, :31], photograph[:, :31], atol=1e-6)
    moved = [np.abs(each - photograph)[:, :31].mean() for each in (half, plain)]
    assert 0.2 * moved[1] < moved[0] < 0.8 * moved[1]
    assert (
        np.abs(found - photograph)[:, 40:].mean() > 0.5 * np.abs(plain - photograph)[:, 40:].mean()
    )


def test_white_masks_are_no_masks(stylizer, content, style, other):
    results = [
        stylizer.stylize(content, [style, other], quick(steps=2), style_mask=white)
        for white in (None, [WHITE, WHITE])
    ]
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-5)
    np.testing.assert_array_equal(*map(pixels, results))


def test_masks_work_with_transparency_margin_and_the_settings_paths(
    stylizer, content, style, other, tmp_path, small_scales
):
    """A picture from paths is that from arrays; what is hidden has no part in it."""
    for name, mask in (("left", LEFT), ("right", RIGHT), ("kept", SOFT)):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    named = {
        "style_mask": (tmp_path / "left.png", tmp_path / "right.png"),
        "content_mask": tmp_path / "kept.png",
    }
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:10] = 0
    found = []
    for hidden in (0, 255):
        shown = np.dstack([content, alpha])
        shown[:10, :, :3] = hidden
        for given in ({"settings": quick(scales=2, margin=5, **named)},
                      {"settings": quick(scales=2, margin=5), "style_mask": [LEFT, RIGHT],
                       "content_mask": SOFT}):  # fmt: skip
            found.append(stylizer.stylize(shown, [style, other], **given))
    np.testing.assert_array_equal(found[0].picture.alpha, alpha / 255)
    for result in found[1:]:
        np.testing.assert_array_equal(result.picture.pixels[10:], found[0].picture.pixels[10:])
    assert any("the 1st style" in note for note in found[0].notes)  # of 6 cells at 32 pixels


def test_each_style_has_its_own_size(stylizer, content, style, other):
    one, same, apart = (
        stylizer.stylize(content, [style, other], quick(style_scale=scale, steps=2))
        for scale in (0.5, (0.5, 0.5), (0.5, 1.0))
    )
    np.testing.assert_array_equal(pixels(one), pixels(same))
    assert apart.loss != one.loss
    assert np.abs(pixels(apart) - pixels(one)).mean() > 1e-4


def test_colours_are_those_of_each_place(stylizer, style):
    """With ``linear``, a style gets the colours of what it is put over."""
    content = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    content[:, :32], content[:, 32:] = (200, 40, 40), (40, 40, 200)
    content += np.random.default_rng(1).integers(0, 30, content.shape, dtype=np.uint8)
    run = stylizer.start(content, [style, style], quick(colour="linear"), style_mask=[LEFT, RIGHT])
    with run:
        red, blue = (each.pixels.mean(axis=(0, 1)) for each in run._seen.styles)
    assert red[0] > 0.7 > 0.3 > red[2]
    assert blue[2] > 0.7 > 0.3 > blue[0]


def test_pictures_together_have_the_masks_of_each(stylizer, content, style, other):
    alone = stylizer.stylize(content, [style, other], quick(), style_mask=[LEFT, RIGHT])
    (result,) = stylizer.stylize_together(
        [content], [style, other], quick(), style_mask=[LEFT, RIGHT]
    )
    np.testing.assert_array_equal(result.picture.pixels, alone.picture.pixels)


def test_jobs_of_a_batch_have_masks(tmp_path, stylizer, content, style, other):
    """One by one and in a group; the row tells what was left out."""
    arrays = {"in": content, "a": style, "b": other, "left": LEFT, "edge": EDGE, "kept": SOFT}
    for name, array in arrays.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    path = {name: str(tmp_path / f"{name}.png") for name in arrays}
    settings = quick(style_mask=(path["left"], path["edge"]), content_mask=path["kept"], steps=2)
    job = Job(path["in"], (path["a"], path["b"]), str(tmp_path / "out.png"), settings)
    loaded = work.load(job, work.StyleCache())
    made = [work.make(stylizer, loaded), *work.make_together(stylizer, [loaded, loaded])]
    expected = stylizer.stylize(
        content, [style, other], quick(steps=2), style_mask=[LEFT, EDGE], content_mask=SOFT
    )
    for each in made:
        np.testing.assert_array_equal(each.result.picture.pixels, expected.picture.pixels)
        assert each.row.notes == expected.notes
        assert any("the 2nd style" in note for note in each.row.notes)
        assert Row.from_json(each.row.to_json()) == each.row
