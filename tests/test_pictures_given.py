"""What is given for pictures: transparency in whole runs, and what is no picture."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from closeness import assert_close
from PIL import Image
from stylizing import pixels, quick

from nst_fast import Result
from nst_fast.config import Colour
from nst_fast.errors import ImageError

# -------------------------------------------------------------------------------- transparency


def test_alpha_of_the_content_is_kept(stylizer, content, style, tmp_path):
    rng = np.random.default_rng(1)
    alpha = rng.integers(0, 256, content.shape[:2], dtype=np.uint8)
    result = stylizer.stylize(np.dstack((content, alpha)), style, quick())
    assert_close(result.picture.alpha, alpha / 255, 1e-6)
    result.save(tmp_path / "out.png")
    saved = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(saved[..., 3], alpha)
    assert np.abs(saved[..., :3] / 255 - pixels(result)).max() <= 0.502 / 255
    assert stylizer.stylize(content, style, quick()).picture.alpha is None


def test_transparent_pixels_of_the_content_do_not_count(stylizer, content, style):
    """What shows is stylised by itself; opaque pixels count as without an alpha channel."""
    opaque = np.full(content.shape[:2], 255, np.uint8)
    whole = pixels(stylizer.stylize(content, style, quick()))
    with_alpha = pixels(stylizer.stylize(np.dstack((content, opaque)), style, quick()))
    assert np.abs(with_alpha - whole).max() < 1e-4
    half = opaque.copy()
    half[:, 32:] = 0
    result = stylizer.stylize(np.dstack((content, half)), style, quick(tv_weight=0))
    seen = pixels(result)[:, :32]
    assert np.abs(seen - content[:, :32] / 255).max() > 0.02
    # What is stored beside it goes on from what shows, and is calm.
    beside = pixels(result)[:, 32:]
    assert np.abs(np.diff(beside[:, 8:], axis=1)).max() < 0.2 * np.abs(np.diff(seen, axis=1)).max()


HIDDEN = [(0, 0, 0), (255, 0, 255), (250, 250, 250)]


def sticker(hidden: tuple[int, int, int], side: int = 96) -> np.ndarray:
    """A light disc with a soft edge, and a colour that nobody sees around it."""
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    alpha = np.rint(np.clip(side / 3 - np.hypot(x, y), 0, 1) * 255).astype(np.uint8)
    colours = np.where(alpha[..., None] > 0, np.uint8(250), np.array(hidden, np.uint8))
    return np.dstack((colours, alpha))


@pytest.mark.parametrize("size", [None, 64, 130])
@pytest.mark.parametrize("role", ["content", "init"])
@pytest.mark.usefixtures("small_scales")
def test_hidden_colours_change_nothing(stylizer, content, style, tmp_path, size, role):
    """In content and --init, at their own size and at others, over several scales."""
    found = []
    for hidden in HIDDEN:
        Image.fromarray(sticker(hidden)).save(tmp_path / "a.png")
        settings = quick(steps=4, size=size, scales=2)
        if role == "init":
            settings = replace(settings, init=str(tmp_path / "a.png"))
        source = tmp_path / "a.png" if role == "content" else content
        found.append(stylizer.stylize(source, style, settings).picture)
    for other in found[1:]:
        np.testing.assert_array_equal(other.pixels, found[0].pixels)  # the hidden ones as well
        if role == "content":
            np.testing.assert_array_equal(other.alpha, found[0].alpha)


@pytest.mark.parametrize("colour", get_args(Colour))
def test_hidden_colours_change_nothing_in_whatever_colours(stylizer, style, colour):
    clear = np.dstack((style, np.full(style.shape[:2], 255, np.uint8)))
    clear[20:, :, 3] = 0
    found = []
    for hidden in HIDDEN[:2]:
        clear[20:, :, :3] = hidden
        settings = quick(steps=3, size=48, colour=colour)
        found.append(stylizer.stylize(sticker(hidden), clear, settings).picture.pixels)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("colour", ["style", "linear", "luminance"])
def test_a_content_of_which_nothing_shows_is_made(stylizer, content, style, colour):
    """As a frame of an animation may be."""
    clear = np.dstack((content, np.zeros(content.shape[:2], np.uint8)))
    picture = stylizer.stylize(clear, style, quick(colour=colour)).picture
    assert not picture.alpha.any()
    np.testing.assert_array_equal(picture.pixels, 0.5)


@pytest.mark.parametrize("style_scale", [1.0, 0.5])
def test_transparent_pixels_of_the_style_do_not_count(stylizer, content, style, style_scale):
    """Whatever colours are hidden under full transparency."""
    alpha = np.full(style.shape[:2], 255, np.uint8)
    alpha[:, 30:] = 0
    rng = np.random.default_rng(2)
    hidden = [np.zeros_like(style), np.full_like(style, 255), rng.integers(0, 256, style.shape)]
    found = []
    for colours in hidden:
        picture = np.where(alpha[..., None] > 0, style, colours).astype(np.uint8)
        source = np.dstack((picture, alpha))
        found.append(pixels(stylizer.stylize(content, source, quick(style_scale=style_scale))))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    opaque = pixels(stylizer.stylize(content, style, quick(style_scale=style_scale)))
    assert np.abs(found[0] - opaque).max() > 0.01


# ------------------------------------------------------------------------------ no picture at all


class Unlike:
    """No picture, though it can be counted through."""

    def __iter__(self):
        return iter((self, self))


def closed(loaded: bool) -> Image.Image:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    image = Image.open(buffer)
    if loaded:
        image.load()
        image.close()
    else:
        image.__exit__()
    return image


@pytest.mark.parametrize("role", ["content", "style", "init"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "not NoneType"),
        (7, "not int"),
        (b"photo.jpg", "not bytes"),
        (closed(True), "is closed; give it before"),
        (closed(False), "is closed; give it before"),
        (Image.Image(), "0×0 pixels; each side"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_role(stylizer, content, style, role, wrong, said):
    if (role, wrong) == ("init", None):
        return  # which says that there is none
    given = {"content": content, "style": style, "init": None} | {role: wrong}
    with pytest.raises(ImageError, match=rf"^the {role} picture.*{said}"):
        stylizer.start(given["content"], given["style"], quick(), init=given["init"])


@pytest.mark.parametrize("wrong", [None, closed(False), ["a.png"], Unlike()])
def test_what_is_no_picture_is_refused_within_lists(stylizer, content, style, wrong):
    with pytest.raises(ImageError, match=r"^the 2nd style picture"):
        stylizer.start(content, [style, wrong], quick())
    made = stylizer.stylize_together([content, wrong], style, quick(steps=1))
    assert isinstance(made[0], Result)
    assert isinstance(made[1], ImageError)
    assert str(made[1]).startswith("the content picture")


@pytest.mark.parametrize("wrong", [None, "a.png", Path("a.png")])
def test_one_picture_is_no_list_of_contents(stylizer, style, wrong):
    with pytest.raises(ImageError, match="contents: give a list of pictures"):
        stylizer.stylize_together(wrong, style, quick())
