"""Forks: whatever a child of a process with used sessions does, and however it leaves, it ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nst_fast import forks
from nst_fast.errors import ProviderError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# In a process of its own: forking pytest's, with torch's threads in it, would warn. A child that
# hangs is ended by its alarm, which shows in the exit code.
PARENT = """
import os, signal, sys
import numpy as np
from nst_fast import EngineOptions, NstError, StyleSettings, Stylizer

PATIENCE = 120

def pictures(size):
    rng = np.random.default_rng(size)
    return rng.random((2, size, size + 9, 3)).astype(np.float32)

def make(stylizer, size):
    shallow = {"style_layers": {"relu2_1": 1.0}, "content_layers": {"relu2_2": 1.0}}
    chosen = StyleSettings(size=size, steps=2, scales=1, **shallow)
    return stylizer.stylize(*pictures(size), chosen).loss

def close(found, expected):
    # Other threads add in another order.
    return abs(found - expected) <= 1e-2 * expected

def new():
    return Stylizer(EngineOptions(provider=sys.argv[1], threads=2), shapes=1)

def fork(child):
    sys.stdout.flush()
    number = os.fork()
    if number:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    signal.alarm(PATIENCE)
    try:
        child()
    except NstError as error:
        print("refused:", error)
        assert len(str(error).splitlines()) == 1
    sys.exit(7)
"""


@pytest.fixture(params=["cpu", "openvino"])
def run(request, backend):
    """Run a script that begins as ``PARENT``, on a provider; its words."""
    backend(request.param, "fp32")

    def run(script: str) -> str:
        found = subprocess.run(
            [sys.executable, "-c", PARENT + script, request.param],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        assert found.stderr == ""
        return found.stdout

    return run


def test_a_child_ends_whatever_it_does_with_a_used_stylizer(run):
    run("""
stylizer = new()
expected = {size: make(stylizer, size) for size in (64, 48)}
for size in (32, 36):  # pushes sessions out: OpenVINO keeps their threads for others
    make(stylizer, size)

def same():
    assert close(make(stylizer, 48), expected[48])

def others():
    for size in (64, 68):
        make(stylizer, size)

def own():
    for size in (48, 64):
        make(new(), size)

def lets_go():
    global stylizer
    del stylizer

def again():
    assert fork(own) == 7
    same()

for child in (int, same, others, own, lets_go, again):
    assert fork(child) == 7, child
assert make(stylizer, 48) == expected[48]
os._exit(0)
""")


def test_a_run_that_straddles_a_fork_is_refused_and_the_next_works(run):
    words = run("""
stylizer = new()
run = stylizer.start(*pictures(64), StyleSettings(size=64, steps=4, scales=1))
steps = iter(run)
next(steps)

def child():
    try:
        next(steps)
    except NstError as error:
        print("refused:", error)
    run.close()
    make(stylizer, 64)

assert fork(child) == 7
for _ in steps:
    pass
run.result()
os._exit(0)
""")
    assert words.count("refused:") == 1
    assert "was made before a fork; make one in each process" in words


def test_a_child_of_a_parent_that_has_only_loaded_the_libraries_works(run):
    run("""
from nst_fast import runtime
runtime.providers()
stylizer = new()

def used():
    make(stylizer, 64)

def own():
    make(new(), 64)

for child in (int, used, own):
    assert fork(child) == 7, child
os._exit(0)
""")


def test_children_of_multiprocessing_end(run):
    run("""
import multiprocessing

def child(size):
    make(stylizer, size)
    return make(new(), size)

stylizer = new()
expected = make(stylizer, 64)
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(child, [64, 64, 64]).get(PATIENCE)
    assert all(close(loss, expected) for loss in found)
os._exit(0)
""")


def test_what_a_child_has_written_is_not_lost_and_its_exit_handlers_run(run):
    words = run("""
import atexit
make(new(), 48)

def child():
    atexit.register(print, "handled")
    print("written")

assert fork(child) == 7
os._exit(0)
""")
    assert words.split() == ["written", "handled"]


def test_only_the_process_that_made_something_may_use_it():
    class Anything:
        pass

    thing = Anything()
    forks.require(forks.hold(thing), "it")
    with pytest.raises(ProviderError, match="it was made before a fork; make one in each process"):
        forks.require(os.getpid() + 1, "it")
    assert not forks.inherits()
