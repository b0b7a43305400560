"""A batch on a Ray cluster of two nodes, one of which is lost in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from batches import ENGINE, journal_rows, make_jobs, outputs, write_pictures
from PIL import Image

from nst_fast import cli
from nst_fast.batch import BatchOptions, BatchRunner
from nst_fast.errors import BatchError


def test_a_lost_node_costs_no_picture_and_a_deadly_picture_no_other(tmp_path):
    script = Path(__file__).with_name("ray_run.py")
    ended = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=400, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["killed"], "only one node made pictures"
    counts = [told["first"][key] for key in ("done", "failed", "skipped", "left")]
    assert counts == [58, 2, 0, 0]
    assert [told["again"][key] for key in ("done", "failed", "skipped")] == [1, 1, 58]
    rows = journal_rows(tmp_path / "out")
    done = Counter(row["output"] for row in rows if row["status"] == "done")
    assert set(done.values()) == {1}
    (deadly,) = (row for row in rows if "its actor died" in row["error"])
    assert deadly["content"] == str(tmp_path / "in" / "p007.png")
    assert deadly["attempts"] == 2
    made = outputs(tmp_path / "out")
    assert len(made) == 59
    assert sorted(os.listdir(tmp_path / "besides")) == ["p003.png", "p003.webp"]
    with Image.open(tmp_path / "besides" / "p003.webp") as film:
        assert film.n_frames > 9
    jobs = make_jobs(tmp_path / "in", 60, steps=150)[::7]
    here = [replace(job, output=job.output.replace("/out/", "/here/")) for job in jobs]
    BatchRunner(here, tmp_path / "here", engine=ENGINE).run()
    for name, digest in outputs(tmp_path / "here").items():
        assert made[name] == digest


def test_frames_are_refused(tmp_path):
    jobs = [replace(job, after="before.png") for job in make_jobs(tmp_path / "in", 1)]
    options = BatchOptions(executor="ray")
    with pytest.raises(BatchError, match="--warm-start is for --executor local"):
        BatchRunner(jobs, tmp_path / "out", engine=ENGINE, options=options).run()


@pytest.mark.parametrize("address", ["ray://nowhere.invalid:1", "127.0.0.1:1", "auto", "x:y"])
def test_a_cluster_that_is_not_there_is_one_line_and_leaves_no_journal(tmp_path, capsys, address):
    if address == "auto":  # the cluster of the test before may not have ended yet
        servers = "gcs_server", "raylet"  # auto reads the address off either
        found = [p for p in psutil.process_iter(["name"]) if p.info["name"] in servers]
        if psutil.wait_procs(found, timeout=30)[1]:
            pytest.skip("a Ray cluster runs here, and auto finds it")
    write_pictures(tmp_path / "in", 1)
    words = [str(tmp_path / "in"), "--style", str(tmp_path / "style.png")]
    words += ["-o", str(tmp_path / "out"), "--executor", "ray", "--address", address]
    assert cli.main(["batch", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: --address {address} cannot be reached (")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_left_of_a_cluster_is_not_waited_for(tmp_path, capsys):
    """Its scheduler names an address at which nobody listens any more."""
    fake = tmp_path / "raylet"
    fake.symlink_to(sys.executable)
    words = [str(fake), "-c", "import time; time.sleep(60)", "--gcs-address=127.0.0.1:1"]
    write_pictures(tmp_path / "in", 1)
    batch = ["batch", str(tmp_path / "in"), "--style", str(tmp_path / "style.png")]
    batch += ["-o", str(tmp_path / "out"), "--executor", "ray", "--address", "auto"]
    with subprocess.Popen(words) as left:
        try:
            assert cli.main(batch) == 1
        finally:
            left.kill()
    assert "--address auto cannot be reached (" in (err := capsys.readouterr().err)
    assert "refused" in err
    assert not (tmp_path / "out").exists()
