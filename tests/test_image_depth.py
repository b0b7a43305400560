"""16 bits a colour, read and written; the content's profile, quality, and what formats lack."""

from __future__ import annotations

import io
import itertools
import logging

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import cmyk_profile, grey_profile, matrix_profile, png, profile, smooth, srgb
from PIL import Image

from nst_fast import OutputOptions, images
from nst_fast.errors import SettingsError
from nst_fast.images import Picture, colour, sixteen

LEVEL = 1 / 65535
DEEP = OutputOptions(bits=16)


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, shape, dtype=np.uint16)


def deep_png(pixels: np.ndarray, colours: int, **options) -> bytes:
    rows = pixels.astype(">u2").view(np.uint8).reshape(len(pixels), -1)
    return png(pixels.shape[1], len(pixels), rows, depth=16, colours=colours, **options)


def deep_tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb", metadata=None, **options)
    return file.getvalue()


def load(data: bytes) -> Picture:
    return images.decode(data, name="a")


# ---------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(("channels", "colours"), [(3, 2), (4, 6), (2, 4)])
def test_every_bit_of_a_png_is_read(channels, colours):
    pixels = values(1, 19, 27, channels)
    picture = load(deep_png(pixels, colours))
    own = pixels.astype(np.float32) / np.float32(65535)
    expected = own[..., :3] if channels > 2 else np.repeat(own[..., :1], 3, axis=2)
    np.testing.assert_array_equal(picture.pixels, expected)
    if channels == 3:
        assert picture.alpha is None
    else:
        np.testing.assert_array_equal(picture.alpha, own[..., -1])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("compression", "predictor"), [(None, None), ("zlib", None), ("zlib", 2)])
def test_every_bit_of_a_tiff_is_read(order, compression, predictor):
    for channels in (3, 4):
        pixels = values(2, 19, 27, channels)
        extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        data = deep_tiff(
            pixels, byteorder=order, compression=compression, predictor=predictor, **extra
        )
        picture = load(data)
        np.testing.assert_array_equal(picture.pixels, pixels[..., :3] / np.float32(65535))
        if channels == 4:
            np.testing.assert_array_equal(picture.alpha, pixels[..., 3] / np.float32(65535))


def test_what_stays_at_eight_bits_is_still_right():
    """Planes of a TIFF one by one."""
    pixels = values(3, 3, 19, 27)
    data = deep_tiff(pixels, planarconfig="separate", compression="zlib")
    expected = (pixels >> 8).transpose(1, 2, 0) / np.float32(255)
    np.testing.assert_array_equal(load(data).pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_both_halves_are_turned(orientation):
    pixels = values(4, 19, 27, 3)
    exif = Image.Exif()
    exif[274] = orientation
    chunk = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    turned = load(deep_png(pixels, 2, chunks=[chunk])).pixels
    upper = load(png(27, 19, (pixels >> 8).astype(np.uint8).reshape(19, -1), chunks=[chunk])).pixels
    assert turned.shape == upper.shape
    np.testing.assert_array_equal(np.floor(turned * 65535 / 256 + 1e-3), np.rint(upper * 255))
    np.testing.assert_array_equal(np.sort(np.rint(turned * 65535).ravel()), np.sort(pixels.ravel()))


def test_a_profile_is_followed_in_sixteen_bits():
    """Against the formula: gamma 2 with the primaries of sRGB."""
    x = np.linspace(0.1, 1, 24 * 32, dtype=np.float64).reshape(24, 32)
    pixels = np.stack((x, x[::-1], x.T.reshape(24, 32)), axis=2)
    stored = np.rint(pixels * 65535).astype(np.uint16)
    data = deep_tiff(stored, iccprofile=matrix_profile("rgb", 2.0))
    found = load(data).pixels
    assert np.abs(found - srgb((stored / 65535) ** 2)).max() < 1e-3  # primaries of four digits
    assert len(np.unique(found[..., 0])) == x.size  # in 8 bits it would be 256


def test_a_grey_profile_is_followed_in_sixteen_bits():
    grey = np.linspace(0.05, 1, 24 * 32).reshape(24, 32)
    stored = np.rint(grey * 65535).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, stored, photometric="minisblack", iccprofile=grey_profile(2.0))
    found = load(file.getvalue()).pixels
    expected = np.repeat(srgb((stored / 65535) ** 2)[..., None], 3, axis=2)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_without_the_extra_a_line_says_what_is_lost(monkeypatch, caplog):
    monkeypatch.setattr(colour, "can_go_deep", lambda: False)
    pixels = values(5, 19, 27, 3)
    data = deep_tiff(pixels, iccprofile=matrix_profile("rgb", 2.0))
    with caplog.at_level(logging.WARNING):
        found = load(data).pixels
    assert np.abs(found - srgb((pixels / 65535) ** 2)).max() < 0.02
    assert 'pip install "nst-fast[icc]"' in caplog.text
    caplog.clear()
    ours = deep_tiff(pixels, iccprofile=colour.srgb_profile())
    np.testing.assert_array_equal(load(ours).pixels, pixels / np.float32(65535))
    assert not caplog.text


