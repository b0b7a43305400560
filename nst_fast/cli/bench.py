"""``nst-fast bench``: measure, report, compare with an earlier run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from rich.table import Table

from nst_fast.cli.console import FAILED, INTERRUPTED, fail, print_table
from nst_fast.config import PrecisionName, ProviderName, check_choice
from nst_fast.errors import BenchError, SettingsError
from nst_fast.host import usable_cores

if TYPE_CHECKING:
    from nst_fast.bench.findings import Findings

EXAMPLES = """Examples:

nst-fast bench step --encoders vgg19-lite --sizes 512

nst-fast bench --json results/ --compare results/before.json"""


def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITES…",
            help="What to measure: kernels, step, quality, throughput, memory or scaling; "
            "by default all.",
        ),
    ] = None,
    *,
    sizes: Annotated[
        str,
        typer.Option(
            metavar="PIXELS,…", help="The sides of the pictures; by default each suite's."
        ),
    ] = "",
    encoders: Annotated[
        str, typer.Option(metavar="NAME,…", help="The encoders; by default each suite's.")
    ] = "",
    providers: Annotated[
        str, typer.Option(metavar="NAME,…", help="The providers that nst-fast computes with.")
    ] = "auto",
    device: Annotated[
        Literal["cpu", "cuda"],
        typer.Option(
            metavar="cpu|cuda",
            help="What computes; for cuda there are the suites kernels and step.",
        ),
    ] = "cpu",
    precisions: Annotated[
        str, typer.Option(metavar="NAME,…", help="The precisions that nst-fast computes in.")
    ] = "fp32,auto",
    repeats: Annotated[
        int, typer.Option(metavar="N", help="How many interleaved rounds there are.")
    ] = 7,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="How many threads to use; by default every usable core."),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(metavar="N,…", help="How many pictures at once; by default each suite's."),
    ] = "",
    peers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder of the peers; by default bench/peers of the checkout."
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Who judges pictures, teacher.safetensors; by default the encoder that ships.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Report these findings, and measure nothing."),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Write the findings to a file, or into a folder as a file named by machine.",
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the plots there.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD.json",
            help="Fail where nst-fast became slower than this by more than noise.",
        ),
    ] = None,
    document: Annotated[
        list[Path] | None,
        typer.Option(
            "--fill", metavar="FILE.md", help="Write the generated tables of this file anew."
        ),
    ] = None,
) -> None:
    """Measure nst-fast beside its peers and the floor of this machine; see docs/benchmarks.md."""
    with _needs_extra():
        from nst_fast.bench import findings as data
    _check_outputs(json, plot, document or [])
    old = None if compare is None else data.read(compare)
    if source is None:
        options = {
            "suites": tuple(suites or data.SUITES_ON[device]),
            "sizes": _numbers("--sizes", sizes),
            "encoders": _words(encoders),
            "providers": _choices("--providers", providers, get_args(ProviderName)),
            "precisions": _choices("--precisions", precisions, get_args(PrecisionName)),
            "batches": _numbers("--batch", batch),
            "repeats": repeats,
            "threads": usable_cores() if threads is None else threads,
            "peers": peers,
            "judge": judge,
            "device": device,
        }
        found = _measure(options, json, old)
    else:
        found = data.read(source)
        _save(found, json)
    _report(found, markdown, plot, document or [])
    wrong = [failure.line for failure in found.failures] if source is None else []
    wrong += [] if old is None else _compare(old, found)
    if wrong:
        raise typer.Exit(fail("; ".join(wrong), FAILED))


@contextmanager
def _needs_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise BenchError(
            f'benchmarks need {error.name}; run: pip install "nst-fast[bench]"'
        ) from None


def _check_outputs(json: Path | None, plot: Path | None, documents: list[Path]) -> None:
    """Refuse before minutes of measuring what could not be written after them."""
    if json is not None and not json.parent.is_dir():
        raise SettingsError(f"--json: there is no folder {json.parent}")
    if plot is not None and not plot.is_dir():
        raise SettingsError(f"--plot: there is no folder {plot}")
    for document in documents:
        if not document.is_file():
            raise SettingsError(f"--fill: there is no file {document}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise SettingsError(f"{option}: whole numbers like 1,2, not {text!r}") from None


def _choices(option: str, text: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    for word in _words(text):
        check_choice(option, word, choices)
    return _words(text)


def _measure(options: dict[str, Any], json: Path | None, old: Findings | None) -> Findings:
    """Run the suites; the findings are saved after each."""
    with _needs_extra():
        from nst_fast.bench.regressions import same_machine
        from nst_fast.bench.session import Options, opened
        from nst_fast.bench.suites import run_all

    def say(line: str) -> None:
        typer.echo(line, err=True)

    chosen = Options(**options)
    try:
        with opened(chosen, shlex.join(["nst-fast", *sys.argv[1:]]), say) as run:
            if old is not None:
                same_machine(old, run.findings)
            run_all(run, lambda: _save(run.findings, json))
    except KeyboardInterrupt:
        saved = f"the suites that ended are in {json}" if json else "nothing was saved"
        raise typer.Exit(fail(f"interrupted; {saved}", INTERRUPTED)) from None
    return run.findings


def _save(found: Findings, json: Path | None) -> None:
    from nst_fast.bench import findings as data

    if json is not None:
        data.write(json / f"{found.name}.json" if json.is_dir() else json, found.to_json())


def _report(found: Findings, markdown: bool, plot: Path | None, documents: list[Path]) -> None:
    from nst_fast.bench import plots, tables

    for path in plots.draw(found, plot) if plot is not None else []:
        typer.echo(path, err=True)
    for path in documents:
        tables.fill(path, plot or Path("docs/img"))
    if markdown:
        parts = [tables.table(found.rows), tables.block("machine", found, "")]
        typer.echo("\n\n".join([*parts, *(failure.line for failure in found.failures)]))
    else:
        table = Table(*(column.replace("of the floor", "floor") for column in tables.COLUMNS))
        for row in found.rows:
            table.add_row(*(cell.replace("*", "") for cell in tables.cells(row)))
        print_table(table)


def _compare(old: Findings, new: Findings) -> list[str]:
    """Print what changed beyond the noise; what is wrong where something became slower."""
    from nst_fast.bench.regressions import changes

    found = changes(old, new)
    for change in found:
        if change.worse or change.better:
            word = "slower" if change.worse else "faster"
            typer.echo(
                f"{word}: {change.task}, {change.route}: {change.ratio - 1:+.1%}, "
                f"noise {change.band:.1%}"
            )
    worse = sum(change.worse for change in found)
    widest = max(change.band for change in found)
    typer.echo(f"{len(found)} compared, {worse} slower beyond the noise (at most {widest:.1%})")
    return [f"{worse} measurements became slower beyond the noise"] if worse else []
