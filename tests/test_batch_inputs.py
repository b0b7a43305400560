"""Folders, globs, names and shards: which jobs come out."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_fast import StyleSettings
from nst_fast.batch import BatchOptions, find_jobs, finding, inputs
from nst_fast.batch.jobs import Job, check
from nst_fast.batch.manifest import Entry
from nst_fast.errors import BatchError, SettingsError

NAMES = st.text("abcXYZ09 _-é,\"';=", min_size=1, max_size=12).filter(lambda t: t == t.strip())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def looked(
    source: object, output: object = "/out", **chosen
) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Names and folders of what was found, and what was left out."""
    left_out = Counter[str]()
    entries = finding.entries([str(source)], BatchOptions(**chosen), str(output), left_out)
    return [(Path(entry.content).name, entry.folder) for entry in entries], left_out


def found(source: object, output: object = "/out", **chosen) -> list[tuple[str, str]]:
    return looked(source, output, **chosen)[0]


def to_jobs(entries, *, name=BatchOptions.name, anywhere=False, **changes) -> list[Job]:
    arguments = {"styles": ["/s/oil.jpg"], "output": "/out", "settings": StyleSettings()} | changes
    return inputs.to_jobs(entries, options=BatchOptions(name=name, anywhere=anywhere), **arguments)


# ----------------------------------------------------------------------------- folders and globs


def test_a_folder_gives_its_pictures_with_their_folders(tree):
    assert found(tree) == [("a.PNG", ""), ("b.jpg", ""), ("c.webp", "sub"), ("d.tif", "sub/deep")]


def test_filters_by_name(tree):
    assert found(tree, include=("*.txt", "a.*")) == [("a.PNG", ""), ("notes.txt", "")]
    assert found(tree, exclude=("?.jpg", "[cd]*")) == [("a.PNG", "")]


def test_globs(tree):
    assert found(tree / "*.jpg") == [("b.jpg", "")]
    assert found(tree / "**" / "*.tif") == [("d.tif", "sub/deep")]
    assert found(tree / "sub" / "*.webp") == [("c.webp", "")]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    names = ("2019/1.jpg", "2020/1.jpg", ".hidden/2.jpg", "2020/.previews/deep/3.jpg", ".4.jpg",
             "2020/@eaDir/5.jpg", "$RECYCLE.BIN/6.jpg", "2020/._1.jpg", "notes.txt")  # fmt: skip
    for name in names:
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "album"


def test_hidden_and_trash_folders_are_left_out_at_any_depth_and_told(album):
    for source in (album, album / "**" / "*.jpg", f"{album}/**"):
        assert found(source) == [("1.jpg", "2019"), ("1.jpg", "2020")]
    _, left_out = looked(album)
    assert left_out == {finding.HIDDEN: 5}
    assert finding.told(left_out).startswith("left out: 5 hidden")
    assert len(found(album, hidden=True)) == 7


def test_a_hidden_folder_that_is_named_is_meant(album, monkeypatch):
    assert found(album / ".hidden") == [("2.jpg", "")]
    assert found(album / "*" / ".previews" / "**" / "*.jpg") == [("3.jpg", "2020/.previews/deep")]
    assert found(album / ".h*" / "*.jpg") == [("2.jpg", ".hidden")]
    assert found(album / "2020" / "@eaDir") == [("5.jpg", "")]
    monkeypatch.chdir(album / ".hidden")
    assert found(".") == [("2.jpg", "")]


def test_exclude_is_for_folders_too(album):
    assert found(album, exclude=("2019",)) == [("1.jpg", "2020")]
    kept = [name for name, _ in found(album, exclude=("20*",), hidden=True)]
    assert sorted(kept) == [".4.jpg", "2.jpg", "6.jpg"]


def test_every_usual_ending_of_what_is_read(tmp_path):
    names = ["a.jfif", "b.JPE", "c.jpg", "d.apng", "e.tiff", "f.pbm", "g.PNM", "h.j2k"]
    for name in [*names, "x.SVG", "y.dng", "z.svg", "list.pdf", "song.mp3"]:
        (tmp_path / name).write_bytes(b"x")
    taken, left_out = looked(tmp_path)
    assert [name for name, _ in taken] == names
    assert left_out == {
        ".svg, which is not read": 2,
        "camera raw: develop it to TIFF or JPEG first": 1,
    }


