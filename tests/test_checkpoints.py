"""Checkpoints: downloads from a loopback server with every fault that a server can have."""

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from nst_fast.encoders import CHECKPOINTS, Checkpoint, checkpoints, download_checkpoint
from nst_fast.errors import EncoderError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where checkpoints go; no proxy stands between the tests and their server."""
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def visible(folder: Path) -> list[str]:
    """What the folder holds, without the empty lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@dataclass
class Server:
    """A web server of one file, with the faults that a test asks for."""

    content: bytes
    ranges: bool = True
    status: int = 200
    cut_after: int | None = None
    says_length: bool = True
    requests: list[str | None] = field(default_factory=list)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            server.requests.append(wanted)
            start = 0
            if server.status != 200:
                return self.send_error(server.status)
            if wanted and server.ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(server.content):
                    return self.send_error(416)
            self.send_response(206 if start else 200)
            body = server.content[start:]
            if server.says_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.cut_after])

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server(np.random.default_rng().bytes(300_000))
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(served)) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        digest = hashlib.sha256(served.content).hexdigest()
        offer(monkeypatch, http.server_port, digest, len(served.content))
        yield served
        http.shutdown()
        thread.join()


def offer(monkeypatch: pytest.MonkeyPatch, port: int, digest: str, size: int = 10) -> None:
    url = f"http://127.0.0.1:{port}/models/tiny-{digest[:8]}.pth"
    tiny = Checkpoint(url, digest, size, "test", "none")
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", {"tiny": tiny})
    monkeypatch.setattr(checkpoints, "_CHUNK", 40_000)


def failure() -> str:
    with pytest.raises(EncoderError) as caught:
        download_checkpoint("tiny")
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_whole_hashes_are_pinned() -> None:
    """A name of torch.hub's ends in the first 8 digits, which anybody can make a file for."""
    for checkpoint in CHECKPOINTS.values():
        assert len(checkpoint.sha256) == 64
        assert set(checkpoint.sha256) <= set("0123456789abcdef")
        assert checkpoint.filename.endswith(f"-{checkpoint.sha256[:8]}.pth")


def test_a_download_is_whole_and_kept(server: Server, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = download_checkpoint("tiny", progress=lambda *done: seen.append(done))
    assert path.parent == folder
    assert path.read_bytes() == server.content
    assert seen == [(min(n, 300_000), 300_000) for n in range(40_000, 340_000, 40_000)]
    assert visible(folder) == [path.name]
    assert download_checkpoint("tiny") == path
    assert server.requests == [None]
    path.write_bytes(b"damaged")
    assert download_checkpoint("tiny").read_bytes() == server.content


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_is_continued(server: Server, ranges: bool) -> None:
    server.cut_after, server.ranges = 100_000, ranges
    message = failure()
    assert "cut after 100000 of 300000 bytes" in message
    assert "run again to continue" in message
    server.cut_after = None
    seen: list[tuple[int, int]] = []
    path = download_checkpoint("tiny", progress=lambda *done: seen.append(done))
    assert server.requests == [None, "bytes=100000-"]
    assert path.read_bytes() == server.content
    assert seen[0] == (140_000 if ranges else 40_000, 300_000)
    assert seen[-1] == (300_000, 300_000)


def test_a_download_stopped_by_its_caller_is_continued(server: Server) -> None:
    def stop(done: int, total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_checkpoint("tiny", progress=stop)
    assert download_checkpoint("tiny").read_bytes() == server.content
    assert server.requests == [None, "bytes=120000-"]


@pytest.mark.parametrize("extra", [b"", b"?"])
def test_a_partial_file_as_long_as_the_whole_is_settled(
    server: Server, folder: Path, extra: bytes
) -> None:
    """Whole: it is taken without a request. Wrong: start over."""
    name = checkpoints.CHECKPOINTS["tiny"].filename
    (folder / f"{name}.partial").write_bytes(server.content + extra)
    assert download_checkpoint("tiny").read_bytes() == server.content
    assert server.requests == ([None] if extra else [])
    assert visible(folder) == [name]


def test_a_server_that_does_not_say_the_length_will_do(server: Server) -> None:
    server.says_length = False
    seen: list[tuple[int, int]] = []
    path = download_checkpoint("tiny", progress=lambda *done: seen.append(done))
    assert path.read_bytes() == server.content
    assert seen[-1] == (300_000, 0)


def test_a_wrong_hash_leaves_nothing(server: Server, folder: Path) -> None:
    server.content = server.content[:-1] + bytes([server.content[-1] ^ 1])
    message = failure()
    assert checkpoints.CHECKPOINTS["tiny"].url in message
    assert checkpoints.CHECKPOINTS["tiny"].sha256 in message
    assert visible(folder) == []


def test_a_file_whose_hash_begins_as_it_should_is_refused(server: Server, folder: Path) -> None:
    """The first 8 digits of a hash are soon found by trying."""
    tiny = checkpoints.CHECKPOINTS["tiny"]
    other = tiny.sha256[:8] + "0" * 56
    offered = Checkpoint(tiny.url, other, tiny.size, "test", "none")
    checkpoints.CHECKPOINTS["tiny"] = offered  # type: ignore[index]
    assert other in failure()
    assert visible(folder) == []


@pytest.mark.parametrize("says_length", [True, False])
def test_a_server_that_sends_without_end_is_not_listened_to(
    server: Server, folder: Path, says_length: bool
) -> None:
    server.content, server.says_length = server.content * 20, says_length
    seen: list[int] = []
    with pytest.raises(EncoderError, match="came damaged"):
        download_checkpoint("tiny", progress=lambda done, total: seen.append(done))
    assert max(seen) <= 300_000
    assert visible(folder) == []


@pytest.mark.parametrize("status", [403, 404, 416, 503])
def test_a_refusal_names_the_address_and_the_way_round(server: Server, status: int) -> None:
    server.status = status
    message = failure()
    assert f"HTTP {status}" in message
    assert checkpoints.CHECKPOINTS["tiny"].url in message
    assert "--checkpoint FILE" in message


def test_without_a_network_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        offer(monkeypatch, unused.getsockname()[1], "0" * 64)
        message = failure()
    assert "refused" in message
    assert checkpoints.CHECKPOINTS["tiny"].url in message
    assert "--checkpoint FILE" in message


def test_a_server_that_speaks_no_http_is_an_encoder_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        offer(monkeypatch, listener.getsockname()[1], "0" * 64)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.7\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert "cannot download" in failure()
        thread.join()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(server: Server, folder: Path) -> None:
    partial = folder / f"{checkpoints.CHECKPOINTS['tiny'].filename}.partial"
    partial.symlink_to("/dev/full")
    message = failure()
    assert str(folder) in message
    assert os.strerror(errno.ENOSPC) in message
    assert "NST_FAST_CACHE" in message


def test_one_download_at_a_time(server: Server) -> None:
    messages: list[str] = []

    def again(done: int, total: int) -> None:
        if not messages:
            messages.append(failure())

    path = download_checkpoint("tiny", progress=again)
    assert "another process is writing" in messages[0]
    assert path.read_bytes() == server.content


def test_an_unknown_checkpoint_is_named() -> None:
    with pytest.raises(EncoderError, match="'vgg18': there are vgg19, vgg16"):
        download_checkpoint("vgg18")
