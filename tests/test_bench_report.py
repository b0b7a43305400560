"""From findings to tables, plots and verdicts; the documents agree with the recorded findings."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import benching
import pytest

from nst_fast import cli, plotting
from nst_fast.bench import findings as data
from nst_fast.bench import method, plots, suites, tables
from nst_fast.bench.findings import Curve, Failure, Findings, Fit, Measurement, Row
from nst_fast.bench.regressions import changes
from nst_fast.bench.session import Bench
from nst_fast.errors import BenchError

ROOT = Path(__file__).parent.parent
# Runs of the kernels at 256 pixels on a busy machine (load 3 on 2 cores): two of one build, and one
# of a build whose kernels of the taps do a fifth more; test_a_slowed_build_is_caught records them.
RECORDED = Path(__file__).parent / "bench_runs"
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"]
RESULTS = sorted((ROOT / "bench" / "results").glob("*.json"))
Command = Callable[..., tuple[int, str, str]]
MACHINE = {
    "cpu": "Test CPU @ 3 (R)",
    "kernels": "avx2",
    "bf16": [],
    "cores": 2,
    "threads": 2,
    "load": [0.1],
    "load_after": [0.2],
    "versions": {"numpy": "2"},
    "revision": "abc",
}


quick = benching.quick


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main(["bench", *map(str, words)])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def found() -> Findings:
    """Something for every table and plot."""
    step = Measurement(
        "scaling",
        "net 64², loss + gradient",
        "fp32 cpu",
        [0.2, 0.1, 0.3],
        facts={"size": 64, "batch": 1},
        flops=1e9,
        moved=1e6,
        floor=0.05,
    )
    large = replace(step, facts={"size": 128, "batch": 1})
    peer = replace(step, route="torch fp32", ours=False, values=[0.4, 0.4, 0.4])
    kernel = replace(step, suite="kernels", task="moments relu1_1, 8 × 8", route="C++ kernel")
    memory = replace(step, suite="memory", unit="B", values=[2.0**30], floor=0.0)
    pool = replace(step, suite="throughput", facts={"workers": 1})
    loop = replace(step, suite="throughput", facts={})
    many = replace(memory, facts={"size": 8, "pictures": 500})
    return Findings(
        machine=MACHINE,
        rounds=3,
        peaks={"fp32": 1e11, "copy": 1e10},
        notes=["A note."],
        measurements=[step, peer, kernel, memory, pool, large, loop, many],
        rows=[method.compare(step, peer, 0.4), method.compare(memory, memory)],
        curves=[Curve("net 64²", "nst-fast fp32 cpu", [0.1, 0.2], [2.0, 1.0])],
        fits=[Fit("net, fp32 cpu", "pixels", 1.02, 0.01)],
        failures=[Failure("memory", "net 99²", "no memory")],
        seconds={"step": 1.5},
    )


# --------------------------------------------------------------------------------- the documents


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_agree_with_the_findings(document: Path) -> None:
    assert tables.filled(document, ROOT / "docs" / "img") == document.read_text(encoding="utf-8")


def test_a_changed_number_in_a_document_is_noticed(tmp_path: Path, found: Findings) -> None:
    (tmp_path / "found.json").write_text(found.to_json())
    document = tmp_path / "doc.md"
    document.write_text("a\n<!-- bench: headline from found.json -->\nold\n<!-- /bench -->\nz\n")
    tables.fill(document, tmp_path / "img")
    text = document.read_text()
    assert text.startswith("a\n<!-- bench: headline from found.json -->\n| task |")
    assert text.endswith("\n<!-- /bench -->\nz\n")
    assert "**0.5**" in text
    document.write_text(text.replace("**0.5**", "**0.4**"))
    assert tables.filled(document, tmp_path / "img") == text


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_plots_are_of_the_committed_findings(path: Path) -> None:
    recorded = data.read(path)
    assert path.stem == recorded.name
    for name in plots.available(recorded):
        plot = ROOT / "docs" / "img" / f"{recorded.name}-{name}.svg"
        assert hashlib.sha256(path.read_bytes()).hexdigest() in plot.read_text()


def test_there_are_committed_findings() -> None:
    assert RESULTS


# ------------------------------------------------------------------------------ tables and plots


def test_findings_survive_their_file(found: Findings, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    data.write(path, found.to_json())
    assert data.read(path) == found
    assert [item.name for item in tmp_path.iterdir()] == ["found.json"]
    assert [row["met"] for row in json.loads(path.read_text())["rows"]] == [False, None]
    assert found.name == "test-cpu-3-avx2-2cores"
    richer = MACHINE | {"bf16": ["avx512_bf16", "amx_bf16"]}
    assert replace(found, machine=richer).name == "test-cpu-3-amx-bf16-2cores"
    assert replace(found, machine=richer | {"gpu": "Test GPU"}).name == "test-gpu"


def test_a_row_says_what_it_missed_and_how_far_from_the_floor_it_is() -> None:
    row = Row("s", "t", "a", "b", 0.0021, 4.0, 0.5, 0.4, 0.6, target=0.45, share=0.251)
    cells = tables.cells(row)
    assert cells == [
        "t",
        "a",
        "2.1 ms",
        "b",
        "4 s",
        "**0.5**",
        "0.4 – 0.6",
        "25%",
        "≤ 0.45, missed",
    ]
    assert tables.cells(replace(row, target=0.5))[-1] == "≤ 0.5"
    assert tables.amount(3 * 2**20, "B") == "3 MiB"
    assert tables.amount(2e-6, "s") == "2 µs"


def test_blocks(found: Findings) -> None:
    assert tables.block("headline", found, "").count("\n| ") == 2
    assert "1.02 ± 0.01" in tables.block("scaling", found, "")
    assert "revision abc" in tables.block("machine", found, "")
    assert "fp32 100 GFLOP/s" in tables.block("machine", found, "")
    assert tables.block("step", found, "") == tables.NOTHING
    assert tables.block("losses", replace(found, rows=[]), "") == tables.NO_LOSSES
    assert "![loss](img/test-cpu-3-avx2-2cores-loss.svg)" in tables.block("plots", found, "img")
    with pytest.raises(BenchError, match="no table 'x'"):
        tables.block("x", found, "")


def test_a_few_numbers_for_a_reader_in_a_hurry(found: Findings) -> None:
    assert tables.block("numbers", found, "") == tables.NOTHING
    first, second = found.rows[0], replace(found.rows[0], task="another")
    found.rows[:] = [
        replace(row, suite=suite, task=f"{words} {row.task}", target=0.7)
        for suite, words in tables.NUMBERS["cpu"]
        for row in (first, second)
    ]
    text = tables.block("numbers", found, "")
    assert text.count("\n| ") == 1 + len(tables.NUMBERS["cpu"])
    assert "another" not in text
    assert text.endswith("`make bench` on Test CPU @ 3 (R) (no bfloat16), 2 threads.")


def test_seconds_by_the_thousand_have_no_exponent() -> None:
    assert [tables.amount(s, "s") for s in (1409.6, 12.34, 0.0123)] == [
        "1410 s",
        "12.3 s",
        "12.3 ms",
    ]


def test_where_we_lose_are_peers_that_win_and_targets_that_are_missed(found: Findings) -> None:
    ours, peer, *_ = found.measurements
    slow = replace(peer, values=[0.1, 0.05, 0.1])
    split = replace(ours, route="split", values=[0.1, 0.05, 0.1])
    found.measurements[1:2] = [slow, split]
    lost, missed = method.compare(ours, slow), method.compare(ours, replace(peer), 0.1)
    found.rows[:] = [method.compare(ours, peer, 0.5), lost, method.compare(ours, split), missed]
    assert tables.losses(found) == [lost, missed]
    assert tables.block("losses", found, "") == tables.table([lost, missed])


def test_what_failed_is_named_below_its_tables(found: Findings) -> None:
    found.failures[:] = [Failure("memory", "1024²", "no memory"), Failure("step", "", "no torch")]
    for name in ("headline", "memory"):
        assert "Not measured: memory, 1024²: no memory" in tables.block(name, found, "")
    assert tables.block("step", found, "") == "Not measured: step: no torch"
    assert "no torch" not in tables.block("memory", found, "")


def test_plots_carry_their_findings_and_no_background(found: Findings, tmp_path: Path) -> None:
    files = plots.draw(found, tmp_path)
    assert len(files) == len(plots.available(found)) == 5
    for file in files:
        text = file.read_text()
        ElementTree.fromstring(text)
        assert plots.digest(found) in text
        assert plotting.INK in text
        assert not re.search(r'id="patch_1">\s*<path[^>]*fill: #ffffff(?!.*opacity: 0)', text)
    first = {file: file.read_bytes() for file in files}
    plots.draw(found, tmp_path)
    assert {file: file.read_bytes() for file in files} == first


def test_nothing_is_drawn_of_what_was_not_measured(found: Findings, tmp_path: Path) -> None:
    assert plots.draw(replace(found, measurements=[], curves=[]), tmp_path) == []


# ----------------------------------------------------------------------------------- comparison


def slowed(found: Findings, factor: float) -> Findings:
    """As if our kernels took so much longer."""
    measured = [
        replace(m, values=[factor * v for v in m.values]) if m.ours else m
        for m in found.measurements
    ]
    return replace(found, measurements=measured)


def recorded() -> tuple[Findings, Findings]:
    first, second = (data.read(RECORDED / f"{name}.json") for name in ("first", "second"))
    return first, second


def test_two_runs_of_one_build_are_quiet() -> None:
    assert not [change for change in changes(*recorded()) if change.worse]


def test_a_slowed_build_is_caught() -> None:
    r"""In recorded runs; this records them anew, best on a quiet machine, at the top of a checkout.

    RUN="nst-fast bench kernels --sizes 256 --repeats 6 --threads 1 --markdown"
    RUNS=$PWD/tests/bench_runs
    .venv/bin/$RUN --json $RUNS/first.json
    .venv/bin/$RUN --json $RUNS/second.json --compare $RUNS/first.json
    git clone . /tmp/slower && cd /tmp/slower
    sed -E -i 's#^  kernels\(\).(moments|pull_back)\(f(.*);#  auto part = f; part.pixels /= 5;\n'\
