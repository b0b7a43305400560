"""The manual: its commands and its Python run, its options exist, its links lead somewhere.

A fenced block ``sh`` or ``python`` of README.md or docs/*.md runs as it stands, block after block,
in a folder of the document's own that has ``examples/`` and the pictures of ``FOLDER``. Only what
takes time is less: whatever the settings say, pictures have at most ``SIZE`` pixels a side and
``STEPS`` steps, a batch has one worker, and what chooses the provider itself gets the CPU's
(``reduced``). A block that cannot run here has ``<!-- not run: REASON -->`` in the line before it:
of its commands only the options, extras and targets have to exist, and its Python has to compile. A
``csv`` block is the file list.csv of the commands after it. Indented blocks are what a program
prints, never commands.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import nst_fast
from nst_fast import EngineOptions, OutputOptions, StyleSettings, batch, cli, video
from nst_fast.batch.machine import Layout

ROOT = Path(__file__).parents[1]
MANUAL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [
    *MANUAL,
    *(ROOT / name for name in ("CONTRIBUTING.md", "csrc/README.md", "examples/README.md")),
]
SIZE, STEPS = 64, 2
FOLDER = {  # besides examples/
    "photo.jpg": "content_canal.jpg",
    "painting.jpg": "style_swirls.jpg",
    "oil.jpg": "style_swirls.jpg",
    "ink.jpg": "style_woodcut.jpg",
    "photos/a.jpg": "content_lake.jpg",
    "photos/b.jpg": "content_canal.jpg",
    "shots/1.jpg": "content_lake.jpg",
    "shots/2.jpg": "content_canal.jpg",
    "in/0.jpg": "content_still_life.jpg",
}
MOST_PICTURES = 3_800_000  # bytes of docs/img
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\S*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^    (nst-fast|pip|python|make|ray|\.venv/bin/\S+) ", re.MULTILINE)
documents = pytest.mark.parametrize("document", MANUAL, ids=lambda path: path.name)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its first line, and why it does not run."""

    language: str
    text: str
    line: int
    reason: str | None

    def commands(self) -> list[list[str]]:
        """Its words, a list for each command; comments are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["text"], text[: m.start("text")].count("\n") + 1, m["reason"])
        for m in BLOCK.finditer(text)
    ]


def test_every_fence_is_read() -> None:
    for document in MANUAL:
        fences = re.findall(r"^```", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(document)), document.name


# ------------------------------------------------------------------------------- what is run


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture small and hardly optimised; values are checked as they were given before."""
    check = StyleSettings.__post_init__

    def shrink(self: StyleSettings) -> None:
        check(self)
        object.__setattr__(self, "size", min(self.size or SIZE, SIZE))
        object.__setattr__(self, "steps", min(self.steps, STEPS))

    monkeypatch.setattr(StyleSettings, "__post_init__", shrink)
    check_engine = EngineOptions.__post_init__

    def on_cpu(self: EngineOptions) -> None:
        check_engine(self)
        if (self.provider, self.precision, self.device) == ("auto", "auto", "auto"):
            object.__setattr__(self, "provider", "cpu")  # whose sessions open fastest

    monkeypatch.setattr(EngineOptions, "__post_init__", on_cpu)
    choose = Layout.choose
    monkeypatch.setattr(Layout, "choose", lambda *asked: replace(choose(*asked), workers=1))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name, source in FOLDER.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with Image.open(ROOT / "examples" / source) as picture:
            picture.resize((96, 72)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@documents
def test_what_the_manual_shows_runs(
    document: Path, folder: Path, reduced: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(document):
        if block.reason is None and block.language == "sh":
            for words in block.commands():
                run(words, f"{document.name}, line {block.line}: {shlex.join(words)}", capsys)
        elif block.language == "csv":
            Path("list.csv").write_text(block.text, encoding="utf-8")
        elif block.reason is None and block.language == "python":
            lines = "\n" * block.line + block.text  # a traceback then has the document's lines
            exec(compile(lines, str(document), "exec"), names)


def run(words: list[str], where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command: ours in this process, which has the reduced settings."""
    if words[0] == "nst-fast":
        code = cli.main(words[1:])
        assert code == 0, f"{where}\nexit code {code}\n{capsys.readouterr().err}"
    else:
        assert words[0] == "python", f"{where}\nruns nst-fast and python alone; or mark it not run"
        subprocess.run([sys.executable, *words[1:]], check=True)


# --------------------------------------------------------------------- what is not run, but named


@documents
def test_what_is_not_run_exists(document: Path) -> None:
    for block in blocks(document):
        assert block.language in ("sh", "python", "csv", "json", "yaml", "toml", "text"), block
        if block.language == "python":
            compile(block.text, str(document), "exec")
        for words in block.commands() if block.language == "sh" else ():
            where = f"{document.name}, line {block.line}: {shlex.join(words)}"
            unknown = unknown_in(words)
            assert not unknown, f"{where}\nthere is no {', '.join(unknown)}"


@documents
def test_commands_are_in_fenced_blocks(document: Path) -> None:
    found = COMMAND.findall(BLOCK.sub("", document.read_text(encoding="utf-8")))
    assert not found, f"{document.name}: put {found[0]} … into a ```sh block, so that it is tested"


def unknown_in(words: list[str]) -> list[str]:
    """Options, files, extras and targets of a command that do not exist."""
    words = [Path(words[0]).name, *words[1:]]
    if words[0] == "nst-fast":
        sub = tuple(words[1 : 3 if words[1] == "models" else 2])
        return [word for word in options_in(words) if word not in options_of(sub)]
    if words[0] == "python":
        script = ROOT / words[1]
        if not script.exists():
            return [words[1]]
        source = script.read_text(encoding="utf-8")
        own = words[: words.index("--")] if "--" in words else words
        return [word for word in options_in(own) if f'"{word}"' not in source]
    if words[0] == "pip":
        extras = [
            name for word in words for name in ",".join(re.findall(r"\[(.*)\]", word)).split(",")
        ]
        return [f"extra {name}" for name in extras if name and name not in project_extras()]
    if words[0] == "make":
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        return [name for name in targets if name.split("/.")[-1] not in re.findall(r"\w+", text)]
    return []


def options_in(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--\w", word)]


@functools.cache
def options_of(command: tuple[str, ...]) -> frozenset[str]:
    """Every option in the help of a command."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.setenv("COLUMNS", "200")
        assert cli.main([*command, "--help"]) == 0
    return frozenset(re.findall(r"--[a-z][a-z-]*", told.getvalue()))


@functools.cache
def project_extras() -> frozenset[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return frozenset(project["optional-dependencies"])


@documents
def test_options_named_in_the_text_exist(document: Path) -> None:
    """Every `--option` between backticks: of a command, or of a script here."""
    commands = [
        *(("stylize",), ("replay",), ("batch",), ("video",), ("bench",), ("info",)),
        *(("models", "get"), ()),
    ]
    known = frozenset().union(*map(options_of, commands))
    scripts = "".join(
        path.read_text(encoding="utf-8")
        for part in ("tools", "bench")
        for path in (ROOT / part).glob("*.py")
    )
    named = re.findall(r"`(--[a-z][a-z-]*)", document.read_text(encoding="utf-8"))
    unknown = {name for name in named if name not in known and f'"{name}"' not in scripts}
    assert not unknown


# ----------------------------------------------------------------------------- links and pages


@pytest.mark.parametrize("document", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = BLOCK.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path or target.startswith("mailto:"):
            continue
        page = document.parent / path if path else document
        assert page.exists(), f"{document.name}: {target}"
        if document.parent.name == "docs" and path:
            inside = page.resolve().is_relative_to(ROOT / "docs")
            assert inside, f"{target}: the site has docs/ alone; name the file in backticks"
        if anchor:
            assert anchor in anchors(page), f"{document.name}: {target}"


def anchors(page: Path) -> Iterator[str]:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"- ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.name for path in MANUAL[1:]]


def test_the_readme_is_short() -> None:
    assert len(MANUAL[0].read_text(encoding="utf-8").splitlines()) <= 100


def test_every_public_name_is_in_the_reference() -> None:
    """In docs/api.md, which becomes a page by ``make docs``; and every name there exists."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    public = {f"nst_fast.{name}" for name in nst_fast.__all__ if name != "__version__"}
    public |= {f"nst_fast.batch.{name}" for name in batch.__all__}
    public |= {f"nst_fast.video.{name}" for name in video.__all__}
    assert sorted(listed) == sorted(public)
    for name in batch.__all__:
        assert inspect.getdoc(getattr(batch, name)), name


# ------------------------------------------------------------------------- the guide's pictures


@pytest.fixture(scope="module")
def guide() -> ModuleType:
    path = ROOT / "tools" / "guide.py"
    spec = importlib.util.spec_from_file_location("guide", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_guide_tells_the_defaults_of_today(guide: ModuleType) -> None:
    text = guide.GUIDE.read_text(encoding="utf-8")
    assert guide.filled(text) == text, "run: make guide"
    shown = {found[1] for found in guide.BLOCK.findall(text)}
    assert shown == {
        "settings",
        "engine",
        "output",
        "presets",
        *(sheet.setting for sheet in guide.SHEETS),
    }
    for kind in (StyleSettings, EngineOptions, OutputOptions):
        for field in fields(kind):
            assert f"| `--{field.name.replace('_', '-')}` |" in text


def test_the_guides_pictures_are_there_and_light(guide: ModuleType) -> None:
    drawn = {path.stem: path.stat().st_size for path in guide.PICTURES.glob("*.jpg")}
    assert set(drawn) == {sheet.setting for sheet in guide.SHEETS}
    assert max(drawn.values()) <= guide.MAX_BYTES
    everything = (ROOT / "docs" / "img").rglob("*.*")
    assert sum(path.stat().st_size for path in everything) <= MOST_PICTURES


def test_a_sheet_can_be_drawn(guide: ModuleType, reduced: None) -> None:
    studio = guide.Studio()
    sheet = next(sheet for sheet in guide.SHEETS if sheet.setting == "smoothing")
    drawn = guide.draw(sheet, studio)
    assert drawn.width == len(sheet.cases()) * (sheet.tile + guide.GAP) - guide.GAP
    assert "0.16 (default)" in [label for label, _ in sheet.cases()]


def test_memory_is_what_was_measured() -> None:
    """The table of docs/platforms.md against the findings that docs/benchmarks.md shows."""
    (path,) = (ROOT / "bench" / "results").glob("*.json")
    peaks = {
        row["task"]: f"{row['ours_value'] / 2**20:.0f} MiB"
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        if row["task"].endswith(", peak memory")
    }
    text = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
    for encoder in ("vgg19-lite", "vgg19"):
        small, large = (peaks[f"{encoder} {side}², peak memory"] for side in (512, 1024))
        assert f"| `{encoder}` | {small} | {large} |" in text