@pytest.mark.parametrize("odd", [b"no profile", cmyk_profile(red_cyan=True), grey_profile(1.0)])
def test_a_profile_that_does_not_fit_counts_as_srgb(odd):
    pixels = values(6, 19, 27, 3)
    picture = load(deep_tiff(pixels, iccprofile=odd))
    np.testing.assert_array_equal(picture.pixels, pixels / np.float32(65535))
    assert picture.profile == b""


# ---------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("ending", ["png", "tif", "tiff"])
@pytest.mark.parametrize("alpha", [False, True])
def test_sixteen_bits_are_written(ending, alpha):
    rng = np.random.default_rng(7)
    pixels = rng.random((31, 45, 3)).astype(np.float32)
    cover = rng.random((31, 45)).astype(np.float32) if alpha else None
    data = images.encode(Picture(pixels, cover), f"a.{ending}", DEEP)
    picture = load(data)
    assert np.abs(picture.pixels - pixels).max() <= 0.51 * LEVEL
    if cover is None:
        assert picture.alpha is None
    else:
        assert picture.alpha is not None
        assert np.abs(picture.alpha - cover).max() <= 0.51 * LEVEL
    again = images.encode(picture, f"a.{ending}", DEEP)
    assert again == data
    with Image.open(io.BytesIO(data)) as image:  # what other programs see
        assert image.mode == ("RGBA" if alpha else "RGB")
        assert image.info["icc_profile"] == colour.srgb_profile()


def test_others_read_our_deep_files_as_we_do():
    imagecodecs = pytest.importorskip("imagecodecs")
    for alpha in (None, smooth(45, 31)[..., 0]):
        picture = Picture(smooth(45, 31), alpha)
        planes = picture.pixels if alpha is None else np.dstack((picture.pixels, alpha))
        expected = np.rint(planes * 65535).astype(np.uint16)
        found = imagecodecs.png_decode(images.encode(picture, "a.png", DEEP))
        np.testing.assert_array_equal(found, expected)
        found = tifffile.imread(io.BytesIO(images.encode(picture, "a.tif", DEEP)))
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 4]), st.integers(0, 3))
def test_filters_of_rows_are_undone_by_any_reader(width, height, channels, kind):
    """Of noise, ramps, one colour, and blocks of a row each."""
    pixels = values(width * height, height, width, channels)
    if kind == 1:
        pixels = np.cumsum(pixels // 900, axis=kind, dtype=np.uint16)
    elif kind == 2:
        pixels[:] = pixels[0, 0]
    with pytest.MonkeyPatch.context() as patch:
        if kind == 3:
            patch.setattr(sixteen, "_BLOCK", 1)
        data = sixteen.to_png(pixels, colour.srgb_profile(), b"")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), (pixels >> 8).astype(np.uint8))


def test_filters_of_rows_make_the_file_smaller():
    picture = Picture(smooth(64, 64))
    whole = len(images.encode(picture, "a.png", DEEP))
    plain = len(deep_png(sixteen.values(picture.pixels), 2))
    assert whole < 0.8 * plain


@pytest.mark.parametrize(("ending", "bits"), [("png", 8), ("jpg", 8), ("tif", 16), ("png", 16)])
def test_the_contents_profile_is_kept(ending, bits):
    """The colours are the same, in other numbers, and the file says of which profile they are."""
    odd = matrix_profile("bgr", 1.0)
    pixels = 0.2 + 0.6 * smooth(48, 40)
    options = OutputOptions(bits=bits, profile="keep", quality=100 if ending == "jpg" else None)
    data = images.encode(Picture(pixels, profile=odd), f"a.{ending}", options)
    picture = load(data)
    assert picture.profile == odd
    assert np.abs(picture.pixels - pixels).mean() < {8: 2 / 255, 16: 2 * LEVEL}[bits]
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image.convert("RGB")) / 255
    assert np.abs(stored - pixels).max() > 0.1
    plain = images.encode(Picture(pixels, profile=odd), f"a.{ending}")
    assert load(plain).profile == colour.srgb_profile()


