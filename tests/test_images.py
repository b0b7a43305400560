"""Decoding, size and layout of pictures, against Pillow and numpy."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import picture_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import bad_file, matrix_profile, noise, smooth
from PIL import Image

from nst_fast import images
from nst_fast.errors import ImageError
from nst_fast.images import MIN_SIDE, Picture

photo = picture_files.photo


SIDES = st.integers(MIN_SIDE, 61)
SEEDS = st.integers(0, 2**32 - 1)
QUICK = settings(max_examples=25, deadline=None)
BYTE = 1 / 255


# ----------------------------------------------------------------------------------------- reading


@QUICK
@given(SIDES, SIDES, SEEDS, st.sampled_from(["L", "LA", "RGB", "RGBA"]))
def test_png_of_every_common_mode_is_read_exactly(width, height, seed, mode):
    data = noise(seed, height, width, len(mode) if mode != "L" else 1)
    image = Image.fromarray(data.squeeze(), mode=None)
    assert image.mode == mode
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        image.save(path)
        picture = images.load(path)
    colours = data[..., :3] if mode.startswith("RGB") else np.repeat(data[..., :1], 3, 2)
    assert picture.pixels.dtype == np.float32
    assert picture.size == (width, height)
    np.testing.assert_array_equal(picture.pixels, colours.astype(np.float32) / 255)
    if mode.endswith("A"):
        np.testing.assert_array_equal(picture.alpha, data[..., -1].astype(np.float32) / 255)
    else:
        assert picture.alpha is None


@QUICK
@given(SIDES, SIDES, SEEDS, st.sampled_from([".png", ".tif", ".TIFF"]), st.booleans())
def test_lossless_round_trip(width, height, seed, extension, with_alpha):
    data = noise(seed, height, width, 4).astype(np.float32) / 255
    alpha = data[..., 3] if with_alpha else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{extension}"
        images.save(Picture(data[..., :3], alpha), path)
        again = images.load(path)
        assert os.listdir(folder) == [path.name]
    np.testing.assert_array_equal(again.pixels, data[..., :3])
    np.testing.assert_array_equal(again.alpha, alpha) if with_alpha else None
    assert (again.alpha is None) == (not with_alpha)


@QUICK
@given(SIDES, SIDES, st.sampled_from([".jpg", ".jpeg", ".webp"]))
def test_lossy_round_trip_is_close(width, height, extension):
    pixels = smooth(width, height)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{extension}"
        images.save(Picture(pixels), path)
        again = images.load(path)
    assert again.alpha is None
    assert np.abs(again.pixels - pixels).mean() < 2 * BYTE


def test_webp_keeps_alpha_and_the_colours_under_it(tmp_path):
    alpha = np.zeros((40, 50), np.float32)
    alpha[:20] = 1
    images.save(Picture(smooth(50, 40), alpha), tmp_path / "a.webp")
    again = images.load(tmp_path / "a.webp")
    np.testing.assert_array_equal(again.alpha, alpha)
    assert np.abs(again.pixels - smooth(50, 40))[25:].mean() < 4 * BYTE


def test_jpeg_lays_transparency_on_white(tmp_path):
    pixels = np.zeros((32, 48, 3), np.float32)
    alpha = np.repeat(np.linspace(0, 1, 48, dtype=np.float32)[None], 32, axis=0)
    images.save(Picture(pixels, alpha), tmp_path / "a.jpg")
    again = images.load(tmp_path / "a.jpg")
    assert again.alpha is None
    assert np.abs(again.pixels - (1 - alpha)[..., None]).mean() < 2 * BYTE


def test_palette_with_and_without_transparency(tmp_path):
    index = noise(2, 20, 30) % 4
    palette = [10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220]
    image = Image.fromarray(index, mode=None).convert("P")
    image.putdata(index.ravel().tolist())
    image.putpalette(palette)
    expected = np.array(palette, np.float32).reshape(4, 3)[index] / 255
    image.save(tmp_path / "plain.png")
    plain = images.load(tmp_path / "plain.png")
    np.testing.assert_allclose(plain.pixels, expected, atol=1e-6)
    assert plain.alpha is None
    image.save(tmp_path / "seen.png", transparency=bytes((0, 85, 170, 255)))
    seen = images.load(tmp_path / "seen.png")
    np.testing.assert_allclose(seen.pixels, expected, atol=1e-6)
    np.testing.assert_allclose(seen.alpha, index / 3, atol=1e-6)


def test_one_transparent_colour_of_an_rgb_png(tmp_path):
    data = noise(3, 20, 20, 3)
    data[5:9, 5:9] = (1, 2, 3)
    Image.fromarray(data).save(tmp_path / "a.png", transparency=(1, 2, 3))
    picture = images.load(tmp_path / "a.png")
    np.testing.assert_allclose(picture.pixels, data / 255, atol=1e-6)
    np.testing.assert_array_equal(picture.alpha, (data != (1, 2, 3)).any(axis=2))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, extension):
    values = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / f"a.{extension}")
    picture = images.load(tmp_path / f"a.{extension}")
    np.testing.assert_allclose(picture.pixels[..., 1], values / 65535, rtol=1e-6)
    assert len(np.unique(picture.pixels)) > 256


def test_big_endian_sixteen_bit_tiff():
    values = np.linspace(0, 65535, 20 * 30).astype(">u2").reshape(20, 30)
    image = Image.frombytes("I;16B", (30, 20), values.tobytes())
    np.testing.assert_allclose(images.load(image).pixels[..., 0], values / 65535, rtol=1e-6)


def test_float_tiff(tmp_path):
    values = np.random.default_rng(4).random((20, 30), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(images.load(tmp_path / "a.tif").pixels[..., 2], values)
    Image.fromarray(values * 3).save(tmp_path / "b.tif")
    with pytest.raises(ImageError, match=r"b\.tif has values outside 0 to 1;"):
        images.load(tmp_path / "b.tif")


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_first_frame_of_an_animation(tmp_path, extension):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    picture = images.load(path)
    np.testing.assert_array_equal(picture.pixels[..., 0], 1)
    np.testing.assert_array_equal(picture.pixels[..., 2], 0)


def test_pillow_image_is_left_as_it_was():
    image = Image.fromarray(noise(5, 20, 30, 3))
    before = image.tobytes()
    np.testing.assert_allclose(images.load(image).pixels, np.asarray(image) / 255, atol=1e-6)
    assert image.tobytes() == before


@QUICK
@given(
    SIDES,
    SIDES,
    SEEDS,
    st.sampled_from([(), (3,), (4,)]),
    st.sampled_from([np.uint8, np.float16, np.float32, np.float64, ">f4"]),
)
def test_arrays(height, width, seed, channels, dtype):
    data = noise(seed, height, width, *channels)
    array = data if dtype == np.uint8 else (data / 255).astype(dtype)
    picture = images.load(array)
    expected = data[..., None].repeat(3, 2) if not channels else data[..., :3]
    np.testing.assert_allclose(picture.pixels, expected / 255, atol=1e-3)
    assert picture.pixels.dtype == np.float32
    assert picture.pixels.flags.c_contiguous
    assert (picture.alpha is not None) == (channels == (4,))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((20, 20, 3), np.nan, np.float32), r"finite and within \[0, 1\]"),
        (np.full((20, 20, 3), 1.5), r"finite and within \[0, 1\]"),
        (np.full((20, 20, 3), -0.1), r"finite and within \[0, 1\]"),
        (np.full((20, 20, 3), np.inf), r"finite and within \[0, 1\]"),
        (np.zeros((20, 20, 3), np.int64), "uint8 or floating point, not int64"),
        (np.zeros((20, 20, 2), np.uint8), r"not \(20, 20, 2\)"),
        (np.zeros((1, 3, 20, 20), np.uint8), r"not \(1, 3, 20, 20\)"),
        (np.zeros((20, 3), np.uint8), "style is 3×20 pixels"),
        (np.zeros((0, 0, 3), np.uint8), "style is 0×0 pixels"),
    ],
)
def test_arrays_that_are_refused(array, message):
    with pytest.raises(ImageError, match=message) as caught:
        images.load(array, name="style")
    assert str(caught.value).startswith("style")


# --------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("pipe", "is not a regular file"),
        ("text", "is not an image that can be read"),
        ("truncated", "cannot be decoded"),
        ("header", "is not an image that can be read|cannot be decoded"),
        ("empty", "is empty"),
        ("bomb", "more than 178 megapixels"),
        ("large", "more than 178 megapixels"),
        ("postscript", "is not an image that can be read"),
    ],
)
def test_bad_files_give_one_line_that_names_them(tmp_path, case, message):
    path = bad_file(case, tmp_path)
    with pytest.raises(ImageError, match=message) as caught:
        images.load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert ";" in text  # the remedy follows


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 400 + ".png", ""])
def test_impossible_paths(name, tmp_path):
    with pytest.raises(ImageError, match=r"no such file|is a folder"):
        images.load(tmp_path / name)
    with pytest.raises(ImageError, match=r"cannot be used|is a folder"):
        images.check_output(tmp_path / name)


def test_unreadable_file(photo, monkeypatch):
    """As open() reports it; root may read every file, so the refusal is put in by hand."""
    genuine = builtins.open

    def refuse(file, *args, **kwargs):
        if os.fspath(file) == os.fspath(photo):
            raise PermissionError(13, "Permission denied", str(photo))
        return genuine(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(ImageError, match=r"photo\.jpg: permission denied"):
        images.load(photo)


@pytest.mark.parametrize("size", [(1, 1), (MIN_SIDE - 1, 100), (100, MIN_SIDE - 1)])
def test_too_small(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=rf"a\.png is {size[0]}×{size[1]} pixels; .* {MIN_SIDE}"):
        images.load(tmp_path / "a.png")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_decoded_or_refused_but_never_crashes(data):
    """Flip bytes of valid files: whatever happens must be a picture or an ImageError."""
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF"]))
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    extra = {"exif": exif} if form != "GIF" else {}
    icc = {"icc_profile": matrix_profile("bgr", 1.8)} if form != "GIF" else {}
    Image.fromarray(noise(11, 24, 24, 3)).save(buffer, form, **extra, **icc)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 900) - 1))] = data.draw(
            st.integers(0, 255)
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bin"
        path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
        with contextlib.suppress(ImageError):
            picture = images.load(path)
            assert np.isfinite(picture.pixels).all()
            assert picture.pixels.shape == (*picture.size[::-1], 3)


# -------------------------------------------------------------------------------- size and layout


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 16_384))
def test_fit(width, height, longest):
    fitted = images.fit((width, height), longest)
    assert max(fitted) == longest
    assert min(fitted) >= 1
    exact = [side * longest / max(width, height) for side in (width, height)]
    assert all(abs(f - e) <= 0.5 or f == 1 for f, e in zip(fitted, exact, strict=True))


@QUICK
@given(SIDES, SIDES, st.integers(1, 90), st.integers(1, 90), SEEDS)
def test_resize_stays_in_range_and_keeps_flat_colour(width, height, new_width, new_height, seed):
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, 2, (height, width, 3)).astype(np.float32)  # Lanczos overshoots here
    flat = np.full((height, width), 0.3, np.float32)
    resized = images.resize(Picture(edges, flat), new_width, new_height)
    assert resized.size == (new_width, new_height)
    assert resized.pixels.dtype == np.float32
    assert resized.pixels.min() >= 0
    assert resized.pixels.max() <= 1
    np.testing.assert_allclose(resized.alpha, 0.3, atol=1e-5)


def test_resize_treats_channels_alike_and_reproduces_a_ramp():
    picture = images.resize(Picture(smooth(64, 48)), 33, 81)
    for c in range(3):
        grey = np.repeat(smooth(64, 48)[..., c : c + 1], 3, axis=2)
        alone = images.resize(Picture(grey), 33, 81)
        np.testing.assert_array_equal(alone.pixels[..., 1], picture.pixels[..., c])
    centres = ((np.arange(33) + 0.5) * 64 / 33 - 0.5) / 63  # where the new pixels sample the old
    inner = slice(4, -4)
    np.testing.assert_allclose(picture.pixels[40, inner, 0], centres[inner], atol=2e-3)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colours_that_are_multiplied_by_alpha_are_divided_again(mode):
    plain = Image.new(mode.upper(), (20, 20), (200, 100) if mode == "La" else (200, 60, 20, 100))
    expected, found = images.load(plain), images.load(plain.convert(mode))
    assert np.abs(found.pixels - expected.pixels).max() <= 3 / 255
    np.testing.assert_array_equal(found.alpha, expected.alpha)


@QUICK
@given(SIDES, SIDES, SEEDS)
def test_tensor_round_trip(height, width, seed):
    pixels = np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)
    tensor = images.to_tensor(pixels)
    assert tensor.shape == (1, 3, height, width)
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor[0, 2], pixels[..., 2])
    assert not np.shares_memory(tensor, pixels)
    np.testing.assert_array_equal(tensor[0].transpose(1, 2, 0), pixels)
