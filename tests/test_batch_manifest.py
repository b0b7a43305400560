"""Manifests, and the digests of what they come to."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nst_fast import EngineOptions, StyleSettings
from nst_fast.batch import BatchOptions, inputs, jobs, manifest
from nst_fast.batch.jobs import Digests, Job, setting_names
from nst_fast.batch.manifest import Entry
from nst_fast.errors import BatchError

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


def to_jobs(entries, settings: StyleSettings | None = None) -> list[Job]:
    return inputs.to_jobs(
        entries,
        styles=["/s/oil.jpg"],
        output="/out",
        settings=settings or StyleSettings(),
        options=BatchOptions(),
    )


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


def test_masks_start_at_the_manifest_too(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(
        "content,style_mask,style_regions,content_mask,style_scale\n"
        'a.png,sky.png|/abs.png,,s3://b/k.png,"[1, 0.5]"\na.png,,m/regions.png,none,2\n'
    )
    first, second = to_jobs(manifest.read(str(path)))
    assert first.settings == StyleSettings(
        style_mask=(str(tmp_path / "sky.png"), "/abs.png"),
        content_mask="s3://b/k.png",
        style_scale=(1.0, 0.5),
    )
    regions = str(tmp_path / "m/regions.png")
    assert second.settings == StyleSettings(style_regions=regions, style_scale=2.0)
    lines = path.with_suffix(".jsonl")
    lines.write_text('{"content": "a.png", "style_mask": ["sky.png", "/abs.png"]}')
    (row,) = manifest.read(str(lines))
    assert row.settings["style_mask"] == first.settings.style_mask
    lines.write_text('{"content": "a.png", "style_mask": ["sky.png", 3]}')
    with pytest.raises(BatchError, match=r"row 1: style_mask must be paths or URLs"):
        [*manifest.read(str(lines))]


def test_settings_of_a_row_replace_those_of_the_batch(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('content,size,steps,style_layers\na.png,none,,"{""relu1_1"": 2}"\n')
    (job,) = to_jobs(manifest.read(str(path)), StyleSettings(size=64, steps=7))
    assert job.settings == StyleSettings(size=None, steps=7, style_layers={"relu1_1": 2})


NOTHINGS = ["", " ", "NaN", "nan", "NULL", "null", "NA", "N/A", "#N/A", "<NA>", "NaT", "#NA"]
NOTHINGS += ["-NaN", r"\N", "#NULL!", "1.#QNAN"]


@pytest.mark.parametrize("nothing", NOTHINGS)
def test_every_way_to_write_no_value_in_csv(nothing, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(
        "content,style,output,size,steps,seed,style_weight,init\n"
        f"a.png,b.png|{nothing},{nothing},64.0,2.0,{nothing},{nothing},{nothing}\n"
        f"{','.join(8 * [nothing])}\n"
        f"c.png,{nothing},x.png,{nothing},{nothing},7.0,1.0,noise\n"
        f"{','.join(8 * [nothing])},,\n"
    )
    first, second = manifest.read(str(path))
    assert (first.styles, first.output) == ((str(tmp_path / "b.png"),), "")
    assert (second.styles, second.output, second.origin[-5:]) == ((), "x.png", "row 3")
    one, two = to_jobs([first, second], StyleSettings(size=32))
    assert one.settings == StyleSettings(size=64, steps=2)
    assert two.settings == StyleSettings(size=32, seed=7, init="noise")


def test_none_is_no_value_but_where_a_setting_takes_it(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("content,style,size,seed,steps,init\na.png,None,None,None,none,None\n")
    (job,) = to_jobs(manifest.read(str(path)), StyleSettings(size=64, seed=3))
    assert job.settings == StyleSettings(size=None, seed=3)


@pytest.mark.parametrize("nothing", [None, float("nan"), "", "nan", "null", [], [None]])
def test_every_way_to_write_no_value_in_json_lines(nothing, tmp_path):
    path = tmp_path / "list.jsonl"
    rows = [
        {"content": "a.png", "style": nothing, "size": 64.0, "seed": nothing, "output": nothing},
        dict.fromkeys(("content", "style", "size"), nothing),
        {},
        {"content": "b.png", "style": ["s.png", None], "size": "512.0", "steps": "3"},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    one, two = to_jobs(manifest.read(str(path)))
    assert (one.settings, one.styles) == (StyleSettings(size=64), ("/s/oil.jpg",))
    assert (two.settings, two.styles) == (StyleSettings(steps=3), (str(tmp_path / "s.png"),))


def test_every_way_to_write_no_value_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "content": ["a.png", None, "b.png"],
        "style": [None, None, "nan"],
        "size": [64.0, math.nan, None],
        "seed": pyarrow.array([Decimal(7), None, None]),
        "style_layers": [{"relu1_1": 1.0, "relu2_1": None}, None, {"relu1_1": None, "relu2_1": 2}],
        "__index_level_0__": [0, 1, 2],
    }
    path = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    one, two = to_jobs(manifest.read(str(path)))
    assert one.settings == StyleSettings(size=64, seed=7, style_layers={"relu1_1": 1})
    assert two.settings == StyleSettings(style_layers={"relu2_1": 2})


def test_the_numbers_of_rows_that_pandas_writes_along_are_no_column(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(",Unnamed: 0,content,size\n0,0,a.png,32.0\n1,1,,\n2,2,b.png,\n")
    sizes = [job.settings.size for job in to_jobs(manifest.read(str(path)))]
    assert sizes == [32, StyleSettings().size]


@pytest.mark.parametrize("value", ["64.5", "1e400", "-inf", "Infinity", "true", "[64]", "big"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_what_means_nothing_sensible_is_refused_by_its_row(value, ending, tmp_path):
    path = tmp_path / f"list.{ending}"
    rows = {"csv": f"content,size\na.png,{value}\n",
            "jsonl": json.dumps({"content": "a.png", "size": value})}  # fmt: skip
    path.write_text(rows[ending])
    with pytest.raises(BatchError, match=r"row 1: size must be a whole number"):
        to_jobs(manifest.read(str(path)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "content,hue\na.png,blue\n", "row 1: there is no column 'hue'"),
        ("m.csv", "style\na.png\n", "row 1: content must be a path or URL"),
        ("m.csv", "content,size\nnan,64\n", "row 1: content must be a path or URL"),
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
    same = Digests(EngineOptions()).of(job)
    assert Digests(EngineOptions(threads=2)).of(Job("c.png", (str(style),), "o.png")) == same
    others = [
        Digests(EngineOptions()).of(Job("c.png", (str(style),), "o.png", StyleSettings(steps=9))),
        Digests(EngineOptions()).of(Job("c.png", (str(style),) * 2, "o.png")),
    ]
    style.write_bytes(b"two")
    others.append(Digests(EngineOptions()).of(job))
    assert len({same, *others}) == 4


@pytest.mark.parametrize("name", ["style_mask", "style_regions", "content_mask"])
def test_a_digest_is_of_the_masks(name, tmp_path, monkeypatch):
    """Of their bytes and of their role, however their paths are spelled."""
    monkeypatch.chdir(tmp_path)
    mask = tmp_path / "mask.png"

    def digest(path, name=name) -> str:
        job = Job("c.png", (), "o.png", StyleSettings(**{name: path}))
        return Digests(EngineOptions()).of(job)

    mask.write_bytes(b"one")
    same = digest("mask.png")
    assert digest(str(mask)) == same
    other = "content_mask" if name == "style_mask" else "style_mask"
    found = {same, digest("mask.png", other), digest("other.png")}
    mask.write_bytes(b"two")
    assert len({*found, digest("mask.png")}) == 4


def test_an_output_may_be_no_mask():
    job = Job("c.png", (), "out/m.png", StyleSettings(content_mask="./out/m.png"))
    with pytest.raises(BatchError, match=r"m\.png is an input"):
        jobs.check([job])


def test_a_digest_is_of_what_auto_comes_to_and_of_the_versions(monkeypatch):
    """An upgrade, or another machine, must not mix pictures of two kinds in silence."""
    found = {"onnxruntime": "1.2", "openvino": "3.4"}
    monkeypatch.setattr(jobs, "versions", lambda: found)

    def digest(provider="openvino", precision="bf16", here=True, **changes) -> str:
        monkeypatch.setattr(jobs, "choose", lambda *_: (provider, precision))
        found.update(changes)
        return Digests(EngineOptions(), here=here).of(Job("c.png", (), "o.png"))

    first = digest()
    assert digest() == first
    on_cpu = digest("cpu", "fp32")
    later = digest(openvino="3.5")
    assert digest("cpu", "fp32") == on_cpu, "another provider's version decides nothing"
    assert len({first, on_cpu, later, digest("openvino", "fp32"), digest(here=False)}) == 5
    assert digest("cpu", "fp32", onnxruntime="1.3") != on_cpu
    monkeypatch.setattr(jobs, "version", lambda name: f"{name} 99")
    assert digest(onnxruntime="1.2", openvino="3.4") != first


def test_a_digest_does_not_depend_on_how_paths_are_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [
        Job("c.png", (), "o.png", StyleSettings(init=init))
        for init in ("first.png", "./first.png", str(tmp_path / "first.png"))
    ]
    (tmp_path / "first.png").write_bytes(b"one")
    assert len({Digests(EngineOptions()).of(job) for job in jobs}) == 1


def test_a_preset_gives_way_to_the_other_columns(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("content,preset,steps\na.png,draft,\nb.png,draft,50\nc.png,,\n")
    settings = [entry.settings for entry in manifest.read(str(path))]
    assert settings == [{"steps": 36}, {"steps": 50}, {}]
    path.write_text("content,preset\na.png,best\n")
    with pytest.raises(BatchError, match="row 1: preset must be one of draft, standard, fine"):
        list(manifest.read(str(path)))
