"""Colour of pictures: ICC profiles, made by hand, are followed to sRGB and written."""

from __future__ import annotations

import io

import numpy as np
import pytest
from picture_files import cmyk_profile, grey_profile, matrix_profile, noise, smooth, srgb
from PIL import Image, ImageCms

from nst_fast import images
from nst_fast.images import Picture

BYTE = 1 / 255


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_swapped_primaries_are_swapped_back(tmp_path, extension):
    pixels = smooth(48, 40)
    path = tmp_path / f"a.{extension}"
    data = np.rint(srgb(pixels) * 255).astype(np.uint8)
    linear = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    linear.save(path, icc_profile=matrix_profile("bgr", 1.0), quality=100, lossless=True)
    loaded = images.load(path).pixels
    error = np.abs(loaded[..., ::-1] - data / 255)[pixels.min(axis=2) > 0.05]
    assert error.mean() < (2 * BYTE if extension == "jpg" else BYTE)


def test_profile_applies_to_colours_not_to_alpha(tmp_path):
    data = noise(6, 20, 30, 4)
    Image.fromarray(data).save(tmp_path / "a.png", icc_profile=matrix_profile("rgb", 1.0))
    picture = images.load(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.alpha, data[..., 3].astype(np.float32) / 255)
    np.testing.assert_allclose(picture.pixels, srgb(data[..., :3] / 255), atol=3 * BYTE)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profile(tmp_path, mode):
    grey = noise(7, 20, 30)
    image = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey)
    if mode == "LA":
        image.putalpha(Image.fromarray(grey[::-1].copy()))
    image.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    picture = images.load(tmp_path / "a.png")
    expected = np.repeat(srgb(grey / 255)[..., None], 3, axis=2)
    np.testing.assert_allclose(picture.pixels, expected, atol=BYTE)


@pytest.mark.parametrize("extension", ["jpg", "tif"])
@pytest.mark.parametrize("red_cyan", [False, True])
def test_cmyk_follows_its_profile(tmp_path, extension, red_cyan):
    image = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    path = tmp_path / f"a.{extension}"
    image.save(path, icc_profile=cmyk_profile(red_cyan=red_cyan))
    red, green, _ = images.load(path).pixels.mean(axis=(0, 1))
    assert (red > green + 0.2) == red_cyan
    assert (green > red + 0.2) == (not red_cyan)


def test_cmyk_without_profile(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_allclose(images.load(tmp_path / "a.tif").pixels[0, 0], (1, 0, 0), atol=0.02)


@pytest.mark.parametrize("bad", [b"not a profile", cmyk_profile(red_cyan=True)])
def test_a_profile_that_cannot_apply_is_ignored(tmp_path, bad):
    data = noise(8, 20, 30, 3)
    Image.fromarray(data).save(tmp_path / "a.png", icc_profile=bad)
    np.testing.assert_allclose(images.load(tmp_path / "a.png").pixels, data / 255, atol=1e-6)


def test_rgb_profile_on_a_grey_picture(tmp_path):
    grey = noise(9, 20, 30)
    Image.fromarray(grey).save(tmp_path / "a.jpg", icc_profile=matrix_profile("rgb", 1.0))
    decoded = np.asarray(Image.open(tmp_path / "a.jpg")) / 255
    loaded = images.load(tmp_path / "a.jpg").pixels
    np.testing.assert_allclose(loaded[..., 0], srgb(decoded), atol=3 * BYTE)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif"])
def test_saved_pictures_are_tagged_srgb_and_repeat_bit_for_bit(tmp_path, extension):
    one, two = tmp_path / f"1.{extension}", tmp_path / f"2.{extension}"
    images.save(Picture(smooth(32, 24)), one)
    images.save(Picture(smooth(32, 24)), two)
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as image:
        tag = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(tag)
