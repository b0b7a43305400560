"""Bad inputs of the command: one line on stderr for each, nothing half done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import commanding
import pytest
from commanding import QUICK, STYLIZE, assert_fails
from picture_files import bad_file, unwritable_folder
from PIL import Image

from nst_fast import encoders
from nst_fast.config import DEFAULT_ENCODER
from nst_fast.stylizer import Stylizer

pictures = commanding.pictures
command = commanding.command


@pytest.mark.parametrize("role", ["content", "style", "init", "mask"])
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("text", "is not an image"),
        ("truncated", "cannot be decoded"),
        ("empty", "is empty"),
        ("bomb", "megapixels"),
    ],
)
def test_bad_pictures(pictures, command, role, case, message):
    bad = bad_file(case, pictures).name
    words = {
        "content": ["stylize", bad, "paint.jpg", "-o", "out.png", *QUICK],
        "style": ["stylize", "photo.jpg", "paint.jpg", bad, "-o", "out.png", *QUICK],
        "init": [*STYLIZE, "--init", bad],
        "mask": [*STYLIZE, "--style-mask", bad],
    }[role]
    assert_fails(command, words, 1, f"{bad}")
    assert_fails(command, words, 1, message)


def test_picture_of_one_pixel(pictures, command):
    Image.new("RGB", (1, 1)).save("dot.png")
    assert_fails(command, ["stylize", "dot.png", *STYLIZE[2:]], 1, "dot.png is 1×1 pixels")


def test_output_is_checked_before_any_work(pictures, command, monkeypatch):
    monkeypatch.setattr(Stylizer, "__init__", lambda *_, **__: pytest.fail("work was begun"))
    Path("folder.png").mkdir()
    Path("link.png").symlink_to("photo.jpg")
    Path("same.png").hardlink_to("paint.jpg")
    for output, message in [
        ("folder.png", "is a folder"),
        ("photo.jpg", "is the input photo.jpg"),
        ("./paint.jpg", "is the input paint.jpg"),
        ("link.png", "is the input photo.jpg"),
        ("same.png", "is the input paint.jpg"),
        ("out.bmp", "must end in one of .png, .jpg"),
        ("none/out.png", "create it first"),
        ("photo.jpg/out.png", "cannot be used"),
    ]:
        words = ["stylize", "photo.jpg", "paint.jpg", "-o", output]
        assert_fails(command, words, 1, message)
    words = ["stylize", "photo.jpg", "paint.jpg", "-o", "other.jpg"]
    for option in ("--init", "--style-mask", "--style-regions", "--content-mask"):
        assert_fails(command, [*words, option, "other.jpg"], 1, "is the input other.jpg")


def test_unwritable_output(tmp_path, pictures, command):
    output = unwritable_folder(tmp_path) / "out.png"
    words = ["stylize", "photo.jpg", "paint.jpg", "-o", output, *QUICK]
    assert_fails(command, words, 1, "is not writable")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--style-weight", "-1"], 2, "--style-weight must be a number, 0 or more"),
        (["--content-weight", "nan"], 2, "--content-weight must be a number"),
        (["--tv-weight", "inf"], 2, "--tv-weight must be a number"),
        (["--style-weight", "much"], 2, "'--style-weight'"),
        (["--size", "0"], 2, "--size must be a whole number from 16"),
        (["--size", "-5"], 2, "--size must be"),
        (["--size", "1.5"], 2, "--size must be"),
        (["--size", "99999999"], 2, "--size must be"),
        (["--steps", "0"], 2, "--steps must be"),
        (["--style-layers", "relu9_9"], 2, "relu9_9"),
        (["--content-layers", "conv4_2=1"], 2, "conv4_2"),
        (["--style-layers", "relu1_1=x"], 2, "--style-layers: 'x' is not a number"),
        (["--style-layers", "relu1_1=nan"], 2, "--style-layers relu1_1 must be a number"),
        (["--style-layers", "relu1_1=1,relu1_1=2"], 2, "names relu1_1 twice"),
        (["--style-layers", "", "--content-layers", ""], 2, "nothing to optimise"),
        (["--style-blend", "1,2"], 2, "--style-blend has 2 shares for 1 style picture"),
        (["--style-blend", "1,,2"], 2, "--style-blend: '' is not a number"),
        (["--style-scale", "0"], 2, "--style-scale must be"),
        (["--style-scale", "1,2"], 2, "--style-scale has 2 values for 1 style picture"),
        (["--style-mask", "none.png"], 1, "none.png: no such file"),
        (["--style-mask", "photo.jpg", "--style-mask", "photo.jpg"], 2, "--style-mask: 2 masks"),
        (["--style-mask", "a.png", "--style-regions", "b.png"], 2, "--style-regions: give it or"),
        (["--style-regions", "photo.jpg"], 2, "--style-regions: photo.jpg has "),
        (["--style-mask", "paint.jpg"], 2, "paint.jpg is 64×64 pixels, of other proportions"),
        (["--content-mask", "paint.jpg"], 2, "paint.jpg is 64×64 pixels, of other proportions"),
        (["--style-loss", "nope"], 2, "--style-loss must be one of gram"),
        (["--style-space", "vgg"], 2, "'vgg' is not one of"),
        (["--shift", "-1"], 2, "--shift must be a number, 0 or more"),
        (["--smoothing", "0.6"], 2, "--smoothing must be"),
        (["--margin", "-1"], 2, "--margin must be a whole number from 0"),
        (["--normalization", "none"], 2, "'none' is not one of"),
        (["--optimizer", "sgd"], 2, "'sgd' is not one of"),
        (["--learning-rate", "0"], 2, "--learning-rate must be"),
        (["--history", "0"], 2, "--history must be"),
        (["--seed", "-1"], 2, "--seed must be"),
        (["--threads", "0"], 2, "--threads must be"),
        (["--provider", "gpu"], 2, "'gpu' is not one of"),
        (["--device", "gpu"], 2, "--device must be auto, cpu, cuda or cuda:NUMBER"),
        (["--device", "cpu", "--provider", "cuda"], 1, "cuda does not run on device cpu"),
        (["--device", "cuda", "--provider", "cpu"], 1, "cpu does not run on device cuda"),
        (["--precision", "bf16", "--provider", "cpu"], 1, "bf16"),
        (["--encoder", "vgg99"], 1, "unknown encoder 'vgg99'"),
        (["--encoder", "./nowhere"], 1, "no encoder pack at './nowhere'"),
        (["--no-such-option"], 2, "No such option"),
    ],
)
def test_bad_options(pictures, command, options, code, message):
    assert_fails(command, [*STYLIZE, *options], code, message)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["stylise"], 2, "No such command 'stylise'"),
        (["stylize", "photo.jpg"], 2, "Missing argument 'STYLE…'"),
        (["stylize", "photo.jpg", "paint.jpg"], 2, "Missing option"),
        (["models"], 2, "Missing command"),
        (["models", "path", "vgg99"], 1, "unknown encoder 'vgg99'"),
        (["models", "path", "vgg19"], 1, "run: nst-fast models get vgg19"),
        (["models", "verify", "photo.jpg/x"], 1, "no encoder pack at"),
        (["models", "get", "vgg99"], 1, "'vgg99' is not an encoder to get; choose from vgg19"),
        (["models", "get", "vgg19", "--checkpoint", "none.pth"], 1, "none.pth: no such checkpoint"),
        (["models", "get", "vgg19", "--checkpoint", "photo.jpg"], 1, "photo.jpg: not a readable"),
        (["models", "get", "vgg19", "--pooling", "min"], 2, "'min' is not one of"),
    ],
)
def test_bad_commands(tmp_path, pictures, command, monkeypatch, words, code, message):
    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path / "cache"))
    assert_fails(command, words, code, message)
    assert not list(tmp_path.glob("cache/encoders/[!.]*"))


def test_damaged_pack(tmp_path, pictures, command):
    pack = tmp_path / "pack"
    pack.mkdir()
    for file in encoders.load(DEFAULT_ENCODER).path.iterdir():
        (pack / file.name).write_bytes(file.read_bytes()[:-1])
    assert_fails(command, [*STYLIZE, "--encoder", pack], 1, str(pack))


def test_a_full_disk_leaves_the_old_picture(pictures, command, monkeypatch):
    Path("out.png").write_bytes(b"the picture of yesterday")

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert_fails(command, STYLIZE, 1, "No space left on device")


def test_names_that_no_locale_can_print(pictures):
    """The path has bytes that are no UTF-8; stdout is ASCII."""
    name = os.fsdecode(b"caf\xe9\xff.png")
    words = [sys.executable, "-m", "nst_fast", *STYLIZE[:3], "-o", name, *QUICK]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(words, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"caf")
    assert Path(name).exists()
