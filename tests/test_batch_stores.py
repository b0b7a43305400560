"""Object stores: an S3 on loopback that fails one request in ten, and a plain web server."""

from __future__ import annotations

import itertools
import json
import runpy
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from batches import ENGINE, encoded, journal_rows, make_jobs
from stylizing import SHALLOW, quick

from nst_fast import OutputOptions, StyleSettings, images
from nst_fast.batch import BatchOptions, BatchRunner, find_jobs, storage
from nst_fast.errors import BatchError, ImageError

NAMES = itertools.count()  # the buckets of all servers of a process are the same
BARE = OutputOptions(metadata=False)  # which would name the places of the inputs
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def bucket(monkeypatch) -> Iterator[tuple[str, list[int]]]:
    """URL of a bucket, and a list with the count of requests that were failed on purpose."""
    server = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    app = server.DomainDispatcherApplication(server.create_backend_app)
    requests, failed, lock = itertools.count(1), [0], threading.Lock()

    def unreliable(environ, respond):
        with lock:
            fail = next(requests) % 10 == 0
            failed[0] += fail
        if fail:
            respond("400 Bad Request", [("Content-Length", "0")])  # which no client repeats itself
            return [b""]
        return app(environ, respond)

    served = make_server("127.0.0.1", 0, unreliable, threaded=True)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{served.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(storage, "PAUSES", (0.01,) * 6)
    storage._remote.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    name = f"pictures-{next(NAMES)}"
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}", failed
    storage._remote.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    served.shutdown()
    served.server_close()
    thread.join()


def test_a_batch_from_store_to_store_that_fails_one_request_in_ten(tmp_path, bucket):
    url, failed = bucket
    for number in range(12):
        storage.write(f"{url}/in/p{number:03}.png", encoded(number), "")
    storage.write(f"{url}/style.png", encoded(1000), "")
    storage.write(f"{url}/in/bad.png", b"no picture", "")
    jobs = find_jobs(
        [f"{url}/in"],
        styles=[f"{url}/style.png"],
        output=f"{url}/out",
        settings=quick(steps=2, size=32, **SHALLOW),
        options=BatchOptions(name="{stem}.png"),
        saving=BARE,
    ).jobs
    assert len(jobs) == 13

    def run(workers: int = 1) -> tuple[int, int, int]:
        options = BatchOptions(workers=workers)
        summary = BatchRunner(jobs, tmp_path / "journal", engine=ENGINE, options=options).run()
        return summary.done, summary.failed, summary.skipped

    assert run(workers=2) == (12, 1, 0)
    here = [replace(job, saving=BARE) for job in make_jobs(tmp_path / "in", 12, size=32)]
    BatchRunner(here, tmp_path / "out", engine=ENGINE, options=BatchOptions(workers=1)).run()
    for job in here:
        name = job.output.rpartition("/")[2]
        with open(job.output, "rb") as file:
            assert storage.read(f"{url}/out/{name}") == file.read()
    assert len(storage.sizes(f"{url}/out")) == 12
    gone = f"{url}/out/p003.png"
    storage._insist(gone, lambda: fsspec.filesystem("s3").rm_file(gone))
    storage.write(f"{url}/in/p005.png", encoded(50), "")  # another picture of that name
    storage.write(f"{url}/in/p006.png", encoded(6), "")  # the same one
    assert run() == (2, 1, 10)
    assert failed[0] >= 8
    (error,) = {row["error"] for row in journal_rows(tmp_path / "journal")} - {""}
    assert error.startswith(f"{url}/in/bad.png is not an image")


def test_the_step_of_a_pipeline_from_store_to_store(tmp_path, bucket, capsys):
    url, _ = bucket
    for name in ("in/one.png", "in/sub/two.png", "style.jpg"):
        storage.write(f"{url}/{name}", encoded(len(name)), "")
    storage.write(f"{url}/in/bad.png", b"no picture", "")
    example = Path(__file__).parents[1] / "examples" / "pipelines" / "s3_step.py"
    main = runpy.run_path(str(example))["main"]
    quicker = SHALLOW | {"steps": 3}
    main.__globals__["StyleSettings"] = lambda **its_own: StyleSettings(**its_own | quicker)
    words = (f"{url}/in", f"{url}/style.jpg", f"{url}/out", str(tmp_path / "journal"))
    assert main(*words) == 0
    assert capsys.readouterr() == (f"{url}/in/bad.png\n", "3 to make, 0 done before\n")
    for name in ("one.jpg", "sub/two.jpg"):
        made = images.decode(storage.read(f"{url}/out/{name}"), name=name)
        assert max(made.size) == 256
    assert main(*words) == 0
    assert capsys.readouterr() == (f"{url}/in/bad.png\n", "1 to make, 2 done before\n")


