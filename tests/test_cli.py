"""The command as a user meets it: results on stdout, and what an interrupt leaves."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path

import commanding
import pytest
import typer
from commanding import QUICK, STYLIZE, assert_fails
from PIL import Image

import nst_fast
from nst_fast import encoders, images, limits
from nst_fast.cli.app import app
from nst_fast.config import DEFAULT_ENCODER, StyleSettings
from nst_fast.stylizer import Run, Stylizer

pictures = commanding.pictures
command = commanding.command


# -------------------------------------------------------------------------------------- what works


def test_stylize_writes_the_picture_and_one_line(pictures, command):
    code, out, err = command(*STYLIZE)
    assert code == 0
    assert err == ""
    assert out.startswith("out.png: 48×34, 3 steps in ")
    assert "style" in out
    assert out.count("\n") == 1
    assert images.load("out.png").size == (48, 34)
    assert sorted(os.listdir()) == ["other.jpg", "out.png", "paint.jpg", "photo.jpg"]


def test_quiet_prints_nothing(pictures, command):
    assert command(*STYLIZE, "--quiet") == (0, "", "")
    assert Path("out.png").exists()


def test_json_is_all_there_is_on_stdout(pictures, command):
    code, out, err = command(*STYLIZE, "--json", "--seed", "5")
    assert code == 0
    assert err == ""
    summary = json.loads(out)
    assert summary["output"] == "out.png"
    assert summary["finished"] is True
    assert summary["size"] == [48, 34]
    assert summary["settings"]["seed"] == 5
    assert len(summary["losses"]) == 3
    assert summary["environment"]["encoder"] == DEFAULT_ENCODER


def test_defaults_are_those_of_the_settings(pictures, command):
    """Options left out give StyleSettings(), so that no default is written twice."""
    summary = json.loads(command(*STYLIZE, "--json")[1])
    expected = StyleSettings(size=48, steps=3).as_dict()
    assert summary["settings"] == json.loads(json.dumps(expected))


def test_every_setting_is_an_option_that_reaches_the_engine(pictures, command):
    options = {
        "size": ("40", 40),
        "steps": ("2", 2),
        "until": ("0.01", 0.01),
        "max_seconds": ("900", 900.0),
        "colour": ("linear", "linear"),
        "init_noise": ("0.1", 0.1),
        "transfer_share": ("0.3", 0.3),
        "style_weight": ("2.5", 2.5),
        "content_weight": ("0.5", 0.5),
        "tv_weight": ("0", 0.0),
        "range_weight": ("3", 3.0),
        "style_layers": ("relu1_1=2,relu3_1", {"relu1_1": 2.0, "relu3_1": 1.0}),
        "content_layers": ("relu2_2", {"relu2_2": 1.0}),
        "style_loss": ("whitened", "whitened"),
        "style_space": ("encoder", "encoder"),
        "shift": ("0.5", 0.5),
        "normalization": ("gram", "gram"),
        "smoothing": ("0.2", 0.2),
        "margin": ("5", 5),
        "style_blend": ("1,3", [1.0, 3.0]),
        "style_scale": ("1.5,1", [1.5, 1.0]),
        "style_mask": (None, []),  # it is for those without regions; see below
        "style_regions": ("regions.png", "regions.png"),
        "content_mask": ("kept.png", "kept.png"),
        "scales": ("1", 1),
        "init": ("other.jpg", "other.jpg"),
        "optimizer": ("adam", "adam"),
        "learning_rate": ("0.01", 0.01),
        "history": ("4", 4),
        "average": ("2", 2),
        "seed": ("9", 9),
    }
    assert set(options) == {item.name for item in fields(StyleSettings)}
    halves = Image.new("L", (40, 28))
    halves.paste(200, (0, 0, 20, 28))
    for name in ("regions.png", "kept.png"):
        halves.save(name)
    words = ["stylize", "photo.jpg", "paint.jpg", "other.jpg", "-o", "out.webp", "--json"]
    for name, (text, _) in options.items():
        words += [] if text is None else [f"--{name.replace('_', '-')}", text]
    code, out, _ = command(*words, "--threads", 1, "--provider", "cpu", "--plan", "split")
    assert code == 0
    summary = json.loads(out)
    assert summary["settings"] == {name: value for name, (_, value) in options.items()}
    environment = summary["environment"]
    assert (environment["threads"], environment["provider"], environment["plan"]) == (
        1,
        "cpu",
        "split",
    )


def test_masks_are_given_one_by_one(pictures, command):
    for name, place in (("sky.png", 0), ("sea.png", 20)):
        mask = Image.new("L", (40, 28))
        mask.paste(255, (place, 0, place + 20, 28))
        mask.save(name)
    words = [*STYLIZE[:3], "other.jpg", *STYLIZE[3:], "--provider", "cpu", "--json"]
    code, out, _ = command(*words, "--style-mask", "sky.png", "--style-mask", "sea.png")
    assert code == 0
    summary = json.loads(out)
    assert summary["settings"]["style_mask"] == ["sky.png", "sea.png"]
    assert {"style/relu1_1/1", "style/relu1_1/2"} < set(summary["terms"])


def test_a_place_that_is_too_small_is_told_in_one_line(pictures, command):
    mask = Image.new("L", (80, 56))
    mask.paste(255, (0, 0, 20, 56))
    mask.save("edge.png")
    words = [*STYLIZE, "--provider", "cpu", "--json"]
    code, out, err = command(*words, "--style-mask", "edge.png")
    assert code == 0
    assert err == (
        "at 48×34 pixels the place of the 1st style is too small for relu5_1: left out there\n"
    )
    assert json.loads(out)["notes"] == [err.strip()]


def test_size_none_keeps_the_contents_own(pictures, command):
    code, *_ = command(
        "stylize", "photo.jpg", "paint.jpg", "-o", "o.png", "--size", "none", *QUICK[2:]
    )
    assert code == 0
    assert images.load("o.png").size == (80, 56)


def test_help_names_every_setting_and_its_default(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = command("stylize", "--help")
    assert code == 0
    for item in fields(StyleSettings):
        assert f"--{item.name.replace('_', '-')} " in out
    assert f"[default: {StyleSettings().steps}]" in out
    assert "[default: --no-sidecar]" in out
    assert "total variation" in out  # a description, from the docstring of StyleSettings


COMMANDS = ("stylize", "replay", "batch", "video", "info", "bench")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_whole_sentences(name):
    made = typer.main.get_command(app)
    assert set(COMMANDS) | {"models"} == set(made.commands)
    for parameter in made.commands[name].params:
        text = (parameter.help or "").partition("\n")[0]
        assert re.fullmatch(r"\S+( \S+){2,}[.]", text), (parameter.name, text)
        assert text[0].isupper() or text.startswith("nst-fast"), (parameter.name, text)


def test_paragraphs_of_help_fill_the_terminal(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = command("stylize", "--help")
    assert "with --save-every the state to go on from as well" in out


def test_the_shell_completes(command, monkeypatch, capsys):
    """Values that a setting may have, too."""
    for words, expected in (("sty", "stylize"), ("stylize --colour ", "luminance")):
        monkeypatch.setenv("_NST_FAST_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"nst-fast {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
        with pytest.raises(SystemExit, match="0"):
            command()
        assert expected in capsys.readouterr().out.split()


def test_no_arguments_give_help(command):
    code, out, err = command()
    assert code == 0
    assert "stylize" in out
    assert err == ""


def test_version(command):
    assert command("--version") == (0, f"nst-fast {nst_fast.__version__}\n", "")


def test_info(command):
    code, out, _ = command("info", "--json")
    assert code == 0
    facts = json.loads(out)
    assert set(facts) == {"versions", "providers", "auto", "cpu", "gpus", "encoders"}
    assert {"nst-fast", "python", "numpy", "onnxruntime"} <= set(facts["versions"])
    assert facts["providers"]["cpu"] == ["fp32"]
    assert facts["encoders"][DEFAULT_ENCODER].startswith("shipped: ")
    code, out, _ = command("info")
    assert code == 0
    assert f"model: {facts['cpu']['model']}" in out


def test_info_tells_the_memory_that_limits_leave():
    words = f"ulimit -v 3000000; exec {shlex.quote(sys.executable)} -m nst_fast info --json"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=True)
    found = limits.parse_memory(json.loads(done.stdout)["cpu"]["memory"])
    assert 0.1e9 < found < 3.1e9


def test_models_list_path_verify(command):
    code, out, _ = command("models", "list")
    assert code == 0
    assert DEFAULT_ENCODER in out
    assert "vgg19 " in out
    code, out, _ = command("models", "path", DEFAULT_ENCODER)
    assert code == 0
    assert Path(out.strip(), "manifest.json").is_file()
    for words in (["models", "verify"], ["models", "verify", DEFAULT_ENCODER]):
        code, out, _ = command(*words)
        assert code == 0
        assert f"{DEFAULT_ENCODER}: " in out


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


def test_models_get_downloads_builds_and_installs(tmp_path, pictures, command, monkeypatch):
    """With a server of our own and random weights of a small VGG."""
    vgg = pytest.importorskip("nst_fast.export.vgg")
    from safetensors.torch import save_file

    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path / "cache"))
    spec = vgg.VggSpec(blocks=((8, 8), (8, 8)))
    site, module = tmp_path / "site", vgg.Vgg(spec)
    site.mkdir()
    arrays = {
        f"{layer.conv}.{part}": getattr(module.convs[layer.conv], part).detach().contiguous()
        for layer in spec.layers()
        for part in ("weight", "bias")
    }
    save_file(arrays, site / "weights")
    digest = hashlib.sha256((site / "weights").read_bytes()).hexdigest()
    size = (site / "weights").stat().st_size
    file = (site / "weights").rename(site / f"mini-{digest[:8]}.safetensors")
    monkeypatch.setitem(vgg.ARCHITECTURES, "mini", spec)
    handler = functools.partial(SilentHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/{file.name}"
        for module_ in (encoders, encoders.checkpoints):
            monkeypatch.setattr(
                module_, "CHECKPOINTS", {"mini": encoders.Checkpoint(url, digest, size, "", "MIT")}
            )
        code, out, err = command("models", "get", "mini", "--pooling", "max")
        server.shutdown()
    assert (code, err) == (0, "")
    pack = encoders.load(out.strip())
    assert (pack.name, pack.pooling, pack.source) == ("mini", "max", url)
    layers = ["--style-layers", "relu1_1,relu2_1", "--content-layers", "relu2_2"]
    assert command(*STYLIZE, "--encoder", "mini", *layers)[0] == 0


def test_python_m_runs_the_same_command(pictures):
    words = [sys.executable, "-m", "nst_fast", "models", "path", "no-such"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown encoder 'no-such'")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


# -------------------------------------------------------------------------------------- interrupts


def interrupt_after(steps: int, monkeypatch) -> None:
    """Send this process a real SIGINT when so many steps are done."""
    genuine = Run.__iter__

    def iterate(self):
        for report in genuine(self):
            if report.step == steps:
                signal.raise_signal(signal.SIGINT)
            yield report

    monkeypatch.setattr(Run, "__iter__", iterate)


def test_interrupt_saves_the_best_picture_so_far(pictures, command, monkeypatch):
    interrupt_after(4, monkeypatch)
    code, out, err = command(*STYLIZE, "--steps", "50", "--json")
    assert code == 130
    assert err == "interrupted after step 4 of 50; saved the best picture so far\n"
    summary = json.loads(out)
    assert summary["finished"] is False
    assert summary["steps"] == 4
    assert images.load("out.png").size == (48, 34)
    assert sorted(os.listdir()) == ["other.jpg", "out.png", "paint.jpg", "photo.jpg"]


def test_interrupt_before_the_first_step_saves_nothing(pictures, command, monkeypatch):
    def start(*_args: object, **_options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Stylizer, "start", start)
    assert_fails(command, STYLIZE, 130, "interrupted; nothing was saved")


def test_interrupt_while_saving_leaves_nothing(pictures, command, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: signal.raise_signal(signal.SIGINT))
    assert_fails(command, STYLIZE, 130, "interrupted; nothing was saved")


def test_a_second_interrupt_stops_at_once(pictures, command, monkeypatch):
    """As if Ctrl-C came twice within a step."""
    genuine = Run.__iter__

    def iterate(self):
        for report in genuine(self):
            if report.step == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            yield report

    monkeypatch.setattr(Run, "__iter__", iterate)
    before = signal.getsignal(signal.SIGINT)
    assert_fails(command, STYLIZE, 130, "interrupted; nothing was saved")
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_a_terminal(pictures):
    """The whole program: a progress bar on the terminal, a signal from outside."""
    words = [sys.executable, "-m", "nst_fast", *STYLIZE, "--steps", "1000000"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"(style " not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        while b"interrupted after step" not in shown:
            shown += os.read(ours, 4096)
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 130
    assert b"Traceback" not in shown
    assert b"/1000000" in shown
    assert out.startswith(b"out.png: ")
    assert images.load("out.png").size == (48, 34)


def test_a_preset_gives_way_to_what_is_typed(pictures, command):
    """Presets change defaults; an option that is typed wins, even where it is the default's."""
    words = ["stylize", "photo.jpg", "paint.jpg", "-o", "out.png", "--json", "--size", "32"]
    for more, steps in (
        ([], 96),
        (["--preset", "draft"], 36),
        (["--preset", "draft", "--steps", "96"], 96),
    ):
        code, out, _ = command(*words, *more)
        assert code == 0
        assert json.loads(out)["settings"]["steps"] == steps
