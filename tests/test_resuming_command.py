"""``nst-fast stylize --save-every`` and ``--resume``: after a kill, after Ctrl-C, and refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commanding
from commanding import QUICK, STYLIZE, assert_fails

from nst_fast import run as run_module
from nst_fast.state import State

pictures = commanding.pictures
command = commanding.command

ENGINE = ["--provider", "cpu", "--threads", "1"]
SHORT = [*STYLIZE[:5], *QUICK[:2], *ENGINE]
LONG = [*STYLIZE[:5], "--size", "64", "--steps", "60", *ENGINE]


def test_killed_twice_and_gone_on_with(pictures, command):
    """SIGKILL at any step; what comes out is the file of the run that was left alone."""
    assert command(*LONG)[0] == 0
    expected = Path("out.png").read_bytes()
    Path("out.png").unlink()
    state_file = Path("out.png.state")
    words = [sys.executable, "-m", "nst_fast", *map(str, LONG), "--save-every", "1"]
    for resume in ([], ["--resume", str(state_file)]):
        before = state_file.read_bytes() if state_file.exists() else b""
        with subprocess.Popen([*words, *resume]) as process:
            while process.poll() is None and (
                not state_file.exists() or state_file.read_bytes() == before
            ):
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert sum(State.load(str(state_file)).course.taken) < 60
    assert not Path("out.png").exists()
    code, out, err = command(*LONG, "--save-every", 7, "--resume", state_file)
    assert (code, err) == (0, "")
    assert "60 steps" in out
    assert Path("out.png").read_bytes() == expected
    assert sorted(os.listdir()) == ["other.jpg", "out.png", "paint.jpg", "photo.jpg"]


def interrupt_after(steps: int, times: int, monkeypatch) -> None:
    """Send this process real SIGINTs when so many steps are done."""
    genuine = run_module.Run.__iter__

    def iterate(self):
        for report in genuine(self):
            if report.step == steps:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            yield report

    monkeypatch.setattr(run_module.Run, "__iter__", iterate)


def test_ctrl_c_saves_the_state_and_says_how_to_go_on(pictures, command, monkeypatch):
    words = [*SHORT, "--steps", "8"]
    assert command(*words)[0] == 0
    expected = Path("out.png").read_bytes()
    with monkeypatch.context() as patch:
        interrupt_after(3, 1, patch)
        code, _, err = command(*words, "--save-every", 100)
    assert code == 130
    assert err == (
        "interrupted after step 3 of 8; saved the best picture so far; "
        "to go on, repeat the command with --resume out.png.state\n"
    )
    assert Path("out.png").read_bytes() != expected
    assert command(*words, "--resume", "out.png.state")[0] == 0
    assert Path("out.png").read_bytes() == expected
    # It was not asked to save one, so it leaves the one that is there.
    assert Path("out.png.state").exists()


def test_a_second_ctrl_c_names_the_last_state(pictures, command, monkeypatch):
    interrupt_after(3, 2, monkeypatch)
    code, _, err = command(*SHORT, "--steps", 8, "--save-every", 2)
    assert code == 130
    assert err == (
        "error: interrupted; to go on from the last state, "
        "repeat the command with --resume out.png.state\n"
    )
    assert not Path("out.png").exists()
    assert sum(State.load("out.png.state").course.taken) == 2


def test_the_command_refuses_in_one_line(pictures, command):
    words = [*SHORT, "--steps", "8", "--max-seconds", "1e-6", "--save-every", 100]
    code, _, err = command(*words)
    assert code == 0
    assert err == (
        "the time was over after step 1 of 8; "
        "to go on, repeat the command with --resume out.png.state\n"
    )
    resume = ["--resume", "out.png.state"]
    assert_fails(command, [*words, *resume, "--seed", 4], 1, "seed (0 there, 4 here)")
    other = ["stylize", "other.jpg", *words[2:], *resume]
    assert_fails(command, other, 1, "out.png.state is the state of another run")
    assert_fails(command, [*words, "--resume", "none.state"], 1, "none.state cannot be read")
    assert_fails(command, [*words, "--resume", "photo.jpg"], 1, "photo.jpg is no state of a run")
    assert_fails(command, [*words[:-1], 0], 2, "--save-every")
