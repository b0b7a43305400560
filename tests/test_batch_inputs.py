"""Folders, globs, manifests, names and shards: which jobs come out."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_fast import StyleSettings
from nst_fast.batch import inputs, manifest
from nst_fast.batch.inputs import Filters
from nst_fast.batch.jobs import Digests, Engine, Job, check, setting_names
from nst_fast.batch.manifest import Entry
from nst_fast.errors import BatchError, SettingsError

NAMES = st.text("abcXYZ09 _-é,\"';=", min_size=1, max_size=12).filter(lambda t: t == t.strip())
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "size": st.integers(16, 4096),
        "steps": st.integers(1, 999),
        "style_weight": st.floats(0, 100),
        "optimizer": st.sampled_from(["adam", "lbfgs"]),
        "style_layers": st.dictionaries(st.sampled_from(["relu1_1", "relu2_1"]), st.floats(1, 2)),
    },
)
ENTRIES = st.lists(
    st.builds(
        Entry,
        content=NAMES.map("/in/{}".format),
        styles=st.lists(NAMES.map("/style/{}".format), max_size=2).map(tuple),
        output=NAMES | st.just(""),
        settings=SETTINGS,
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def found(
    source: object,
    filters: Filters = Filters(),  # noqa: B008
    output: object = "/out",
) -> list[tuple[str, str]]:
    entries = inputs.entries([str(source)], filters, str(output))
    return [(Path(entry.content).name, entry.folder) for entry in entries]


def to_jobs(entries, **changes) -> list[Job]:
    arguments = {"styles": ["/s/oil.jpg"], "output": "/out", "name": inputs.DEFAULT_NAME}
    return inputs.to_jobs(iter(entries), **(arguments | {"settings": StyleSettings()} | changes))


# ----------------------------------------------------------------------------- folders and globs


def test_a_folder_gives_its_pictures_with_their_folders(tree):
    assert found(tree) == [("a.PNG", ""), ("b.jpg", ""), ("c.webp", "sub"), ("d.tif", "sub/deep")]


def test_filters_by_name(tree):
    assert found(tree, Filters(include=("*.txt", "a.*"))) == [("a.PNG", ""), ("notes.txt", "")]
    assert found(tree, Filters(exclude=("?.jpg", "[cd]*"))) == [("a.PNG", "")]


def test_globs(tree):
    assert found(tree / "*.jpg") == [("b.jpg", "")]
    assert found(tree / "**" / "*.tif") == [("d.tif", "sub/deep")]
    assert found(tree / "sub" / "*.webp") == [("c.webp", "")]


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
    with pytest.raises(SettingsError, match="--name"):
        to_jobs([], name=name)


def test_an_output_stays_in_its_folder():
    with pytest.raises(BatchError, match="would leave /out"):
        to_jobs([Entry("/in/a.png")], name="../../{stem}.png")


def test_outputs_that_collide_are_inputs_or_no_pictures():
    with pytest.raises(BatchError, match=r"/in/a.jpg and /in/a.png would both become /out/a.png"):
        check(to_jobs([Entry("/in/a.jpg"), Entry("/in/a.png")]))
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


# ----------------------------------------------------------------------------- shards and frames


@given(st.lists(NAMES, unique_by=str.lower), st.integers(1, 7))
def test_shards_are_a_partition(names, count):
    jobs = to_jobs(Entry(f"/in/{name}.png") for name in names)
    parts = [inputs.shard(jobs, f"{index + 1}/{count}", output="/out") for index in range(count)]
    assert sorted(j.output for part in parts for j in part) == sorted(j.output for j in jobs)


@given(st.lists(NAMES, unique_by=str.lower, min_size=1), st.data())
def test_a_shard_does_not_depend_on_other_files(names, data):
    jobs = to_jobs(Entry(f"/in/{name}.png") for name in names)
    some = data.draw(st.lists(st.sampled_from(jobs), unique_by=id))
    kept = set(map(id, inputs.shard(jobs, "2/3", output="/out")))
    found = [id(job) for job in inputs.shard(some, "2/3", output="/out")]
    assert found == [id(job) for job in some if id(job) in kept]


@given(st.lists(NAMES, unique_by=str.lower, min_size=1))
@pytest.mark.parametrize("by_folder", [False, True])
def test_a_shard_does_not_depend_on_where_the_output_is_mounted(by_folder, names):
    entries = [Entry(f"/in/{name}.png", folder=name[0].strip()) for name in names]
    parts = [
        inputs.shard(to_jobs(entries, output=output), "1/2", output=output, by_folder=by_folder)
        for output in ("/out", "/mnt/else/", "s3://bucket/out", "s3://bucket/out/")
    ]
    contents = [[job.content for job in part] for part in parts]
    assert all(each == contents[0] for each in contents)


@pytest.mark.parametrize("part", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "²/3"])
def test_shards_that_are_none(part):
    with pytest.raises(SettingsError, match="--shard must be i/n"):
        inputs.shard([], part, output="/out")


def test_frames_start_from_the_one_before_in_their_folder():
    jobs = inputs.as_frames(
        to_jobs([Entry(f"/in/{n}.png", folder=n[0]) for n in ("a/1", "a/2", "b/1")])
    )
    assert [job.after for job in jobs] == ["", "/out/a/1.png", ""]
    assert [job.settings.init for job in jobs] == ["content", "/out/a/1.png", "content"]


# -------------------------------------------------------------------------------------- manifests


def as_row(entry: Entry) -> dict:
    return {"content": entry.content, "style": list(entry.styles), "output": entry.output} | dict(
        entry.settings
    )


def write_jsonl(path: Path, entries: list[Entry]) -> None:
    path.write_text("".join(json.dumps(as_row(entry)) + "\n\n" for entry in entries), "utf-8")


def write_csv(path: Path, entries: list[Entry]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["content", "style", "output", *sorted(setting_names())])
    writer.writeheader()
    for entry in entries:
        values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in entry.settings.items()}
        writer.writerow(as_row(entry) | values | {"style": "|".join(entry.styles)})
    path.write_text(buffer.getvalue(), "utf-8", newline="")


def write_parquet(path: Path, entries: list[Entry]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    plain = [as_row(entry) for entry in entries]
    for row in plain:
        row.pop("style_layers", None)  # a column of maps has one type; see the two other formats
    names = ["content", "style", "output", "size", "steps", "style_weight", "optimizer"]
    types = [pyarrow.string(), pyarrow.list_(pyarrow.string()), pyarrow.string(), pyarrow.int64()]
    types += [pyarrow.int64(), pyarrow.float64(), pyarrow.string()]
    schema = pyarrow.schema(list(zip(names, types, strict=True)))
    parquet.write_table(pyarrow.Table.from_pylist(plain, schema), path)


@given(entries=ENTRIES)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_manifest_gives_what_was_written(entries, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / f"list.{ending}"
    {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}[ending](path, entries)
    read = list(manifest.read(str(path)))
    assert len(read) == len(entries)
    for number, (have, want) in enumerate(zip(read, entries, strict=True), start=1):
        settings = dict(want.settings)
        if ending == "parquet":
            settings.pop("style_layers", None)
        assert have.settings == settings
        assert (have.content, have.styles, have.output) == (want.content, want.styles, want.output)
        assert have.origin == f"manifest {path}, row {number}"


def test_paths_start_at_the_manifest(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("content,style\nin/a.png,s/oil.jpg|/abs.png\ns3://b/c.png,\n")
    first, second = manifest.read(str(path))
    assert first.content == str(tmp_path / "in/a.png")
    assert first.styles == (str(tmp_path / "s/oil.jpg"), "/abs.png")
    assert second.content == "s3://b/c.png"
    path.write_text("content,init\na.png,first.png\na.png,noise\na.png,/abs.png\na.png,\n")
    inits = [entry.settings.get("init") for entry in manifest.read(str(path))]
    assert inits == [str(tmp_path / "first.png"), "noise", "/abs.png", None]


def test_settings_of_a_row_replace_those_of_the_batch(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('content,size,steps,style_layers\na.png,none,,"{""relu1_1"": 2}"\n')
    (job,) = to_jobs(manifest.read(str(path)), settings=StyleSettings(size=64, steps=7))
    assert job.settings == StyleSettings(size=None, steps=7, style_layers={"relu1_1": 2})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "content,colour\na.png,blue\n", "row 1: there is no column 'colour'"),
        ("m.csv", "style\na.png\n", "row 1: content must be a path or URL"),
        ("m.csv", "content\na.png,b.png\n", "line 2: more cells than columns"),
        ("m.csv", "content,steps\na.png,many\n", "row 1: steps must be a whole number"),
        ("m.csv", 'content\n"a.png\n', "is no CSV in UTF-8"),
        ("m.jsonl", '{"content": "a.png"}\n{"content"\n', "line 2 is no JSON"),
        ("m.jsonl", "[]\n", "line 1 must be an object"),
        ("m.csv", f"content,style_weight\na.png,1{400 * '0'}\n", "style_weight must be a number"),
        ("m.jsonl", '{"content": "a.png", "style": 3}\n', "row 1: style must be paths"),
        ("m.parquet", "text", "is no Parquet file"),
        ("m.txt", "a.png", "must end in one of .csv, .jsonl, .parquet"),
    ],
)
def test_manifests_that_are_wrong_name_file_and_row(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BatchError, match=message) as caught:
        to_jobs(manifest.read(str(path)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=60), st.sampled_from(["csv", "jsonl", "parquet"]))
def test_any_bytes_give_entries_or_a_batch_error(data, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m.{ending}"
        path.write_bytes(data)
        with contextlib.suppress(BatchError):
            to_jobs(manifest.read(str(path)))


# ---------------------------------------------------------------------------------------- digests


def test_a_digest_is_of_all_that_decides_the_picture(tmp_path):
    style = tmp_path / "style.png"
    style.write_bytes(b"one")
    job = Job("c.png", (str(style),), "o.png", StyleSettings())
    same = Digests(Engine()).of(job)
    assert Digests(Engine(threads=2)).of(Job("c.png", (str(style),), "o.png")) == same
    others = [
        Digests(Engine()).of(Job("c.png", (str(style),), "o.png", StyleSettings(steps=9))),
        Digests(Engine()).of(Job("c.png", (str(style),) * 2, "o.png")),
        Digests(Engine(provider="cpu")).of(job),
        Digests(Engine(precision="fp32")).of(job),
    ]
    style.write_bytes(b"two")
    others.append(Digests(Engine()).of(job))
    assert len({same, *others}) == 6


def test_a_digest_does_not_depend_on_how_paths_are_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [
        Job("c.png", (), "o.png", StyleSettings(init=init))
        for init in ("first.png", "./first.png", str(tmp_path / "first.png"))
    ]
    (tmp_path / "first.png").write_bytes(b"one")
    assert len({Digests(Engine()).of(job) for job in jobs}) == 1
