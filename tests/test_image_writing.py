"""Pictures are written whole or not at all, and never over an input."""

from __future__ import annotations

import os

import numpy as np
import picture_files
import pytest
from picture_files import smooth, unwritable_folder

from nst_fast import images
from nst_fast.errors import ImageError
from nst_fast.images import Picture

photo = picture_files.photo


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, monkeypatch, failing, error):
    target = tmp_path / "a.png"
    target.write_bytes(b"the picture of yesterday")

    def fail(*_args):
        raise error

    monkeypatch.setattr(os, failing, fail)
    expected = ImageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is ImageError else None):
        images.save(Picture(smooth(32, 24)), target)
    assert os.listdir(tmp_path) == ["a.png"]
    assert target.read_bytes() == b"the picture of yesterday"


def test_what_a_format_cannot_hold_is_refused_without_a_trace(tmp_path):
    wide = Picture(np.zeros((16, 16_400, 3), np.float32))
    with pytest.raises(ImageError, match=r"WEBP cannot hold 16400×16 pixels .*use \.png"):
        images.save(wide, tmp_path / "a.webp")
    with pytest.raises(ImageError, match="not numbers"):
        images.save(Picture(np.full((16, 16, 3), np.nan, np.float32)), tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_saved_file_has_ordinary_rights_and_replaces(tmp_path):
    plain, target = tmp_path / "plain", tmp_path / "a.png"
    plain.touch()
    images.save(Picture(smooth(32, 24)), target)
    images.save(Picture(smooth(40, 24)), target)
    assert target.stat().st_mode == plain.stat().st_mode
    assert images.load(target).size == (40, 24)


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "real" / "a.png")
    images.save(Picture(smooth(32, 24)), link)
    assert link.is_symlink()
    assert images.load(tmp_path / "real" / "a.png").size == (32, 24)
    assert os.listdir(tmp_path / "real") == ["a.png"]


@pytest.mark.parametrize("link", ["same", "dotted", "symbolic", "hard"])
def test_output_must_not_be_an_input(tmp_path, photo, link):
    output = tmp_path / "out.jpg"
    if link == "same":
        output = photo
    elif link == "dotted":
        output = tmp_path / "." / ".." / tmp_path.name / photo.name
    elif link == "symbolic":
        output.symlink_to(photo)
    else:
        output.hardlink_to(photo)
    with pytest.raises(ImageError, match=r"is the input .*photo\.jpg; choose another name"):
        images.check_output(output, [np.zeros((20, 20), np.uint8), "other.png", photo])


def test_outputs_that_are_refused(tmp_path, photo):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    before = sorted(os.listdir(tmp_path))
    for output, message in [
        (tmp_path, "is a folder"),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / "a.bmp", r"must end in one of \.png, \.jpg"),
        (tmp_path / "a", r"must end in one of \.png, \.jpg"),
        (tmp_path / "none" / "a.png", "there is no folder .*none; create it first"),
        (photo / "a.png", "cannot be used"),
        (tmp_path / "loop.png", "cannot be used"),
        (tmp_path / "pipe.png", "may not be overwritten"),
    ]:
        with pytest.raises(ImageError, match=message) as caught:
            images.check_output(output, [photo])
        assert str(output) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_unwritable_folder_is_refused(tmp_path):
    folder = unwritable_folder(tmp_path)
    with pytest.raises(ImageError, match="is not writable"):
        images.check_output(folder / "a.png")
    with pytest.raises(ImageError, match="is not writable"):
        images.save(Picture(smooth(32, 24)), folder / "a.png")


def test_write_protected_file_is_refused(tmp_path, monkeypatch):
    """As access() reports it to anyone but root."""
    (tmp_path / "a.png").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ImageError, match="may not be overwritten"):
        images.check_output(tmp_path / "a.png")


def test_a_good_output_leaves_no_trace(tmp_path, photo):
    images.check_output(tmp_path / "a.PNG", [photo])
    assert os.listdir(tmp_path) == [photo.name]
