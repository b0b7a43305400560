"""Colours that nobody sees have no part in a picture: alpha read, resampled, filled in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import noise, png, smooth
from PIL import Image

from nst_fast import images
from nst_fast.images import Picture
from nst_fast.images.filling import fill

QUICK = settings(max_examples=25, deadline=None)
SIDES = st.integers(16, 61)
SEEDS = st.integers(0, 2**32 - 1)


def opacity(seed: int, width: int, height: int) -> np.ndarray:
    """Clear, faint, half-clear and opaque areas."""
    levels = np.array([0, 0, 0.01, 0.5, 1, 1], np.float32)
    return levels[noise(seed, height, width) % len(levels)]


@QUICK
@given(SIDES, SIDES, st.integers(1, 90), st.integers(1, 90), SEEDS)
def test_what_is_hidden_has_no_part(width, height, new_width, new_height, seed):
    alpha = opacity(seed, width, height)
    shown = noise(seed, height, width, 3).astype(np.float32) / 255
    found = []
    for other in range(2):
        hidden = noise(seed + 1 + other, height, width, 3).astype(np.float32) / 255
        picture = Picture(np.where(alpha[..., None] > 0, shown, hidden), alpha)
        found.append(images.resize(picture, new_width, new_height))
        found.append(images.resize(picture, width, height))
    for one, other in (found[0::2], found[1::2]):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.alpha, other.alpha)
    np.testing.assert_array_equal(found[1].alpha, alpha)
    whole = alpha == 1
    np.testing.assert_array_equal(found[1].pixels[whole], shown[whole])
    np.testing.assert_allclose(found[1].pixels[alpha == 0.5], shown[alpha == 0.5], atol=1e-6)


@QUICK
@given(SIDES, SIDES, st.integers(1, 90), st.integers(1, 90), SEEDS)
def test_one_colour_stays_that_colour(width, height, new_width, new_height, seed):
    """No dark or light rim, whatever the shape of what shows."""
    alpha = opacity(seed, width, height)
    alpha[height // 2, width // 2] = 1
    pixels = np.where(alpha[..., None] > 0, np.float32(0.9), np.zeros(3, np.float32))
    resized = images.resize(Picture(pixels, alpha), new_width, new_height)
    np.testing.assert_allclose(resized.pixels, 0.9, atol=2e-4)


@QUICK
@given(SIDES, SIDES, st.integers(1, 90), st.integers(1, 90), SEEDS)
def test_opaque_pictures_do_not_change_by_a_bit(width, height, new_width, new_height, seed):
    pixels = noise(seed, height, width, 3).astype(np.float32) / 255
    plain = images.resize(Picture(pixels), new_width, new_height)
    alpha = np.ones((height, width), np.float32)
    opaque = images.resize(Picture(pixels, alpha), new_width, new_height)
    for c in range(3):
        plane = Image.fromarray(np.ascontiguousarray(pixels[..., c]))
        expected = np.asarray(plane.resize((new_width, new_height), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(plain.pixels[..., c], np.clip(expected, 0, 1))
    np.testing.assert_array_equal(opaque.pixels, plain.pixels)


def test_the_fill_is_the_membrane_between_the_edges():
    """The Laplace equation in one direction is a straight line."""
    plane = np.full((64, 96), 0.7, np.float32)
    weight = np.zeros((64, 96), np.float32)
    plane[:, :16], plane[:, 80:] = 0.2, 0.8
    weight[:, :16] = weight[:, 80:] = 1
    filled = fill(plane, weight)
    np.testing.assert_array_equal(filled[weight == 1], plane[weight == 1])
    line = 0.2 + 0.6 * (np.arange(16, 80) - 15) / 65
    assert np.abs(filled[:, 16:80] - line).max() < 0.04
    assert np.abs(np.diff(filled, axis=1)).max() < 0.03  # no edge anywhere: the line's is 0.009


def test_the_fill_meets_a_smooth_picture_without_an_edge():
    pixels, weight = smooth(90, 70)[..., 0], np.ones((70, 90), np.float32)
    y, x = np.mgrid[:70, :90]
    weight[np.hypot(x - 45, y - 35) > 25] = 0
    filled = fill(pixels * weight, weight)
    assert np.abs(np.diff(filled, axis=1)).max() < 2 * np.abs(np.diff(pixels, axis=1)).max()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 1), (33, 65)])
def test_where_nothing_shows_the_fill_is_grey(shape):
    found = fill(np.ones(shape, np.float32), np.zeros(shape, np.float32))
    np.testing.assert_array_equal(found, 0.5)


def test_one_faint_pixel_is_enough():
    alpha = np.zeros((500, 400), np.float32)
    alpha[3, 7] = 1 / 255
    picture = images.resize(Picture(np.full((500, 400, 3), 0.25, np.float32), alpha), 40, 50)
    np.testing.assert_allclose(picture.pixels, 0.25, atol=1e-3)


# --------------------------------------------------------------------- the ways to be transparent


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_shade_of_a_grey_png(tmp_path, depth):
    """Of any depth: Pillow decodes 2 and 4 bits to 8, but leaves the shade as it is stored."""
    levels = 2**depth
    shades = (np.arange(24 * 32).reshape(24, 32) * 7919 % levels).astype(np.uint32)
    packed = np.unpackbits(shades.astype(">u4").view(np.uint8).reshape(24, 32, 4), axis=2)
    rows = np.packbits(packed[..., -depth:].reshape(24, -1), axis=1)
    clear = levels - 1
    chunks = [(b"tRNS", clear.to_bytes(2, "big"))]
    (tmp_path / "a.png").write_bytes(png(32, 24, rows, depth=depth, colours=0, chunks=chunks))
    picture = images.load(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.alpha, shades != clear)
    np.testing.assert_allclose(picture.pixels[..., 0], shades / clear, atol=1e-6)


def test_the_transparent_colour_of_a_deep_png(tmp_path):
    deep = np.random.default_rng(1).integers(0, 65536, (24, 32, 3)).astype(">u2")
    deep[5:9, 6:12] = (0x1234, 0x5678, 0x9ABC)
    rows = deep.view(np.uint8).reshape(24, -1)
    chunks = [(b"tRNS", deep[5, 6].tobytes())]
    (tmp_path / "a.png").write_bytes(png(32, 24, rows, depth=16, colours=2, chunks=chunks))
    alpha = images.load(tmp_path / "a.png").alpha
    np.testing.assert_array_equal(alpha, (deep != deep[5, 6]).any(axis=2))


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "gif", "jp2", "avif", "heic", "jxl"])
def test_every_format_with_transparency_gives_it(tmp_path, ending):
    """The picture that is made of it is the same, whatever colour hides in it."""
    if ending in ("heic", "jxl"):
        pytest.importorskip({"heic": "pillow_heif", "jxl": "pillow_jxl"}[ending])
    if ending == "heic":
        import pillow_heif
    exact = {"lossless": True}
    options = {"webp": exact, "jxl": exact, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:, 40:] = 0
    found = []
    for hidden in ((0, 0, 0), (255, 0, 255)):
        data = np.full((48, 64, 4), 200, np.uint8)
        data[:, 40:, :3] = hidden
        data[..., 3] = alpha
        image = Image.fromarray(data)
        path = tmp_path / f"a.{ending}"
        if ending == "heic":
            pillow_heif.from_pillow(image).save(path, quality=-1)
        else:
            image.save(path, **options.get(ending, {}))
        picture = images.load(path)
        np.testing.assert_array_equal(picture.alpha, alpha / np.float32(255))
        found.append(images.resize(picture, 32, 24).pixels)
    lossy = 0.03 if ending in ("avif", "heic") else 1e-6
    assert np.abs(found[0] - 200 / 255).max() <= lossy
    assert np.abs(found[0] - found[1]).max() <= lossy


def test_transparency_of_pillow_images_and_arrays():
    data = noise(3, 24, 32, 4)
    data[..., 3] = np.where(data[..., 3] > 99, 255, 0)
    image = Image.fromarray(data)
    clear = Image.fromarray(data[..., 0])
    clear.info["transparency"] = 7
    np.testing.assert_array_equal(images.load(data).alpha, data[..., 3] / np.float32(255))
    np.testing.assert_array_equal(images.load(image).alpha, images.load(data).alpha)
    np.testing.assert_array_equal(images.load(clear).alpha, data[..., 0] != 7)
    palette = image.convert("RGB").quantize(16)
    palette.info["transparency"] = 3
    np.testing.assert_array_equal(images.load(palette).alpha, np.asarray(palette) != 3)
