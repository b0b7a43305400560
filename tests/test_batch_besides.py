"""What a batch writes besides its pictures, and the states that it goes on from."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import commanding
import fsspec
import numpy as np
import psutil
import pytest
from batches import ENGINE, encoded, journal_rows, make_jobs, write_pictures
from PIL import Image
from stylizing import SHALLOW, quick

from nst_fast import EngineOptions, images
from nst_fast.batch import (
    BatchOptions,
    BatchRunner,
    Job,
    MakingOptions,
    find_jobs,
    resume,
    storage,
    work,
    worker,
)
from nst_fast.batch.jobs import Digests, check
from nst_fast.batch.machine import Layout
from nst_fast.errors import BatchError, ImageError, SettingsError
from nst_fast.plan import Plan

command = commanding.command
QUICK = ["--size", "32", "--scales", "1", "--margin", "8",
         "--provider", "cpu", "--threads", "1", "--workers", "1",
         "--style-layers", "relu1_1=0.5,relu2_1=1", "--content-layers", "relu2_1=0.5"]  # fmt: skip
ALL = MakingOptions(plot=True, compare="png", record="png", record_every=1)


def made_here(job: Job, stylizer, steps: int | None = None) -> tuple[bytes, int]:
    """Make and write a job in this process: its file, and how many steps that took.

    After so many ``steps`` the run is broken off.
    """
    calls = []
    genuine = Plan.value_and_grad

    def count(plan):
        if len(calls) == steps:
            raise KeyboardInterrupt
        return calls.append(1) or genuine(plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "value_and_grad", count)
        made = work.make(stylizer, work.load(job, work.StyleCache()))
    row = work.write(made, "tag")
    assert {url: storage.sizes(storage.parent(url))[url] for url in row.besides} == row.besides
    return storage.read(job.output), len(calls)


def words(folder: Path, *more: object) -> list[str]:
    return ["batch", "--manifest", str(folder / "list.csv"), "--style", str(folder / "style.png"),
            "-o", str(folder / "out"), *QUICK, *map(str, more)]  # fmt: skip


# ------------------------------------------------------------------------------ files besides it


def test_options_are_of_all_rows_and_columns_of_theirs(tmp_path, command):
    """One has all in the usual formats, one names files, one does without."""
    write_pictures(tmp_path / "in", 3)
    (tmp_path / "list.csv").write_text(
        "content,output,plot,compare,record,record_every\n"
        "in/p000.png,a.png,true,,TRUE,2\n"
        "in/p001.png,b.jpg,side/b.svg,side/b.webp,b.mp4,\n"
        "in/p002.png,c.png,false,none,none,\n"
    )
    code, _, err = command(*words(tmp_path, "--steps", 6, "--compare", "png", "--record", "webp"))
    assert (code, err) == (0, "pictures: 3 to make, 0 done before\n")
    out = tmp_path / "out"
    besides = {"a.png.plot.svg", "a.png.compare.png", "a.png.record.webp",
               "side/b.svg", "side/b.webp", "b.mp4"}  # fmt: skip
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {"a.png", "b.jpg", "c.png", "journal.jsonl", "journal.jsonl.lock",
                     "report.html", *besides}  # fmt: skip
    listed = {url: size for row in journal_rows(out) for url, size in row["besides"].items()}
    assert listed == {str(out / name): (out / name).stat().st_size for name in besides}
    row = images.load(out / "a.png.compare.png").pixels
    result = images.load(out / "a.png").pixels
    assert np.array_equal(row[:, -result.shape[1] :], result)
    assert "<svg" in (out / "side/b.svg").read_text()
    with Image.open(out / "a.png.record.webp") as film:
        assert film.n_frames in (3, 4)  # WebP joins frames that are equal
    # Run again there is nothing to do, but for what is gone.
    found_again = find_jobs(
        [],
        output=str(out),
        styles=[str(tmp_path / "style.png")],
        manifest_url=str(tmp_path / "list.csv"),
        settings=quick(**SHALLOW, size=32, steps=6),
        making=MakingOptions(compare="png", record="webp"),
    )
    runner = BatchRunner(found_again.jobs, out, engine=ENGINE)
    assert runner.plan() == ([], 3)
    (out / "side/b.svg").unlink()
    todo, done = runner.plan()
    assert ([Path(job.output).name for job in todo], done) == (["b.jpg"], 2)


def test_what_is_besides_changes_no_picture(tmp_path, stylizer):
    (job,) = make_jobs(tmp_path / "in", 1, steps=4)
    expected, _ = made_here(job, stylizer)
    more = replace(job, making=replace(ALL, save_every=1))
    assert made_here(more, stylizer) == (expected, 4)
    assert Digests(ENGINE).of(more) == Digests(ENGINE).of(job)
    names = ["p000.png", *(f"p000.png.{end}" for end in ("compare.png", "plot.svg", "record.png"))]
    assert sorted(os.listdir(tmp_path / "out")) == names
    with Image.open(f"{job.output}.record.png") as film:
        assert film.n_frames > 2
        film.seek(film.n_frames - 1)
        with Image.open(job.output) as result:
            assert np.array_equal(film.convert("RGB"), result)


@pytest.mark.parametrize("ending", ["webp", "png", "mp4"])
def test_a_long_film_goes_to_the_temporary_folder(tmp_path, stylizer, monkeypatch, ending):
    """The same frames come out of it; x264 does not always make the same bytes of them."""
    (job,) = make_jobs(tmp_path / "in", 1, steps=4)
    job = replace(job, making=MakingOptions(record=ending, record_every=1))
    loaded = work.load(job, work.StyleCache())
    films = [work.make(stylizer, loaded).film]
    monkeypatch.setattr(work, "SPOOLED", 100)
    films.append(work.make(stylizer, loaded).film)
    assert min(map(len, films)) > 100
    if ending == "mp4":
        av = pytest.importorskip("av")
        with av.open(io.BytesIO(films[0])) as one, av.open(io.BytesIO(films[1])) as other:
            for frames in zip(one.decode(video=0), other.decode(video=0), strict=True):
                first, second = (frame.to_ndarray(format="rgb24") for frame in frames)
                assert np.abs(first.astype(int) - second).mean() < 3
    else:
        assert films[0] == films[1]


def known(job: Job, besides: dict[str, int]) -> dict[str, resume.Known]:
    content = hashlib.sha256(Path(job.content).read_bytes()).hexdigest()
    return {job.output: resume.Known(1.0, True, job.digest, 1, "", content, besides)}


def test_what_is_gone_is_made_again_and_what_is_new_has_to_be_asked_for(tmp_path):
    (job,) = make_jobs(tmp_path / "in", 1)
    wanted = replace(job, making=MakingOptions(compare="png", plot="svg"))
    plot, compared = wanted.files["plot"], wanted.files["compare"]
    Path(job.output).parent.mkdir()
    for path in (job.output, plot, compared):
        Path(path).write_bytes(b"x")
    whole = known(job, {plot: 1, compared: 1})
    assert resume.standing([wanted], whole) == {job.output}
    assert resume.redone([wanted], whole) == []
    assert resume.standing([job], whole) == {job.output}, "nobody wants them any more"
    without = known(job, {plot: 1})
    assert resume.redone([wanted], without) == [wanted]
    assert resume.standing([wanted], without) == set()
    Path(compared).write_bytes(b"cut")
    assert resume.standing([wanted], whole) == set()
    Path(compared).unlink()
    assert resume.standing([wanted], whole) == set()
    assert resume.redone([wanted], whole) == []


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("record", "film.gif", "row 1: record: output {out}/film.gif must end in one of .webp"),
        ("plot", "jpg", "row 1: plot: output {out}/a.png.plot.jpg must end in one of .svg"),
        ("compare", "../x.png", "row 1: its compare ../x.png would leave {out}, unless --anywhere"),
        ("compare", "3", "row 1: compare must be a format or a path, not 3"),
        ("compare", "a.png", "compare {out}/a.png is an output; give it another name"),
        ("compare", "{in}/p000.png", "compare {in}/p000.png is an input"),
        ("compare,plot", "x.png,x.png", "x.png is named twice; give each file its own name"),
        ("save_every", "0", "row 1: save_every must be a whole number from 1 to"),
        ("record_every", "0", "row 1: record_every must be a whole number from 1 to"),
        ("max_memory", "8GB", "row 1: there is no column 'max_memory'; --max-memory is of the"),
        ("settings", "none.toml", "row 1: settings {in}/../none.toml: no such file"),
        ("settings", "s3://b/x.toml", "row 1: settings must be the path of a local file"),
        ("settings", "bad.toml", "bad.toml: there is no setting 'stepz'; did you mean steps?"),
    ],
)
def test_rows_that_cannot_be_are_one_line(tmp_path, command, columns, cells, message):
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "bad.toml").write_text("stepz = 3\n")
    places = {"out": str(tmp_path / "out"), "in": str(tmp_path / "in")}
    row = f"in/p000.png,a.png,{cells.format_map(places)}"
    (tmp_path / "list.csv").write_text(f"content,output,{columns}\n{row}\n")
    anywhere = ["--anywhere"] if "input" in message else []
    code, out, err = command(*words(tmp_path, *anywhere))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message.format_map(places).replace("in/../", "") in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--compare", "x.png"), "--compare: x.png would be the file of every picture; give a"),
        (("--record", "gif"), "record.gif must end in one of .webp, .png, .apng, .mp4"),
        (("--save-every", "0"), "--save-every must be a whole number from 1"),
        (("--save-every", "2.5"), "--save-every must be a whole number"),
        (("--record-every", "0"), "--record-every must be a whole number from 1"),
    ],
)
def test_options_that_cannot_be_are_one_line(tmp_path, command, option, message):
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "list.csv").write_text("content\nin/p000.png\n")
    code, out, err = command(*words(tmp_path, *option))
    assert code > 0
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_options_take_formats_with_or_without_a_dot_and_switches():
    options = MakingOptions(plot=True, compare=".PNG", record=False)
    assert options.files("o/a.tif") == {
        "plot": "o/a.tif.plot.svg",
        "compare": "o/a.tif.compare.png",
    }
    assert MakingOptions().files("a.png") == {}
    assert MakingOptions(record="x/y.mp4").files("a.png") == {"record": "x/y.mp4"}
    for wrong in ({"plot": ""}, {"compare": 3}, {"save_every": True}, {"record_every": None}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            MakingOptions(**wrong)


def test_a_format_without_its_package_is_refused_before_anything(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for making, extra in (
        (MakingOptions(plot=True), "plot"),
        (MakingOptions(record="mp4"), "video"),
    ):
        with pytest.raises(ImageError, match=rf'pip install "nst-fast\[{extra}\]"'):
            check([Job("c.png", ("s.png",), "o.png", making=making)])


def test_pictures_that_are_looked_at_on_the_way_are_made_alone():
    def loaded(**making) -> work.Loaded:
        job = Job("c.png", ("s.png",), "o.png", making=MakingOptions(**making))
        return work.Loaded(job, None, (), {}, 0.0)

    plain = loaded()
    assert worker._alike(plain, loaded(plot=True, compare=True))
    for alone in (loaded(record=True), loaded(save_every=5)):
        assert not worker._alike(plain, alone)
        assert not worker._alike(alone, plain)


# ------------------------------------------------------------------------------------ going on


def interrupted(job: Job, stylizer, steps: int) -> Path:
    """The state that a job leaves which is broken off after so many steps."""
    with pytest.raises(KeyboardInterrupt):
        made_here(job, stylizer, steps)
    assert not os.path.exists(job.output)
    return Path(job.state_file)


def saving(folder: Path, **settings) -> Job:
    (job,) = make_jobs(folder / "in", 1, **{"steps": 12, **settings})
    return replace(job, making=MakingOptions(save_every=5))


def test_a_picture_goes_on_from_its_state(tmp_path, stylizer):
    """To the same bytes and curves, with the steps that were left alone; then the state is gone."""
    job = saving(tmp_path)
    plotted = replace(job, making=replace(job.making, plot=str(tmp_path / "loss.svg")))
    expected, steps = made_here(plotted, stylizer)
    assert steps == 12
    curves = (tmp_path / "loss.svg").read_bytes()
    os.remove(job.output)
    state = interrupted(plotted, stylizer, 11)
    assert state == tmp_path / "out" / "p000.png.state"
    half_written = state.with_name(f".nst-fast-{storage.files.tag_of(state)}-kill.tmp")
    half_written.write_bytes(b"half")
    assert made_here(plotted, stylizer) == (expected, 2)
    assert (tmp_path / "loss.svg").read_bytes() == curves
    assert os.listdir(tmp_path / "out") == ["p000.png"]


@pytest.mark.parametrize("damage", ["other settings", "other content", "no state"])
def test_a_state_that_does_not_fit_costs_its_steps_alone(tmp_path, stylizer, damage):
    job = saving(tmp_path)
    state = interrupted(job, stylizer, 7)
    if damage == "other settings":
        job = replace(job, settings=replace(job.settings, content_weight=0.5))
    elif damage == "other content":
        Path(job.content).write_bytes(encoded(3))
    else:
        state.write_bytes(b"no state")
    plain = replace(job, making=MakingOptions(), output=str(tmp_path / "plain.png"))
    expected, _ = made_here(plain, stylizer)
    made = work.make(stylizer, work.load(job, work.StyleCache()))
    assert made.result.encode(job.output) == expected
    (note,) = made.row.notes
    assert note.startswith(f"begun anew: {state} is ")
    work.write(made, "tag")
    assert os.listdir(tmp_path / "out") == ["p000.png"]


def test_killed_within_a_picture_a_batch_goes_on(tmp_path, command, stylizer):
    """What is there in the end is the picture of a run that was left alone."""
    write_pictures(tmp_path / "in", 1)
    listed = "content,output,steps,save_every\nin/p000.png,a.png,400,40\n"
    (tmp_path / "list.csv").write_text(listed)
    out, state = tmp_path / "out", tmp_path / "out" / "a.png.state"
    with subprocess.Popen(
        [sys.executable, "-m", "nst_fast", *words(tmp_path)], stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not state.exists():
            time.sleep(0.002)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert not (out / "a.png").exists()
    assert state.exists()
    assert command(*words(tmp_path))[0] == 0
    (row,) = journal_rows(out)
    assert row["notes"] == []
    assert {path.suffix for path in out.iterdir()} == {".png", ".jsonl", ".lock", ".html"}
    (job,) = make_jobs(tmp_path / "in", 1, steps=400)
    expected, _ = made_here(replace(job, output=str(tmp_path / "expected.png")), stylizer)
    assert (out / "a.png").read_bytes() == expected


def test_threads_are_those_of_the_whole_batch_where_states_are_saved(tmp_path, monkeypatch):
    """A run goes on with as many as it had, however few pictures are left."""
    monkeypatch.setattr("nst_fast.batch.machine.usable_cores", lambda: 8)
    monkeypatch.setattr("nst_fast.batch.machine.free_memory", lambda: 1e12)
    jobs = make_jobs(tmp_path / "in", 8)
    engine = EngineOptions(provider="cpu")
    assert BatchRunner(jobs, tmp_path, engine=engine).layout(jobs[:2]).threads == 4
    long = [replace(job, making=MakingOptions(save_every=5)) for job in jobs]
    layout = BatchRunner(long, tmp_path, engine=engine).layout(long[:2])
    assert layout == Layout(2, 1, layout.memory)
    assert layout.memory == BatchRunner(long, tmp_path, engine=engine).layout(long).memory


# -------------------------------------------------------------------------------- object stores


def test_on_an_object_store_files_are_beside_and_states_with_the_journal(tmp_path, stylizer):
    (job,) = make_jobs(tmp_path / "in", 1, steps=6)
    plain = made_here(job, stylizer)[0]
    making = replace(ALL, save_every=2, compare="png")
    job = replace(job, output="memory://besides/out/p.png", making=making)
    (todo,), _ = BatchRunner([job], tmp_path / "journal", engine=ENGINE).plan()
    assert Path(todo.state_file).parent == tmp_path / "journal" / "states"
    state = interrupted(todo, stylizer, 5)
    assert state.exists()
    assert made_here(todo, stylizer) == (plain, 2)
    assert not state.exists()
    names = {Path(url).name for url in storage.sizes("memory://besides/out")}
    assert names == {"p.png", "p.png.plot.svg", "p.png.compare.png", "p.png.record.png"}
    fsspec.filesystem("memory").rm("/besides", recursive=True)
    with pytest.raises(
        BatchError, match=r"save_every: memory://besides/out/p\.png is on an object"
    ):
        made_here(job, stylizer)


def test_states_on_an_object_store_are_not_for_a_cluster(tmp_path):
    (job,) = make_jobs(tmp_path / "in", 1)
    job = replace(job, output="s3://bucket/p.png", making=MakingOptions(save_every=2))
    options = BatchOptions(executor="ray")
    with pytest.raises(BatchError, match=r"--save-every: s3://bucket/p.png is on an object store"):
        BatchRunner([job], tmp_path / "journal", engine=ENGINE, options=options)


def test_what_is_besides_may_not_be_on_a_web_server(tmp_path):
    making = MakingOptions(compare="http://host/x.png")
    with pytest.raises(BatchError, match=r"http\(s\):// can only be read"):
        check([Job("c.png", ("s.png",), "o.png", making=making)])
