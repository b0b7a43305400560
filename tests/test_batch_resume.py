"""Batches that are run again: what stands, what is made anew, and what is refused."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from batches import Watcher, counts, encoded, make_jobs, outputs, run

from nst_fast.batch import Job, inputs, resume, storage
from nst_fast.errors import BatchError


def test_a_rerun_tries_what_failed_and_nothing_else(tmp_path):
    jobs = make_jobs(tmp_path / "in", 4)
    good = Path(jobs[1].content).read_bytes()
    Path(jobs[1].content).write_bytes(b"no picture")
    assert counts(run(jobs, tmp_path / "out")) == (3, 1, 0, 0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    Path(jobs[1].content).write_bytes(good)
    watcher = Watcher()
    assert counts(run(jobs, tmp_path / "out", observers=[watcher])) == (1, 0, 3, 0)
    assert watcher.told[0] == ("begin", 1, 3)
    assert watcher.told[-1] == ("ended", jobs[1].output, "done")
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert counts(run(jobs, tmp_path / "out")) == (0, 0, 4, 0)


def test_a_picture_that_was_deleted_cut_or_has_another_content_is_made_again(tmp_path):
    jobs = make_jobs(tmp_path / "in", 5)
    run(jobs, tmp_path / "out")
    first = outputs(tmp_path / "out")
    Path(jobs[0].output).unlink()
    Path(jobs[3].output).write_bytes(Path(jobs[3].output).read_bytes()[:-1])
    os.utime(jobs[1].content, ns=(0, 0))  # the same bytes, copied anew
    Path(jobs[2].content).write_bytes(encoded(50))
    assert counts(run(jobs, tmp_path / "out")) == (3, 0, 2, 0)
    second = outputs(tmp_path / "out")
    assert {name for name in first if first[name] != second[name]} == {"p002.png"}
    assert counts(run(jobs, tmp_path / "out")) == (0, 0, 5, 0)


def made_of(jobs: list[Job]) -> dict[str, resume.Known]:
    """Memories of outputs of one byte each."""
    before = {}
    for job in jobs:
        Path(job.output).parent.mkdir(exist_ok=True)
        Path(job.output).write_bytes(b"x")
        content = hashlib.sha256(Path(job.content).read_bytes()).hexdigest()
        stamp = storage.stamps([job.content])[job.content]
        before[job.output] = resume.Known(1.0, True, job.digest, 1, stamp, content)
    return before


def stamped(jobs: list[Job]) -> list[Job]:
    stamps = storage.stamps(job.content for job in jobs)
    return [replace(job, stamp=stamps.get(job.content, "")) for job in jobs]


def test_contents_are_read_only_where_their_stamps_differ(tmp_path, monkeypatch):
    jobs = make_jobs(tmp_path / "in", 4)
    before = made_of(jobs)
    os.utime(jobs[1].content, ns=(0, 0))
    Path(jobs[2].content).unlink()
    read = []
    monkeypatch.setattr(storage, "read", lambda url: read.append(url) or Path(url).read_bytes())
    assert resume.standing(stamped(jobs), before) == before.keys()
    assert read == [jobs[1].content]


def test_a_content_that_cannot_be_read_any_more_does_not_stand(tmp_path):
    jobs = make_jobs(tmp_path / "in", 2)
    before = made_of(jobs)
    Path(jobs[0].content).unlink()
    Path(jobs[0].content).mkdir()
    assert resume.standing(stamped(jobs), before) == {jobs[1].output}


def test_frames_after_one_that_changed_do_not_stand(tmp_path):
    first, other = make_jobs(tmp_path / "in", 4), make_jobs(tmp_path / "else", 2)
    other = [
        replace(job, output=str(tmp_path / "out" / f"o{n}.png")) for n, job in enumerate(other)
    ]
    jobs = inputs.as_frames([*first, *other])
    before = made_of(jobs)
    Path(jobs[1].content).write_bytes(encoded(50))
    standing = resume.standing(stamped(jobs), before)
    assert standing == {jobs[0].output, jobs[4].output, jobs[5].output}


def test_frames_after_one_with_other_settings_do_not_stand(tmp_path):
    jobs = inputs.as_frames(make_jobs(tmp_path / "in", 4))
    before = made_of(jobs)
    jobs[1] = replace(jobs[1], digest="other")
    assert resume.standing(stamped(jobs), before) == {jobs[0].output}


@pytest.mark.parametrize("change", ["settings", "style"])
def test_changes_are_refused_or_redone(tmp_path, change):
    jobs = make_jobs(tmp_path / "in", 3)
    run(jobs, tmp_path / "out")
    before = outputs(tmp_path / "out")
    if change == "settings":
        jobs = [replace(job, settings=replace(job.settings, steps=3)) for job in jobs]
    else:
        Path(jobs[0].styles[0]).write_bytes(encoded(77))
    with pytest.raises(BatchError, match=r"3 pictures, .*p000.png among them.* give --redo"):
        run(jobs, tmp_path / "out")
    assert outputs(tmp_path / "out") == before
    assert counts(run(jobs, tmp_path / "out", redo=True)) == (3, 0, 0, 0)
    after = outputs(tmp_path / "out")
    assert all(after[name] != digest for name, digest in before.items())
