"""Writing and locking on file systems that lack a part of it, and on disks that fail."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys

import pytest
from batches import ENGINE, journal_rows, make_jobs

from nst_fast import Recorder, files
from nst_fast.batch import BatchOptions, BatchRunner
from nst_fast.batch.journal import Journal
from nst_fast.encoders.cache import writing
from nst_fast.errors import BatchError, EncoderError, ImageError, NstError
from nst_fast.images import Picture, load, save

NO_SYNC = ["EINVAL", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EBADF", "EROFS", "EPERM", "EACCES"]
NO_LOCK = ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL"]
FAULTS = ["EIO", "ENOSPC", "EDQUOT"]


@pytest.fixture
def folder_sync(monkeypatch):
    """Let the flushing of folders fail."""

    def fail(name: str) -> None:
        genuine = os.fsync

        def fsync(handle: int) -> None:
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                number = getattr(errno, name)
                raise OSError(number, os.strerror(number))
            genuine(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    return fail


@pytest.fixture
def no_locks(monkeypatch):
    """Let every lock fail, as Lustre, some NFS and FUSE do."""
    fcntl = pytest.importorskip("fcntl")

    def fail(name: str) -> None:
        def flock(handle: object, operation: int) -> None:
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return fail


@pytest.mark.parametrize("name", NO_SYNC)
def test_a_folder_that_cannot_be_flushed_holds_what_was_renamed(tmp_path, folder_sync, name):
    folder_sync(name)
    files.write_atomically(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_disk_stays_an_error(tmp_path, folder_sync, name, monkeypatch):
    folder_sync(name)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        files.write_atomically(tmp_path / "a", b"1")

    def fail(handle: int) -> None:
        raise OSError(getattr(errno, name), "of the file itself")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="of the file itself"):
        files.write_atomically(tmp_path / "b", b"1")
    assert not (tmp_path / "b").exists()


def test_pictures_report_and_journal_on_such_a_share(tmp_path, folder_sync, no_locks, caplog):
    """And a rerun skips what is done; the workers are other processes, whose share is whole."""
    folder_sync("EINVAL")
    no_locks("EOPNOTSUPP")
    jobs = make_jobs(tmp_path / "in", 2)
    for expected in ((2, 0), (0, 2)):
        runner = BatchRunner(jobs, tmp_path / "out", engine=ENGINE, options=BatchOptions(workers=1))
        summary = runner.run()
        assert (summary.done, summary.skipped, summary.failed) == (*expected, 0)
        assert runner.report.exists()
    assert [row["status"] for row in journal_rows(tmp_path / "out")] == ["done"] * 2
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2
    assert all("nothing keeps a second process out" in line for line in told)
    picture = load(jobs[0].output)
    save(Picture(picture.pixels), tmp_path / "out" / "saved.png")


@pytest.mark.parametrize("name", NO_LOCK)
def test_without_locks_the_work_goes_on_and_one_line_says_so(tmp_path, no_locks, name, caplog):
    no_locks(name)
    with Journal(tmp_path / "journal.jsonl"), Journal(tmp_path / "journal.jsonl"):
        pass
    with writing(tmp_path, "pack"):
        pass
    assert len(caplog.records) == 3
    assert {record.message.count("\n") for record in caplog.records} == {0}


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_fault_of_a_lock_is_one_line(tmp_path, no_locks, name):
    no_locks(name)
    with pytest.raises(BatchError, match=r"journal.jsonl cannot be opened \(.*; see --journal"):
        Journal(tmp_path / "journal.jsonl")
    with pytest.raises(EncoderError, match="cannot write pack"), writing(tmp_path, "pack"):
        pass


def test_a_lock_keeps_a_second_process_out_and_ends_with_the_first(tmp_path):
    path = tmp_path / "a.lock"
    hold = "import sys, pathlib, nst_fast.files as f; lock = f.lock(pathlib.Path(sys.argv[1]));"
    hold += "print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", hold, path]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError):
            files.lock(path)
        process.kill()
    taken = files.lock(path)
    assert taken is not None
    taken.release()


def test_no_module_for_one_system_is_imported():
    """On Windows there is no fcntl, and elsewhere no msvcrt."""
    code = "import sys; sys.modules.update(fcntl=None, msvcrt=None, resource=None)\n"
    code += "import nst_fast.files, nst_fast.limits, nst_fast.batch.journal, nst_fast.cli.app"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_killed_process_left_is_swept_by_its_tag(tmp_path):
    mine, other = (tmp_path / files.temporary_name(tag) for tag in ("mine", "other"))
    for path in (mine, other):
        path.touch()
    files.sweep(tmp_path, "mine")
    files.sweep(tmp_path / "missing", "mine")
    assert os.listdir(tmp_path) == [other.name]


@pytest.fixture
def written_film(tmp_path):
    """Write a film of a frame to a path, by one of the two ways."""
    pytest.importorskip("av")
    from nst_fast.video import writing
    from nst_fast.video.source import open_source

    make_jobs(tmp_path / "in", 1)
    frame = tmp_path / "in" / "p000.png"

    def write(path, way: str) -> None:
        if way == "record":
            with Recorder(path) as recorder:
                recorder.add(load(frame))
        else:
            source = open_source(str(tmp_path / "in"), 12.0)
            writing.write_film(path, [(frame, 0)], source, limited=False, mark="m")

    return write


@pytest.mark.parametrize("way", ["record", "video"])
def test_a_film_is_on_the_disk_before_it_has_its_name(tmp_path, written_film, monkeypatch, way):
    """What a killed process left of it is gone, too."""
    path, flushed, genuine = tmp_path / "film.mp4", [], os.fsync

    def fsync(handle: int) -> None:
        flushed.append((os.fstat(handle).st_ino, path.exists()))
        genuine(handle)

    (tmp_path / files.temporary_name(files.tag_of(path))).touch()
    monkeypatch.setattr(os, "fsync", fsync)
    written_film(path, way)
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    assert not list(tmp_path.glob(".nst-fast-*"))


@pytest.mark.parametrize("way", ["record", "video"])
def test_a_film_on_a_disk_that_fails_is_one_line(tmp_path, written_film, folder_sync, way):
    folder_sync("EIO")
    with pytest.raises(NstError, match=r"film\.mp4 cannot be written"):
        written_film(tmp_path / "film.mp4", way)


def test_an_image_on_a_full_disk_is_one_line(tmp_path, folder_sync):
    folder_sync("EIO")
    make_jobs(tmp_path / "in", 1)
    source = tmp_path / "in" / "p000.png"
    with pytest.raises(ImageError, match="cannot be written"):
        save(load(source), tmp_path / "a.png")
