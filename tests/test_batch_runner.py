"""Batches in worker processes: nothing lost, nothing twice, every bad picture with its reason."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batches import (
    ENGINE,
    Watcher,
    counts,
    encoded,
    journal_rows,
    make_jobs,
    outputs,
    picture,
    run,
    write_pictures,
)
from picture_files import bad_file, unwritable_folder
from PIL import Image
from stylizing import SHALLOW, quick

from nst_fast import EngineOptions, Stylizer, images
from nst_fast.batch import BatchOptions, BatchRunner, Job, inputs, pool, stylize_many
from nst_fast.batch.pool import HELD
from nst_fast.errors import BatchError
from nst_fast.workspace import Workspace

BAD = {  # cases of bad_file, and the reason that has to be told
    "truncated": "cannot be decoded",
    "empty": "is empty;",
    "text": "is not an image that can be read;",
    "header": "is not an image that can be read;|cannot be decoded",
    "bomb": "has more than 178 megapixels;",
    "large": "more than 178 megapixels;",
    "missing": "no such file;",
    "folder": "is a folder;",
    "pipe": "is not a regular file;",
    "postscript": "is not an image that can be read;",
    "unreadable": "permission denied;",
}


def expected(jobs: list[Job], stylizer: Stylizer) -> dict[str, bytes]:
    """The bytes of each output, made one after another in this process."""
    made = {}
    for job in jobs:
        result = stylizer.stylize(job.content, list(job.styles), job.settings)
        made[Path(job.output).name] = result.encode(job.output)
    return made


def good_files(folder: Path) -> list[Path]:
    """Pictures that only look difficult."""
    odd = {
        name: folder / f"{name}.{ending}"
        for name, ending in (
            ("cmyk", "jpg"),
            ("deep", "png"),
            ("animated", "gif"),
            ("palette", "png"),
        )
    }
    picture(1).convert("CMYK").save(odd["cmyk"])
    grey = np.asarray(picture(2).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(odd["deep"])
    picture(3).save(odd["animated"], save_all=True, append_images=[picture(4), picture(5)])
    picture(6).convert("P").save(odd["palette"])
    return list(odd.values())


def bad_files(folder: Path) -> dict[Path, str]:
    """Twenty of them, each with its reason; pictures of unusual kinds, cut short, among them."""
    (folder / "cut").mkdir(parents=True)
    bad = {bad_file(case, folder): reason for case, reason in BAD.items()}
    cut = good_files(folder / "cut")
    for number in range(3):
        cut.append(folder / "cut" / f"p{number}.png")
        cut[-1].write_bytes(encoded(number))
    for path in cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    tiny, wide = folder / "tiny.png", folder / "wide.tif"
    picture(7, 40, 15).save(tiny)
    Image.fromarray(np.full((32, 40), 70_000, np.int32)).save(wide)
    bad |= dict.fromkeys(cut, "cannot be decoded")
    return bad | {tiny: "is 40×15 pixels;", wide: "has values outside 0 to 65535;"}


# ------------------------------------------------------------------------------------ good and bad


def test_a_hundred_pictures_with_twenty_bad_ones_among_them(tmp_path, stylizer):
    """The good ones are what the Stylizer makes of each alone, whichever worker made it when."""
    jobs = make_jobs(tmp_path / "in", 96, steps=1)
    odd, bad = good_files(tmp_path / "in"), bad_files(tmp_path / "bad")
    others = [
        replace(jobs[0], content=str(path), output=str(tmp_path / "out" / f"o{number}.png"))
        for number, path in enumerate((*odd, *bad))
    ]
    for number, other in enumerate(others):
        jobs.insert(number * 5, other)

    assert counts(run(jobs, tmp_path / "out", workers=2)) == (100, 20, 0, 0)

    rows = {row["content"]: row for row in journal_rows(tmp_path / "out")}
    assert len(rows) == len(jobs) == 120
    failed = {path: row for path, row in rows.items() if row["status"] == "failed"}
    assert failed.keys() == {str(path) for path in bad}
    for path, reason in bad.items():
        row = failed[str(path)]
        assert row["error"].startswith(str(path))
        assert re.search(reason, row["error"])
        assert "\n" not in row["error"]
        assert row["attempts"] == 1
    made = outputs(tmp_path / "out")
    assert len(made) == 100
    for path, row in rows.items():
        if path not in failed:
            assert row["sha256"]["output"] == made[Path(row["output"]).name]
            assert list(row["seconds"]) == ["read", "prepare", "optimise", "finish", "write"]
            assert min(row["seconds"].values()) > 0
            assert images.load(row["output"]).size == tuple(row["size"])
    some = [job for job in jobs if job.content not in failed][::5]
    for name, payload in expected(some, stylizer).items():
        assert (tmp_path / "out" / name).read_bytes() == payload

    page = (tmp_path / "out" / "report.html").read_text()
    assert all(path in page for path in failed)
    assert page.count("<img ") == 24


def test_max_errors_stops_the_run(tmp_path):
    jobs = make_jobs(tmp_path / "in", 40)
    for job in jobs[:3]:
        Path(job.content).write_bytes(b"no picture")
    summary = run(jobs, tmp_path / "out", max_errors=1)
    assert summary.failed == 2
    assert summary.left > 0
    assert counts(run(jobs, tmp_path / "out", max_errors=3))[1:] == (3, summary.done, 0)


def test_an_output_that_cannot_be_written_is_a_failure(tmp_path):
    jobs = make_jobs(tmp_path / "in", 2)
    jobs[0] = replace(jobs[0], output=str(unwritable_folder(tmp_path) / "p.png"))
    assert counts(run(jobs, tmp_path / "out")) == (1, 1, 0, 0)
    (row,) = (r for r in journal_rows(tmp_path / "out") if r["status"] == "failed")
    assert "cannot be written" in row["error"]
    assert row["attempts"] == 3


def test_an_encoder_that_is_not_there_stops_before_anything(tmp_path):
    jobs = make_jobs(tmp_path / "in", 2)
    with pytest.raises(Exception, match="nosuch"):
        BatchRunner(jobs, tmp_path / "out", engine=replace(ENGINE, encoder="nosuch")).run()


# --------------------------------------------------------------------------------- workers that die


def kill_workers() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def test_a_picture_that_kills_its_worker_is_given_up_and_no_other(tmp_path):
    jobs = make_jobs(tmp_path / "in", 8)
    poison = jobs[2].content
    watcher = Watcher(lambda worker, content: kill_workers() if content == poison else None)
    assert counts(run(jobs, tmp_path / "out", workers=1, observers=[watcher])) == (7, 1, 0, 0)
    (row,) = (r for r in journal_rows(tmp_path / "out") if r["status"] == "failed")
    assert row["content"] == poison
    assert row["error"].startswith(f"{poison}: its worker process died (signal 9), most likely")
    assert "memory" in row["error"]
    assert row["attempts"] == 3
    assert len(outputs(tmp_path / "out")) == 7


def test_a_picture_that_hangs_is_given_up_and_no_other(tmp_path, monkeypatch):
    """The worker really stops; only the clock is moved on, so that no picture is slow by chance."""
    jobs = make_jobs(tmp_path / "in", 6)
    hung, passed = jobs[2].content, [0.0]
    monkeypatch.setattr(pool, "monotonic", lambda: time.monotonic() + passed[0])

    def stop(worker: str, content: str) -> None:
        if content == hung:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGSTOP)
            passed[0] += 601.0

    ended = counts(
        run(jobs, tmp_path / "out", workers=1, retries=1, timeout=600, observers=[Watcher(stop)])
    )
    assert ended == (5, 1, 0, 0)
    (row,) = (r for r in journal_rows(tmp_path / "out") if r["status"] == "failed")
    assert row["error"] == f"{hung}: not done within 600 s"
    assert row["attempts"] == 2
    assert {r["attempts"] for r in journal_rows(tmp_path / "out") if r != row} == {1}
    assert len(outputs(tmp_path / "out")) == 5


def test_workers_that_die_are_replaced(tmp_path):
    jobs = make_jobs(tmp_path / "in", 12)
    run(jobs, tmp_path / "whole")
    whole = outputs(tmp_path / "out")
    for path in (tmp_path / "out").glob("*.png"):
        path.unlink()
    moments = itertools.count()
    watcher = Watcher(lambda *_: kill_workers() if next(moments) in (1, 4, 9) else None)
    assert counts(run(jobs, tmp_path / "out", workers=2, observers=[watcher])) == (12, 0, 0, 0)
    assert outputs(tmp_path / "out") == whole
    assert (
        Counter(row["output"] for row in journal_rows(tmp_path / "out")).most_common(1)[0][1] == 1
    )


def test_workers_that_cannot_start_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("nst_fast.batch.worker.main", os.abort)  # called with arguments: it raises
    with pytest.raises(BatchError, match=r"workers die before they can start: .*\(exit code"):
        list(stylize_many(make_jobs(tmp_path / "in", 2), ENGINE, BatchOptions(workers=1)))


# ------------------------------------------------------------------------------------ a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "out"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", folder],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_the_run_and_a_larger_one_completes_it(tmp_path, small_disk):
    jobs = make_jobs(tmp_path / "in", 16)
    reference = [replace(job, output=job.output.replace("/out/", "/whole/")) for job in jobs]
    run(reference, tmp_path / "whole")
    with pytest.raises(BatchError, match="no space left; free some and run the same command again"):
        run(jobs, small_disk, workers=2)
    done = [row["output"] for row in journal_rows(small_disk)]
    assert 0 < len(done) < 16
    assert all(Path(output).exists() for output in done)
    assert len(outputs(small_disk)) >= len(done)
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert counts(run(jobs, small_disk)) == (16 - len(done), 0, len(done), 0)
    assert outputs(small_disk) == outputs(tmp_path / "whole")
    assert Counter(row["output"] for row in journal_rows(small_disk)).most_common(1)[0][1] == 1


# -------------------------------------------------------------------------------- frames and shards


def test_frames_start_from_the_result_before(tmp_path, stylizer):
    jobs = inputs.as_frames(make_jobs(tmp_path / "in", 5))
    Path(jobs[2].content).write_bytes(b"no picture")
    assert counts(run(jobs, tmp_path / "out", workers=2)) == (4, 1, 0, 0)
    jobs[3] = replace(jobs[3], settings=replace(jobs[3].settings, init="content"))
    del jobs[2]
    for name, payload in expected(jobs, stylizer).items():
        assert (tmp_path / "out" / name).read_bytes() == payload


def test_a_frame_starts_from_its_content_where_the_one_before_has_failed_long_since(tmp_path):
    """Frames of one folder, which are given out after the bad one has ended."""
    jobs = make_jobs(tmp_path / "in", 6)
    Path(jobs[0].content).write_bytes(b"no picture")
    after = replace(jobs[5].settings, init=jobs[0].output)
    jobs[5] = replace(jobs[5], settings=after, after=jobs[0].output)
    assert counts(run(jobs, tmp_path / "out", workers=1)) == (5, 1, 0, 0)


def test_shards_share_a_folder_and_skip_what_others_have_done(tmp_path):
    jobs = make_jobs(tmp_path / "in", 10)
    for part in ("1/2", "2/2"):
        some = inputs.shard(jobs, BatchOptions(shard=part), output=str(tmp_path / "out"))
        run(some, tmp_path / "out", shard=part)
    assert len(outputs(tmp_path / "out")) == 10
    assert {p.name for p in (tmp_path / "out").glob("*l")} == {
        f"{kind}-{n}-of-2.{end}"
        for n in (1, 2)
        for kind, end in (("journal", "jsonl"), ("report", "html"))
    }
    assert counts(run(jobs, tmp_path / "out")) == (0, 0, 10, 0)


# ------------------------------------------------------------------------------------- the iterator


def test_stylize_many_takes_jobs_only_as_workers_become_free(tmp_path):
    jobs = make_jobs(tmp_path / "in", 20)
    taken = []

    def source() -> Iterator[Job]:
        for job in jobs:
            taken.append(job)
            yield job

    ended = []
    for row in stylize_many(source(), ENGINE, BatchOptions(workers=2)):
        ended.append(row)
        assert len(taken) <= len(ended) + 2 * HELD
    assert sorted(row.output for row in ended) == [job.output for job in jobs]
    assert {row.worker for row in ended} == {"worker 1", "worker 2"}


def test_stopping_early_ends_the_workers_and_leaves_nothing_half_written(tmp_path):
    rows = stylize_many(make_jobs(tmp_path / "in", 30), ENGINE, BatchOptions(workers=2))
    next(rows)
    assert len(multiprocessing.active_children()) == 2
    rows.close()
    assert not multiprocessing.active_children()
    outputs(tmp_path / "out")


def test_styles_are_computed_once_for_each_size(tmp_path, monkeypatch):
    """And the picture is the same as with targets of its own."""
    computed = []
    genuine = Workspace.style_targets

    def counted(here, key, compute):
        return genuine(here, key, lambda: computed.append(1) or compute())

    monkeypatch.setattr(Workspace, "style_targets", counted)
    fresh = Stylizer(EngineOptions(provider="cpu", threads=1))
    write_pictures(tmp_path / "in", 3)
    style = images.load(tmp_path / "style.png")
    settings = quick(size=40, **SHALLOW)
    first, *_ = [
        fresh.stylize(tmp_path / "in" / f"p00{n}.png", style, settings) for n in (0, 1, 2, 0)
    ]
    assert len(computed) == 1
    fresh.stylize(tmp_path / "in/p000.png", style, replace(settings, style_layers={"relu1_1": 1}))
    fresh.stylize(tmp_path / "in/p000.png", style, replace(settings, style_scale=2))
    fresh.stylize(tmp_path / "in/p000.png", tmp_path / "in/p001.png", settings)
    assert len(computed) == 4
    again = fresh.stylize(tmp_path / "in/p000.png", style, settings)
    assert len(computed) == 4
    other = Stylizer(EngineOptions(provider="cpu", threads=1)).stylize(
        tmp_path / "in/p000.png", style, settings
    )
    for result in (again, other):
        assert np.array_equal(result.picture.pixels, first.picture.pixels)
