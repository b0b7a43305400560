"""What the libraries would tell their makers: nothing is looked up, nothing is left on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from nst_fast.library import TELEMETRY_VARIABLE, without_telemetry

# Each name that the process looks up is written down, and not found.
WATCH = r"""
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <dlfcn.h>
#include <errno.h>

static void note(const char *what, const char *name) {
  FILE *log = fopen(getenv("WATCH_LOG"), "a");
  if (!log) return;
  fprintf(log, "%s %s\n", what, name ? name : "-");
  fclose(log);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  (void)service, (void)hints, (void)found;
  note("name", name);
  return EAI_NONAME;
}

struct hostent *gethostbyname(const char *name) {
  note("name", name);
  h_errno = HOST_NOT_FOUND;
  return NULL;
}

int connect(int socket, const struct sockaddr *address, socklen_t size) {
  if (address->sa_family == AF_INET || address->sa_family == AF_INET6) {
    note("connect", NULL);
    errno = ENETUNREACH;
    return -1;
  }
  int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return next(socket, address, size);
}
"""
COMPILER = shutil.which("cc")
MAKES = """
import numpy as np, time
from nst_fast import EngineOptions, StyleSettings, Stylizer
rng = np.random.default_rng(0)
pictures = rng.random((2, 48, 64, 3)).astype(np.float32)
for provider in {providers}:
    Stylizer(EngineOptions(provider=provider)).stylize(*pictures, StyleSettings(size=64, steps=2))
time.sleep({seconds})
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    command = [COMPILER, "-shared", "-fPIC", "-o", "watch.so", "watch.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "watch.so"


class Watched:
    """A process, what it looked up or connected to, and the files that it left in HOME."""

    def __init__(self, library: Path, folder: Path, *command: str) -> None:
        self._home, self._log = folder / "home", folder / "log"
        self._home.mkdir()
        # Both keep quiet in CI: a test that runs there must not look like it.
        speaking = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", TELEMETRY_VARIABLE)
        removed = (*speaking, "XDG_CACHE_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in removed}
        environment |= {
            "HOME": str(self._home),
            "LD_PRELOAD": str(library),
            "WATCH_LOG": str(self._log),
        }
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def end(self) -> tuple[list[str], list[str]]:
        said, _ = self.process.communicate()
        assert self.process.returncode == 0, said
        files = sorted(str(p.relative_to(self._home)) for p in self._home.rglob("*") if p.is_file())
        return (self._log.read_text().splitlines() if self._log.exists() else []), files


@pytest.fixture
def watched(library, tmp_path):
    """Run a command to its end."""
    return lambda *command: Watched(library, tmp_path, *command).end()


@pytest.fixture(scope="module")
def long_life(library, tmp_path_factory) -> Iterator[Watched]:
    """A process that lives while the other tests run: onnxruntime sends after ten seconds."""
    script = MAKES.format(providers=("cpu", "openvino"), seconds=14)
    begun = Watched(library, tmp_path_factory.mktemp("long"), sys.executable, "-c", script)
    yield begun
    begun.process.kill()
    begun.process.wait()
    begun.process.stdout.close()


@pytest.fixture
def pictures(tmp_path, content, style) -> Path:
    for name, picture in (("content", content), ("style", style)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    return tmp_path


def command(*words: str) -> tuple[str, ...]:
    return sys.executable, "-m", "nst_fast", *words


@pytest.mark.usefixtures("long_life")
def test_the_watch_sees_a_lookup_and_a_connection(watched):
    """Or the tests below would pass whatever happens."""
    script = """
from socket import getaddrinfo, socket
for use in (lambda: getaddrinfo("example.org", 80), lambda: socket().connect(("1.1.1.1", 80))):
    try: use()
    except OSError: pass
open(__import__("os").path.expanduser("~/left"), "w")
"""
    assert watched(sys.executable, "-c", script) == (["name example.org", "connect -"], ["left"])


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_stylize_tells_nobody(watched, pictures, provider):
    words = ("content.png", "style.png", "-o", "out.png")
    paths = [str(pictures / word) if word.endswith("png") else word for word in words]
    assert watched(
        *command("stylize", *paths, "--size", "64", "--steps", "2", "--provider", provider)
    ) == ([], [])


def test_a_batch_and_its_workers_tell_nobody(watched, pictures):
    paths = [str(pictures / "content.png"), "--style", str(pictures / "style.png")]
    options = ("-o", str(pictures / "out"), "--size", "64", "--steps", "2", "--workers", "1")
    assert watched(*command("batch", *paths, *options)) == ([], [])


def test_other_commands_tell_nobody(watched):
    """In one process, which starts once."""
    commands = [["info"], ["models", "list"], ["--version"]]
    script = f"from nst_fast import cli; assert not any(map(cli.main, {commands}))"
    assert watched(sys.executable, "-c", script) == ([], [])


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv(TELEMETRY_VARIABLE, raising=False)
    with without_telemetry():
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_a_user_may_ask_for_it(monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv(TELEMETRY_VARIABLE, "1")
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    with without_telemetry():
        assert "ORT_DISABLE_TELEMETRY" not in os.environ
        assert "openvino_telemetry" not in sys.modules


def test_what_a_host_program_has_loaded_is_its_own(monkeypatch):
    loaded = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", loaded)
    with without_telemetry():
        assert sys.modules["openvino_telemetry"] is loaded
    assert sys.modules["openvino_telemetry"] is loaded


def test_a_host_program_can_load_it_afterwards(monkeypatch):
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    with without_telemetry():
        assert sys.modules["openvino_telemetry"] is None
    assert "openvino_telemetry" not in sys.modules


def test_a_long_life_tells_nobody(long_life, backend):
    backend("openvino", "fp32")
    assert long_life.end() == ([], [])