def test_an_object_that_is_missing_is_not_asked_for_again(bucket):
    with pytest.raises(Exception, match=r"/none.png: no such file"):
        storage.read(f"{bucket[0]}/none.png")
    with pytest.raises(BatchError, match="no such file, and no folder"):
        list(storage.find(f"{bucket[0]}/nothing/*.png"))


def test_a_store_that_keeps_failing_is_one_line(monkeypatch):
    class Down:
        protocol = "down"

        def open(self, path: str, mode: str, **_: object) -> None:
            raise RuntimeError("503\nslow down")

        def _strip_protocol(self, url: str) -> str:
            return url

    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(storage, "_remote", lambda protocol: Down())
    with pytest.raises(storage.StorageError, match=r"^down://a: RuntimeError: 503 slow down; see"):
        storage.read("down://a")


# ------------------------------------------------------------------------------------- a web server


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, bytes]]]:
    """URL of a server that knows GET alone and no ranges, and its files.

    Whose name starts with "denied" is refused, and "busy" once.
    """
    pytest.importorskip("aiohttp")
    files: dict[str, bytes] = {}
    asked = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path[1:]
            known, first = name in files, name not in asked
            asked.add(name)
            status = 403 if name.startswith("denied") else 200 if known else 404
            status = 503 if name.startswith("busy") and first else status
            body = files[name] if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", files
        server.shutdown()
        thread.join()
    storage._remote.cache_clear()
    fsspec.get_filesystem_class("http").clear_instance_cache()


def test_pictures_and_manifest_from_a_web_server(tmp_path, web):
    url, files = web
    names = ["p0.png", "busy1.png", "sub/p%202.png", "none.png", "denied.png"]
    files |= {name: encoded(number) for number, name in enumerate(names[:3])}
    rows = [{"content": name} for name in names[:-1]] + [{"content": f"{url}/denied.png"}]
    files |= {"style.png": encoded(1000), "list.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    jobs = find_jobs(
        [],
        manifest_url=f"{url}/list.jsonl",
        styles=[f"{url}/style.png"],
        output=str(tmp_path / "out"),
        settings=quick(steps=2, size=32, **SHALLOW),
        options=BatchOptions(name="{stem}.png"),
        saving=BARE,
    ).jobs

    def run() -> tuple[int, int, int]:
        options = BatchOptions(workers=1, retries=0)
        summary = BatchRunner(jobs, tmp_path / "out", engine=ENGINE, options=options).run()
        return summary.done, summary.failed, summary.skipped

    assert run() == (3, 2, 0)
    reasons = {row["content"]: row["error"] for row in journal_rows(tmp_path / "out")}
    assert reasons[f"{url}/none.png"] == f"{url}/none.png: no such file; check the path"
    assert reasons[f"{url}/denied.png"].endswith(
        "denied.png: permission denied; make the file readable"
    )
    here = [replace(job, saving=BARE) for job in make_jobs(tmp_path / "in", 3, size=32)]
    BatchRunner(here, tmp_path / "here", engine=ENGINE, options=BatchOptions(workers=1)).run()
    made = [(tmp_path / "out" / name).read_bytes() for name in ("p0.png", "busy1.png", "p%202.png")]
    assert made == [Path(job.output).read_bytes() for job in here]
    assert run() == (0, 2, 3)


@pytest.mark.parametrize("where", ["disk", "web", "store"])
def test_a_file_without_end_is_not_read_to_the_end(tmp_path, web, bucket, monkeypatch, where):
    monkeypatch.setattr(storage, "MOST_BYTES", 1000)
    monkeypatch.setattr(storage, "CHUNK", 300)
    folder = {"disk": str(tmp_path), "web": web[0], "store": bucket[0]}[where]
    for name, count in (("fits", 1000), ("larger", 1001), ("endless", 100_000)):
        data = bytes(count)
        if where == "web":
            web[1][name] = data
        else:
            storage.write(f"{folder}/{name}", data, "")
    assert storage.read(f"{folder}/fits") == bytes(1000)
    for name in ("larger", "endless"):
        with pytest.raises(ImageError, match=f"{name} has more than 0 MiB; scale it down"):
            storage.read(f"{folder}/{name}")


def test_a_web_server_is_not_written_to(tmp_path):
    jobs = [replace(make_jobs(tmp_path / "in", 1)[0], output="https://host/out.png")]
    with pytest.raises(BatchError, match=r"output https://host/out.png: http\(s\):// can only be"):
        BatchRunner(jobs, tmp_path / "out")
