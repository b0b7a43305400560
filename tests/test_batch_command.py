"""``nst-fast batch`` as a process: killed at random moments, resumed, and what it prints."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import commanding
import numpy as np
import psutil
import pytest
from batches import ENGINE, journal_rows, make_jobs, outputs, write_pictures
from PIL import ExifTags, Image

from nst_fast import StyleSettings
from nst_fast.batch import BatchOptions, Job, estimate, shapes
from nst_fast.batch.journal import Row
from nst_fast.batch.metrics import Metrics
from nst_fast.cli.progress import Lines
from nst_fast.errors import BatchError

KILLS, PICTURES = 8, 32
QUICK = ["--size", "32", "--steps", "2", "--scales", "1", "--margin", "8",
         "--provider", "cpu", "--threads", "1",
         "--style-layers", "relu1_1=0.5,relu2_1=1", "--content-layers", "relu2_1=0.5",
         "--workers", "1"]  # fmt: skip


def family_of(pid: int) -> list[psutil.Process]:
    """Descendants of a process; none where it has just ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def words(folder: Path, out: str = "out", *more: str) -> list[str]:
    return ["batch", str(folder / "in"), "--style", str(folder / "style.png"), "-o",
            str(folder / out), *QUICK, *more]  # fmt: skip


command = commanding.command


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nst_fast", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Until the journal has so many rows, or the process has ended."""
    path = folder / "journal.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        time.sleep(0.002)


def test_killed_again_and_again_and_resumed_nothing_is_lost_or_made_twice(tmp_path, seed):
    rng = random.Random(seed)
    write_pictures(tmp_path / "in", PICTURES)
    out, kills = tmp_path / "out", 0
    while True:
        before = len(journal_rows(out)) if out.exists() else 0
        workers = str(rng.choice((1, 2)))
        with start(*words(tmp_path, "out", "--workers", workers, "--steps", "24")) as process:
            if kills < KILLS:
                wait_for_rows(out, before + rng.randrange(3), process)
                time.sleep(rng.random() * 0.03)
                family = family_of(process.pid)
                process.send_signal(signal.SIGKILL)
                process.wait()
                assert not psutil.wait_procs(family, timeout=30)[1], "workers outlive the run"
                kills += process.returncode == -signal.SIGKILL
                if process.returncode == -signal.SIGKILL:
                    continue
            assert process.wait() == 0
            break
    assert kills == KILLS
    with start(*words(tmp_path, "whole", "--steps", "24")) as process:
        assert process.wait() == 0
    assert len(outputs(out)) == PICTURES
    assert outputs(out) == outputs(tmp_path / "whole")
    assert Counter(row["output"] for row in journal_rows(out)).most_common(1)[0][1] == 1


def test_interrupted_it_says_how_to_go_on(tmp_path):
    write_pictures(tmp_path / "in", 200)
    with start(*words(tmp_path, "out", "--steps", "50")) as process:
        wait_for_rows(tmp_path / "out", 1, process)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait() == 130
    assert err.endswith("error: interrupted; run the same command again to go on\n")
    assert "Traceback" not in err
    assert 0 < len(outputs(tmp_path / "out")) < 200


def test_exit_codes_and_what_is_printed(tmp_path, command):
    paths = write_pictures(tmp_path / "in", 3)
    code, out, err = command(*words(tmp_path))
    assert code == 0
    assert out.startswith("3 done, in ")
    assert out.endswith(f"{tmp_path / 'out' / 'report.html'}\n")
    assert err == "pictures: 3 to make, 0 done before\n"
    (tmp_path / "in" / "bad.png").write_bytes(b"text")
    code, out, err = command(*words(tmp_path))
    assert code == 3
    assert out.startswith("3 done before, 1 failed, in ")
    assert f"failed: {tmp_path / 'in' / 'bad.png'} is not an image" in err
    for path in paths:
        path.unlink()
    assert command(*words(tmp_path, "other", "--quiet")) == (1, "", "")
    (tmp_path / "in" / "bad.png").rename(tmp_path / "in" / "bad.svg")
    told = "no pictures; left out: 1 .svg, which is not read; see --include"
    nothing = (1, "", f"error: {tmp_path / 'in'}: {told}\n")
    assert command(*words(tmp_path, "third")) == nothing


