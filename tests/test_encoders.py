"""Packs: finding them by name, their files, and installing into the cache."""

import errno
import hashlib
import multiprocessing
import os
import shutil
from pathlib import Path

import packs
import pytest
from packs import FILES, error_of, fill

from nst_fast import encoders
from nst_fast.config import DEFAULT_ENCODER
from nst_fast.errors import EncoderError

cache = packs.cache
pack = packs.pack


# Finding packs


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(pack: Path, file: str) -> None:
    (pack / file).unlink()
    message = error_of(pack)
    assert str(pack) in message
    assert file in message


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [b"", b"other"])
def test_a_changed_file_is_named_with_both_hashes(pack: Path, file: str, content: bytes) -> None:
    expected = encoders.verify(pack)[file]
    (pack / file).write_bytes(content)
    message = error_of(pack)
    assert file in message
    assert expected[:8] in message
    assert hashlib.sha256(content).hexdigest()[:8] in message


def test_verify_gives_the_hashes(pack: Path) -> None:
    expected = {file: hashlib.sha256((pack / file).read_bytes()).hexdigest() for file in FILES}
    assert dict(encoders.verify(pack)) == expected


def test_an_unknown_encoder_lists_the_known_ones(cache: Path) -> None:
    encoders.install_pack(lambda folder: fill(folder, "mine"), "mine")
    message = error_of("vgg18")
    assert "mine, vgg16, vgg19, vgg19-lite" in message
    assert "nst-fast models get NAME" in message


def test_an_encoder_that_is_not_here_says_how_to_get_it() -> None:
    assert "run: nst-fast models get vgg19" in error_of("vgg19")


@pytest.mark.parametrize("path", ["", "/no/such/folder", "./vgg19", Path("vgg19")])
def test_a_path_without_a_pack_is_named(path: str | Path) -> None:
    assert repr(str(path)) in error_of(path) or str(path) in error_of(path)


def test_a_plain_name_is_never_a_folder(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pack.parent)
    assert "unknown encoder 'pack'" in error_of("pack")
    for path in (os.path.join(".", "pack"), Path("pack"), str(pack)):
        encoder = encoders.load(path)
        assert encoder.path == pack
        assert encoder.path.is_absolute()


def test_the_cache_is_the_users_unless_overridden(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoders.cache_dir() == cache
    monkeypatch.delenv("NST_FAST_CACHE")
    assert "nst-fast" in encoders.cache_dir().parts
    assert encoders.cache_dir() != cache


def test_a_shipped_pack_comes_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_shipped", lambda: tmp_path / "data")
    assert "missing from this installation: reinstall nst-fast" in error_of("vgg19-lite")
    for parent, seed in ((tmp_path / "data", 1), (cache / "encoders", 2)):
        folder = parent / "vgg19-lite"
        folder.mkdir(parents=True)
        fill(folder, "vgg19-lite", seed)
    assert encoders.load("vgg19-lite").path == tmp_path / "data" / "vgg19-lite"
    with pytest.raises(EncoderError, match="ships with nst-fast"):
        encoders.install_pack(fill, "vgg19-lite")
    (tmp_path / "data" / "vgg19-lite" / "forward.onnx").write_bytes(b"")
    assert "reinstall nst-fast" in error_of("vgg19-lite")


def test_the_default_encoder_ships_and_is_sound() -> None:
    encoder = encoders.load(DEFAULT_ENCODER)
    assert encoder.name == DEFAULT_ENCODER


def test_the_catalogue_gives_each_state(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_shipped", lambda: tmp_path / "data")
    lite = tmp_path / "data" / "vgg19-lite"
    lite.mkdir(parents=True)
    fill(lite, "vgg19-lite")
    for name in ("mine", "vgg16"):
        encoders.install_pack(lambda folder, name=name: fill(folder, name), name)
    (cache / "encoders" / "vgg16" / "backward.onnx").write_bytes(b"")
    entries = {entry.name: entry for entry in encoders.catalogue()}
    assert {name: entry.state for name, entry in entries.items()} == {
        "vgg19-lite": "shipped",
        "vgg19": "available",
        "vgg16": "damaged",
        "mine": "cached",
    }
    assert entries["vgg19-lite"].path == lite
    assert entries["vgg19"].path is None
    assert "backward.onnx" in entries["vgg16"].description
    assert "run: nst-fast models get vgg16" in entries["vgg16"].description
    assert entries["mine"].description == "random bytes"


# Installing packs


def visible(folder: Path) -> list[str]:
    """What a folder of the cache holds, without the empty lock files."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def test_an_installed_pack_replaces_the_one_before(cache: Path) -> None:
    digests = set()
    for seed in (1, 2):
        path = encoders.install_pack(lambda folder, seed=seed: fill(folder, seed=seed), "tiny")
        assert path == cache / "encoders" / "tiny"
        digests.add(encoders.load("tiny").digest)
        assert visible(path.parent) == ["tiny"]
    assert len(digests) == 2


def test_a_failed_build_leaves_the_cache_as_it_was(cache: Path) -> None:
    def fails(folder: Path) -> None:
        fill(folder, seed=2)
        raise KeyboardInterrupt

    def tampers(folder: Path) -> None:
        fill(folder, seed=3)
        (folder / "forward.onnx").write_bytes(b"")

    def misnames(folder: Path) -> None:
        fill(folder, "other")

    def fills_the_disk(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    builds = {fails: KeyboardInterrupt, tampers: EncoderError, misnames: EncoderError}
    builds |= {fills_the_disk: EncoderError, Path.exists: EncoderError}
    for installed in ([], ["tiny"]):
        for build, error in builds.items():
            with pytest.raises(error):
                encoders.install_pack(build, "tiny")
            assert visible(cache / "encoders") == installed
        digest = encoders.load(encoders.install_pack(fill, "tiny")).digest
    assert encoders.load("tiny").digest == digest


def test_a_failed_rename_brings_the_old_pack_back(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders.install_pack(fill, "tiny")
    before = encoders.load("tiny")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == ".tiny.new":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EncoderError, match="cannot write tiny"):
        encoders.install_pack(lambda folder: fill(folder, seed=1), "tiny")
    assert encoders.load("tiny") == before
    assert visible(cache / "encoders") == ["tiny"]


def test_what_a_killed_build_left_is_swept(cache: Path) -> None:
    stale = cache / "encoders" / ".tiny.new"
    stale.mkdir(parents=True)
    (stale / "weights.safetensors").write_bytes(b"half")
    encoders.install_pack(fill, "tiny")
    assert visible(cache / "encoders") == ["tiny"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(EncoderError, match="name of an encoder"):
        encoders.install_pack(fill, name)


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file, not a folder")
    with pytest.raises(EncoderError, match="NST_FAST_CACHE"):
        encoders.install_pack(fill, "tiny")


def _install_in_another_process(pipe) -> None:
    try:
        encoders.install_pack(fill, "tiny")
    except EncoderError as error:
        pipe.send(str(error))


def test_a_second_process_is_told_of_the_first(cache: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def build(folder: Path) -> None:
        other = multiprocessing.get_context("spawn").Process(
            target=_install_in_another_process, args=(sender,)
        )
        other.start()
        other.join()
        fill(folder)

    encoders.install_pack(build, "tiny")
    assert receiver.poll()
    assert "another process is writing" in receiver.recv()
    assert encoders.load("tiny").name == "tiny"


def test_a_pack_may_be_moved(pack: Path, tmp_path: Path) -> None:
    digest = encoders.load(pack).digest
    shutil.move(pack, tmp_path / "moved")
    assert encoders.load(tmp_path / "moved").digest == digest