'  kernels().\1(part\2;\n&#' csrc/bindings.cpp && git diff
    make .venv/.bench
    .venv/bin/$RUN --json $RUNS/slower.json --compare $RUNS/first.json
    """
    first, _ = recorded()
    found = changes(first, data.read(RECORDED / "slower.json"))
    caught = [change.task for change in found if change.worse]
    assert any("five VGG-19 taps" in task for task in caught)
    # The passes over a picture were left as they are.
    assert all("relu" in task or "five VGG-19 taps" in task for task in caught)


def noisy(seed: int, drift: float, slower: float, spells: bool) -> Findings:
    """Twelve tasks with a peer each; with ``spells`` the machine is at times half as fast."""
    rng = random.Random(seed)
    measured = []
    for task in range(12):
        speed = [drift * (1 + spells * rng.choice((0, 1))) for _ in range(7)]
        for route, middle in (("C++ kernel", slower), ("numpy", 2.0)):
            values = [middle * factor * (1 + 0.02 * rng.gauss(0, 1)) for factor in speed]
            group, ours = spells * (task + 1), route != "numpy"
            one = Measurement("kernels", f"t{task}", route, values, ours=ours, group=group)
            measured.append(one)
    return Findings(MACHINE, measurements=measured, peaks={"fp32": 1e11 / drift})


@pytest.mark.parametrize("spells", [False, True])
def test_what_slows_the_machine_is_not_ours(spells: bool) -> None:
    for seed in range(20):
        old = noisy(2 * seed, 1.0, 1.0, spells)
        same = changes(old, noisy(2 * seed + 1, 1.5, 1.0, spells))
        slower = changes(old, noisy(2 * seed + 1, 0.7, 1.2, spells))
        assert sum(change.worse for change in same) <= 1
        assert all(change.worse for change in slower)


def test_more_memory_is_noticed_whatever_the_times_did(found: Findings) -> None:
    step, _, _, memory, *_ = found.measurements
    old = replace(found, measurements=[step, replace(memory, route="ours")])
    values = [1.06 * memory.middle]
    new = replace(
        found,
        measurements=[
            replace(step, values=[0.02, 0.9, 5.0]),
            replace(memory, route="ours", values=values),
        ],
        peaks={},
    )
    time, space = changes(old, new)
    assert (time.worse, space.worse) == (False, True)
    assert space.ratio == pytest.approx(1.06)


def test_other_machines_and_other_tasks_are_not_compared(found: Findings) -> None:
    with pytest.raises(BenchError, match="one machine"):
        changes(found, replace(found, machine=MACHINE | {"cpu": "Another"}))
    with pytest.raises(BenchError, match="one machine"):
        changes(found, replace(found, machine=MACHINE | {"bf16": ["avx512_bf16"]}))
    with pytest.raises(BenchError, match="nothing in common"):
        changes(found, replace(found, measurements=[]))


# ----------------------------------------------------------------------------------- the command


@pytest.mark.usefixtures("quick")
def test_the_command_measures_and_writes(command: Command, tmp_path: Path) -> None:
    words = ["kernels", "--sizes", "32", "--repeats", "2", "--threads", "1", "--json", tmp_path]
    code, out, err = command(*words, "--plot", tmp_path, "--markdown")
    assert code == 0, err
    (path,) = tmp_path.glob("*.json")
    assert path.stem == data.read(path).name
    assert (tmp_path / f"{path.stem}-roofline.svg").is_file()
    assert "| moments relu1_1, 64 × 1024 | C++ kernel |" in out
    assert re.search(r"--- kernels\n(.*\n)*--- kernels: \d+ s, [\d.]+ min so far", err)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [BenchError("no torch;\nget it"), MemoryError(), ValueError("a")])
def test_a_suite_that_fails_takes_no_other_with_it(
    error: Exception, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"

    def failing(bench: Bench) -> None:
        kept = data.read(path)  # written after the first suite
        assert kept.rows
        assert list(kept.seconds) == ["kernels"]
        bench.keep(Measurement("memory", "task", "ours", [1.0], unit="B"))
        raise error

    def last(bench: Bench) -> None:
        bench.keep(Measurement("scaling", "task", "ours", [1.0]))

    monkeypatch.setattr(suites, "RUN", {**suites.RUN, "memory": failing, "scaling": last})
    words = ["kernels", "memory", "scaling", "--sizes", "32", "--repeats", "1", "--threads", "1"]
    code, out, err = command(*words, "--json", path, "--markdown")
    found = data.read(path)
    assert code == 1
    assert [one.suite for one in found.measurements[-2:]] == ["memory", "scaling"]
    assert list(found.seconds) == ["kernels", "memory", "scaling"]
    (failure,) = found.failures
    assert failure.reason == {"BenchError": "no torch; get it", "ValueError": "ValueError: a"}.get(
        type(error).__name__, type(error).__name__
    )
    assert failure.line in out
    assert err.endswith(f"\nerror: {failure.line}\n")


@pytest.mark.usefixtures("quick")
def test_an_interrupted_run_says_what_it_saved(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(bench: Bench) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suites, "RUN", {**suites.RUN, "memory": interrupted})
    code, _, err = command("memory", "--threads", "1", "--repeats", "1")
    assert code == 130
    assert err.endswith("error: interrupted; nothing was saved\n")
    words = ["kernels", "memory", "--sizes", "32", "--threads", "1", "--repeats", "1"]
    code, _, err = command(*words, "--json", tmp_path)
    assert code == 130
    assert err.endswith(f"error: interrupted; the suites that ended are in {tmp_path}\n")
    assert data.read(next(tmp_path.glob("*.json"))).rows


@pytest.mark.usefixtures("quick")
def test_another_machine_is_refused_before_anything_is_measured(
    command: Command, tmp_path: Path, found: Findings
) -> None:
    old = tmp_path / "old.json"
    old.write_text(replace(found, machine=MACHINE | {"cpu": "Another"}).to_json())
    code, out, err = command("kernels", "--compare", old, "--json", tmp_path)
    assert (code, out) == (1, "")
    assert "--compare: measured with cpu Another" in err
    assert list(tmp_path.glob("*.json")) == [old]


def test_the_command_fails_on_a_regression(command: Command, tmp_path: Path) -> None:
    _, second = recorded()
    slow = tmp_path / "slow.json"
    slow.write_text(slowed(second, 2.0).to_json())  # beyond the recorded noise
    code, out, err = command("--from", slow, "--compare", RECORDED / "first.json")
    assert code == 1
    assert "slower: " in out
    assert re.fullmatch(r"error: \d+ measurements became slower beyond the noise\n", err)
    fine = command("--from", RECORDED / "second.json", "--compare", RECORDED / "first.json")
    assert fine[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps"], "no suite 'steps'"),
        (["--sizes", "big"], "--sizes: whole numbers"),
        (["--sizes", "100"], "--sizes: multiples of 16"),
        (["--precisions", "fp8"], "--precisions must be one of"),
        (["--json", "none/found.json"], "no folder none"),
        (["--plot", "none"], "--plot: there is no folder none"),
        (["--fill", "none.md"], "--fill: there is no file none.md"),
        (["--from", "none.json"], "none.json: No such file"),
        (["--compare", "none.json"], "none.json: No such file"),
        (["--from", str(ROOT / "README.md")], "not a file that nst-fast bench --json wrote"),
        (["--from", str(RESULTS[0]), "--fill", str(ROOT / "LICENSE")], "no block"),
        (["kernels", "--peers", "."], "holds no peers"),
    ],
)
def test_mistakes_are_one_line(
    command: Command, words: list[str], message: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*words)
    assert code in (1, 2)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert out == ""
    assert not list(tmp_path.iterdir())