def test_a_rerun_knows_its_results_however_the_folder_is_spelled(tmp_path, command, monkeypatch):
    """Relative and absolute, and inside the folder of the inputs; frames have paths as settings."""
    write_pictures(tmp_path / "in", 3)
    monkeypatch.chdir(tmp_path)
    given = ["batch", "in", "--style", "style.png", *QUICK, "--warm-start"]
    code, out, _ = command(*given, "-o", "in/out")
    assert (code, out.partition(",")[0]) == (0, "3 done")
    for spelled in ("in/out", "./in/out/", str(tmp_path / "in" / "out")):
        code, out, err = command(*given, "-o", spelled)
        assert (code, out.partition(",")[0]) == (0, "3 done before")
        assert err == "pictures: 0 to make, 3 done before\n"
    assert "<td>3</td>" in (tmp_path / "in" / "out" / "report.html").read_text()


def test_an_estimate_knows_the_sizes_of_large_files(tmp_path, command):
    """More than fits into the first bytes: local files are opened, whatever their format."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    (tmp_path / "in").mkdir()
    for ending in ("png", "tif", "jpg", "webp"):
        for name, exif in (("wide", Image.Exif()), ("tall", turned)):
            path = tmp_path / "in" / f"{name}.{ending}"
            Image.fromarray(noise).save(path, exif=exif, quality=100)
            probed = shapes.probe(Job(str(path), (), "", StyleSettings(size=150)))
            assert probed == ((100, 150) if exif else (150, 100))
    write_pictures(tmp_path / "beside", 1)
    code, out, err = command(*words(tmp_path, "out", "--dry-run", "--name", "{name}.png"))
    assert (code, err) == (0, "")
    assert "time: about " in out


def test_an_estimate_without_any_size_takes_that_of_the_timed_picture(tmp_path, monkeypatch):
    jobs = make_jobs(tmp_path / "in", 3)
    monkeypatch.setattr(estimate, "_time", lambda *_: estimate.Timed(1.0, 0.01, (10, 10)))
    monkeypatch.setattr(shapes, "probe", lambda job: shapes.UNKNOWN)
    steps = jobs[0].settings.steps
    assert estimate.seconds(jobs, ENGINE, 2) == pytest.approx(3 * (1 + 0.01 * 100 * steps) / 2)


def test_a_dry_run_estimates_and_writes_nothing(tmp_path, command):
    write_pictures(tmp_path / "in", 5)
    code, out, err = command(*words(tmp_path, "out", "--dry-run", "--workers", "2"))
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == [
        "pictures: 5 to make, 0 done before",
        "2 workers, threads of each: 1",
    ]
    assert out.splitlines()[2].startswith("time: about ")
    assert not (tmp_path / "out").exists()


def test_a_manifest_with_settings_of_its_own(tmp_path, command):
    write_pictures(tmp_path / "in", 2)
    listed = [
        {"content": "in/p000.png", "style": "style.png", "output": "x.png", "size": 24},
        {"content": "in/p001.png", "seed": 3},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    chosen = ["--manifest", str(tmp_path / "list.jsonl"), *words(tmp_path)[2:]]
    code, _, err = command("batch", *chosen, "--name", "{stem}-{style}.webp")
    assert (code, err) == (0, "pictures: 2 to make, 0 done before\n")
    sizes = {Path(row["output"]).name: row["size"] for row in journal_rows(tmp_path / "out")}
    assert sizes == {"x.png": [24, 19], "p001-style.webp": [26, 32]}


def test_a_failure_names_its_picture(capsys):
    lines = Lines()
    for error in ("a.png is no picture", "style_blend names 3 shares"):
        lines.ended(Row("o.png", "a.png", (), "failed", error=error))
    assert capsys.readouterr().err.splitlines() == [
        "failed: a.png is no picture",
        "failed: a.png: style_blend names 3 shares",
    ]


@pytest.mark.parametrize(
    ("more", "message", "expected"),
    [
        (["--shard", "3/2"], "--shard must be i/n", 2),
        (["--name", "{x}.png"], "--name", 2),
        (["--workers", "0"], "workers must be a whole number", 2),
        (["--manifest", "none.csv"], "manifest none.csv: no such file", 1),
        (["--style", "none.png"], "none.png: no such file", 1),
        (["-o", "s3://bucket/out"], "--journal", 1),
        (["-o", "http://host/out"], "output http://host/out: http(s):// can only be read;", 1),
        (["-o", "HTTPS://host", "--journal", "."], "http(s):// can only be read;", 1),
        (["--address", "localhost:1"], "give --executor ray too", 2),
        (["--timeout", "nan"], "timeout must be above 0 seconds", 2),
        (["--timeout", "9", "--executor", "ray"], "--timeout is for --executor local", 2),
        (["--metrics-port", "99999"], "--metrics-port 99999 cannot be had", 1),
    ],
)
def test_mistakes_are_one_line(tmp_path, command, more, message, expected):
    write_pictures(tmp_path / "in", 1)
    code, out, err = command(*words(tmp_path, "out", *more))
    assert (code, out) == (expected, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_told_with_its_count(tmp_path, command):
    write_pictures(tmp_path / "in", 1)
    write_pictures(tmp_path / "in" / "2020" / ".previews", 3)
    (tmp_path / "in" / "photo.NEF").write_bytes(b"raw")
    code, _, err = command(*words(tmp_path))
    assert (code, err.splitlines()[1]) == (0, "pictures: 2 to make, 0 done before")
    assert err.startswith(
        "left out: 1 camera raw: develop it to TIFF or JPEG first; 3 hidden or in hidden folders"
    )
    code, _, err = command(*words(tmp_path, "all", "--hidden", "--exclude", "nothing"))
    assert err.endswith("pictures: 5 to make, 0 done before\n")


def test_an_output_of_a_manifest_outside_is_refused_before_anything(tmp_path, command):
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "list.csv").write_text("content,output\nin/p000.png,../elsewhere/x.png\n")
    more = ["--manifest", str(tmp_path / "list.csv"), *words(tmp_path)[2:]]
    code, _, err = command("batch", *more)
    assert (code, err.count("\n")) == (1, 1)
    assert "row 1: its output ../elsewhere/x.png would leave" in err
    assert command("batch", *more, "--anywhere")[0] == 0
    assert (tmp_path / "elsewhere" / "x.png").exists()


def test_metrics_are_served_to_this_machine_alone_unless_told(monkeypatch):
    prometheus = pytest.importorskip("prometheus_client")
    bound = []

    def serve(port: int, address: str, **_: object) -> None:
        bound.append(address)
        raise OSError("not now")

    monkeypatch.setattr(prometheus, "start_http_server", serve)
    for host in ((), ("0.0.0.0",)):
        with pytest.raises(BatchError, match="another --metrics-host"):
            Metrics(1, *host)
    assert bound == ["127.0.0.1", "0.0.0.0"]
    assert BatchOptions().metrics_host == "127.0.0.1"


def test_other_commands_do_not_load_the_batch():
    code = "import sys, nst_fast.cli.app\n"
    code += "print([m for m in sys.modules if m in ('fsspec', 'ray') or '.batch.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_metrics_count_what_ended():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Metrics(port) as metrics:
        metrics.begin(5, 2)
        for status, length in (("done", 100), ("done", 50), ("failed", 0)):
            metrics.ended(
                Row("o", "c", (), status, attempts=2, length=length, seconds={"read": 0.5})
            )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    for line in (
        'nst_fast_pictures_total{status="done"} 2.0',
        'nst_fast_pictures_total{status="failed"} 1.0',
        'nst_fast_seconds_total{part="read"} 1.5',
        "nst_fast_bytes_total 150.0",
        "nst_fast_attempts_total 6.0",
        "nst_fast_left 2.0",
    ):
        assert line in text.splitlines()