def test_nothing_to_do_is_an_error_that_says_what_was_left_out(tmp_path):
    (tmp_path / "a.svg").write_bytes(b"x")
    with pytest.raises(BatchError, match=r"no pictures; left out: 1 .svg, which is not read"):
        find_jobs([str(tmp_path)], output="/out", styles=["s.png"])
    (tmp_path / "m.csv").write_text("content,style\n,\n")
    with pytest.raises(BatchError, match=r"m.csv: no pictures"):
        find_jobs([], manifest_url=str(tmp_path / "m.csv"), output="/out")


SIDE_BY_SIDE = [
    ("album/2019", "album/2020"),
    ("a/photos", "b/photos"),
    ("a/x/photos", "a/photos"),
    ("a", "ab"),
]


@pytest.mark.parametrize("folders", SIDE_BY_SIDE)
def test_folders_side_by_side_are_told_apart_by_what_the_error_advises(tmp_path, folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        for name in ("1.jpg", "1.png"):
            (tmp_path / folder / name).write_bytes(b"x")
    sources = [str(tmp_path / folder) for folder in folders]
    with pytest.raises(BatchError, match="would both become") as caught:
        check(find_jobs(sources, output="/out", styles=["/s.png"]).jobs)
    (advised,) = re.findall("--name '(.*)'", str(caught.value))
    options = BatchOptions(name=advised)
    jobs = find_jobs(sources, output="/out", styles=["/s.png"], options=options).jobs
    check(jobs)
    assert len(jobs) == 4


def test_a_file_named_by_itself_passes_the_filters(tree):
    assert found(tree / "notes.txt") == [("notes.txt", "")]


def test_a_file_with_brackets_is_itself(tree):
    (tree / "x[1].png").write_bytes(b"x")
    assert found(tree / "x[1].png") == [("x[1].png", "")]


@pytest.mark.parametrize("source", ["missing", "missing/*.png", "*.bmp"])
def test_nothing_there_is_an_error(tree, source):
    with pytest.raises(BatchError, match="no such file, and no folder with files"):
        found(tree / source)


def test_an_unknown_protocol_is_one_line():
    with pytest.raises(BatchError, match=r"nosuch:// cannot be used .*pip install"):
        found("nosuch://bucket/a.png")


# ------------------------------------------------------------------------------------------ names


def test_names():
    entry = Entry("/in/sub/a.b.jpg", folder="sub")
    (job,) = to_jobs([entry])
    assert job.output == "/out/sub/a.b.png"
    (job,) = to_jobs([entry], name="{style}/{name}.webp", styles=["/s/oil.jpg", "ink.png"])
    assert job.output == "/out/oil+ink/a.b.jpg.webp"
    (job,) = to_jobs([entry], output="s3://bucket/x")
    assert job.output == "s3://bucket/x/sub/a.b.png"


@pytest.mark.parametrize(
    "name", ["{stem", "{other}.png", "fixed.png", "{0}.png", "{stem.x}.png", "{}"]
)
def test_templates_that_cannot_work(name):
    with pytest.raises(SettingsError, match="name must be a path"):
        to_jobs([], name=name)


def test_an_output_stays_in_its_folder():
    with pytest.raises(BatchError, match="would leave /out"):
        to_jobs([Entry("/in/a.png")], name="../../{stem}.png")


def test_outputs_that_collide_are_inputs_or_no_pictures():
    with pytest.raises(BatchError, match=r"/in/a.jpg and /in/a.png would both become /out/a.png"):
        check(to_jobs([Entry("/in/a.jpg"), Entry("/in/a.png")]))
    with pytest.raises(BatchError, match=r"/in/a.jpg would become /out/a.png twice; name it once"):
        check(to_jobs([Entry("/in/../in/a.jpg"), Entry("/in/a.jpg")]))
    with pytest.raises(BatchError, match=r"output /out/a\.png is an input"):
        check(to_jobs([Entry("/out/a.png")]))
    with pytest.raises(BatchError, match=r"output /out/b\.png is an input"):
        check(to_jobs([Entry("/in/b.png")], settings=StyleSettings(init="/out/../out/b.png")))
    with pytest.raises(BatchError, match=r"output /out/a.gif must end in one of \.png"):
        check(to_jobs([Entry("/in/a.png", output="a.gif")]))


def test_no_style_anywhere():
    with pytest.raises(BatchError, match=r"/in/a.png has no style; give --style"):
        to_jobs([Entry("/in/a.png")], styles=[])


def test_results_inside_the_inputs_are_none_of_them(tree, monkeypatch):
    others = [("a.PNG", ""), ("b.jpg", "")]
    assert found(tree, output=tree / "sub") == others
    assert found(f"{tree}/**/*", output=f"{tree}/sub/") == others
    assert found(tree / "sub/c.webp", output=tree / "sub") == [("c.webp", "")]
    assert found(f"{tree}/sub/*", output=tree / "sub") == [("c.webp", "")]
    assert found(tree / "sub", output=tree) == [("c.webp", ""), ("d.tif", "deep")]
    monkeypatch.chdir(tree)
    assert found(".", output="sub/deep") == [*others, ("c.webp", "sub")]


def test_results_among_the_inputs_are_refused(tree, monkeypatch):
    monkeypatch.chdir(tree)
    for source, output in ((tree, f"{tree}/"), (".", tree), ("sub/", "sub")):
        with pytest.raises(BatchError, match="is the folder of the inputs"):
            found(source, output=output)


OUTSIDE = ("../x.png", "a/../../x.png", "/elsewhere/x.png", "/out/../x.png", "s3://b/x.png")


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("folder", ["/out", "s3://bucket/out"])
def test_an_output_of_a_manifest_stays_in_its_folder_unless_told(folder, path):
    entry = Entry("/in/a.png", output=path, origin="manifest m.csv, row 1")
    with pytest.raises(BatchError, match=r"m.csv, row 1: .* would leave .*--anywhere"):
        to_jobs([entry], output=folder)
    (job,) = to_jobs([entry], output=folder, anywhere=True)
    assert job.output.endswith("x.png")


@pytest.mark.parametrize("path", ["a/x.png", "./x.png", "/out/x.png", "a/../x.png", "..x.png"])
def test_an_output_of_a_manifest_in_its_folder(path):
    (job,) = to_jobs([Entry("/in/a.png", output=path)])
    assert job.output.startswith("/out")


# ----------------------------------------------------------------------------- shards and frames


def part_of(jobs: list[Job], part: str, output: str = "/out", **chosen) -> list[Job]:
    return inputs.shard(jobs, BatchOptions(shard=part, **chosen), output=output)


@given(st.lists(NAMES, unique_by=str.lower), st.integers(1, 7))
def test_shards_are_a_partition(names, count):
    jobs = to_jobs(Entry(f"/in/{name}.png") for name in names)
    parts = [part_of(jobs, f"{index + 1}/{count}") for index in range(count)]
    assert sorted(j.output for part in parts for j in part) == sorted(j.output for j in jobs)


@given(st.lists(NAMES, unique_by=str.lower, min_size=1), st.data())
def test_a_shard_does_not_depend_on_other_files(names, data):
    jobs = to_jobs(Entry(f"/in/{name}.png") for name in names)
    some = data.draw(st.lists(st.sampled_from(jobs), unique_by=id))
    kept = set(map(id, part_of(jobs, "2/3")))
    found = [id(job) for job in part_of(some, "2/3")]
    assert found == [id(job) for job in some if id(job) in kept]


@given(st.lists(NAMES, unique_by=str.lower, min_size=1))
@pytest.mark.parametrize("by_folder", [False, True])
def test_a_shard_does_not_depend_on_where_the_output_is_mounted(by_folder, names):
    entries = [Entry(f"/in/{name}.png", folder=name[0].strip()) for name in names]
    parts = [
        part_of(to_jobs(entries, output=output), "1/2", output, warm_start=by_folder)
        for output in ("/out", "/mnt/else/", "s3://bucket/out", "s3://bucket/out/")
    ]
    contents = [[job.content for job in part] for part in parts]
    assert all(each == contents[0] for each in contents)


@pytest.mark.parametrize("part", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "²/3"])
def test_shards_that_are_none(part):
    with pytest.raises(SettingsError, match="shard must be i/n"):
        BatchOptions(shard=part)


def test_frames_start_from_the_one_before_in_their_folder():
    jobs = inputs.as_frames(
        to_jobs([Entry(f"/in/{n}.png", folder=n[0]) for n in ("a/1", "a/2", "b/1")])
    )
    assert [job.after for job in jobs] == ["", "/out/a/1.png", ""]
    assert [job.settings.init for job in jobs] == ["content", "/out/a/1.png", "content"]