def test_a_profile_that_can_only_be_read_gives_way_to_srgb(caplog):
    """As those of scanners: a table from the device to Lab, and none back."""
    table = cmyk_profile(red_cyan=True)  # has A2B0 alone
    assert colour.from_srgb(smooth(8, 8), table, deep=True) is None
    picture = Picture(smooth(20, 20), profile=profile(b"scnr", b"RGB ", b"Lab ", {}))
    for bits in (8, 16):
        data = images.encode(picture, "a.png", OutputOptions(bits=bits, profile="keep"))
        assert load(data).profile == colour.srgb_profile()
        assert "can only be read" in caplog.text
        caplog.clear()


def test_a_picture_knows_the_profile_of_its_file(tmp_path):
    image = Image.fromarray(np.full((20, 20, 3), 90, np.uint8))
    image.save(tmp_path / "a.png", icc_profile=matrix_profile("rgb", 1.0))
    image.save(tmp_path / "b.png")
    image.convert("CMYK").save(tmp_path / "c.jpg", icc_profile=cmyk_profile(red_cyan=False))
    assert images.load(tmp_path / "a.png").profile == matrix_profile("rgb", 1.0)
    assert images.load(tmp_path / "b.png").profile == b""
    assert images.load(tmp_path / "c.jpg").profile == b""


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_quality_is_a_matter_of_bytes(ending):
    picture = Picture(values(8, 48, 64, 3) / np.float32(65535))
    sizes = [
        len(images.encode(picture, f"a.{ending}", OutputOptions(quality=quality)))
        for quality in (20, 80, None, 100)
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    assert images.encode(picture, f"a.{ending}") == images.encode(
        picture, f"a.{ending}", OutputOptions(quality=95)
    )


def test_lossless_webp():
    picture = Picture(values(9, 48, 64, 3) / np.float32(65535))
    found = load(images.encode(picture, "a.webp", OutputOptions(quality="lossless"))).pixels
    np.testing.assert_array_equal(found, np.rint(picture.pixels * 255) / np.float32(255))
    assert np.abs(load(images.encode(picture, "a.webp")).pixels - picture.pixels).max() > 0.02


@pytest.mark.parametrize(
    ("ending", "changes", "message"),
    [
        ("jpg", {"bits": 16}, "bits: a.jpg is JPEG, which has 8 bits a colour; use .png or .tif"),
        ("webp", {"bits": 16}, "bits: a.webp is WebP"),
        ("png", {"quality": 90}, "quality: a.png is PNG, which loses nothing"),
        ("tif", {"quality": "lossless"}, "quality: a.tif is TIFF, which loses nothing"),
        ("jpg", {"quality": "lossless"}, "quality: JPEG cannot be lossless; use .webp or .png"),
    ],
)
def test_what_a_format_lacks_is_refused(tmp_path, ending, changes, message):
    options = OutputOptions(**changes)
    with pytest.raises(SettingsError) as caught:
        images.check_options(f"a.{ending}", options)
    assert str(caught.value).startswith(message)
    with pytest.raises(SettingsError):
        images.save(Picture(smooth(32, 24)), tmp_path / f"a.{ending}", options)
    assert not list(tmp_path.iterdir())


def test_deep_colours_of_a_profile_need_an_extra(monkeypatch):
    monkeypatch.setattr(colour, "can_go_deep", lambda: False)
    images.check_options("a.png", OutputOptions(profile="keep"))
    with pytest.raises(SettingsError, match=r'profile: keep needs .* "nst-fast\[icc\]"'):
        images.check_options("a.png", OutputOptions(bits=16, profile="keep"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("bits", v) for v in (0, 12, "16", True, None)),
        *(("profile", v) for v in ("adobe", None, 3)),
        *(("quality", v) for v in (0, 101, 50.5, "much", True, float("nan"), [])),
        *((name, v) for name, v in itertools.product(("metadata", "sidecar"), (1, "yes", None))),
    ],
)
def test_impossible_options_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"^{name} must be "):
        OutputOptions(**{name: value})
