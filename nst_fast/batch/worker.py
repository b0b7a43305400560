"""A worker process: reads the next picture and writes the last one while it makes another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from queue import Empty, Queue
from typing import Any

from nst_fast.batch import work
from nst_fast.batch.jobs import Job
from nst_fast.batch.journal import Row
from nst_fast.batch.storage import StorageFullError
from nst_fast.config import EngineOptions
from nst_fast.errors import NstError, with_kind
from nst_fast.host import save_memory
from nst_fast.stylizer import Stylizer

# What a worker tells: ("ready",), ("started", key), ("done", key, Row), ("failed", key, text,
# final), ("broken", text) before it dies, and ("stop", text), after which no picture of any worker
# can succeed.
Message = tuple[Any, ...]
Send = Callable[[Message], None]
BROKEN = 70  # exit code of a worker whose thread broke
PATIENCE = 0.2  # seconds to wait for one more picture of a group


def main(connection: Connection, engine: EngineOptions, most: int, tag: str) -> None:
    """Make the (key, Job) that arrive until None does; tell of each on ``connection``.

    At most ``most`` of them are made in one step, where a GPU makes them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    save_memory()
    send = _sender(connection)
    _start(send, _die_with_parent)
    try:
        stylizer = Stylizer(engine, shapes=1)  # those of one shape follow each other
    except NstError as error:
        send(("stop", with_kind(error)))
        return
    send(("ready",))
    together = 1 if stylizer.environment["device"] == "cpu" else most
    loaded: Queue[Any] = Queue(together)
    made: Queue[Any] = Queue(1)
    _start(send, _read, connection, loaded, send)
    writer = _start(send, _write, made, tag, send)
    for group in _groups(loaded, together):
        for key, _ in group:
            send(("started", key))
        _make(stylizer, group, made, send)
    made.put(None)
    writer.join()


def _groups(loaded: Queue[Any], most: int) -> Iterator[list[tuple[int, work.Loaded]]]:
    """What can be made together, as it comes: pictures of the same styles and settings."""
    aside: list[Any] = []
    while (first := aside.pop() if aside else loaded.get()) is not None:
        group = [first]
        while len(group) < most and not aside:
            try:
                item = loaded.get(timeout=PATIENCE)
            except Empty:
                break
            (group if item is not None and _alike(first[1], item[1]) else aside).append(item)
        yield group


def _alike(one: work.Loaded, other: work.Loaded) -> bool:
    if one.job.making.alone or other.job.making.alone:
        return False
    return (one.job.styles, one.job.settings) == (other.job.styles, other.job.settings)


def _make(
    stylizer: Stylizer,
    group: list[tuple[int, work.Loaded]],
    made: Queue[Any],
    send: Send,
) -> None:
    """Optimise a group, and hand each picture on, or tell what went wrong with it."""
    if len(group) == 1:
        ((key, picture),) = group
        with _telling(key, send):
            made.put((key, work.make(stylizer, picture)))
        return
    results: list[Any]
    try:
        results = work.make_together(stylizer, [picture for _, picture in group])
    except Exception as error:
        results = [error] * len(group)
    for (key, _), result in zip(group, results, strict=True):
        with _telling(key, send):
            if isinstance(result, Exception):
                raise result
            made.put((key, result))


def _sender(connection: Connection) -> Send:
    lock = threading.Lock()

    def send(message: Message) -> None:
        with lock:
            connection.send(message)

    return send


def _start(send: Send, work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Run a part of the worker in a thread; where it breaks, so does the worker, and says why.

    The other parts would wait for it for ever.
    """

    def run() -> None:
        try:
            work(*arguments)
        except BaseException as error:
            with contextlib.suppress(Exception):  # the connection may be what is broken
                send(("broken", with_kind(error)))
            os._exit(BROKEN)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _die_with_parent() -> None:
    """End at once when the parent does: a rerun must find nobody else at work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _telling(key: int, send: Send) -> Any:
    """Report what goes wrong inside instead of raising it."""
    try:
        yield
    except StorageFullError as error:
        send(("stop", str(error)))
    except Exception as error:
        send(("failed", key, with_kind(error), work.is_final(error)))


def _read(connection: Connection, loaded: Queue[Any], send: Send) -> None:
    styles = work.StyleCache()
    task: tuple[int, Job] | None
    while (task := connection.recv()) is not None:
        key, job = task
        with _telling(key, send):
            loaded.put((key, work.load(job, styles)))
    loaded.put(None)


def _write(made: Queue[Any], tag: str, send: Send) -> None:
    for key, picture in iter(made.get, None):
        with _telling(key, send):
            row: Row = work.write(picture, tag)
            send(("done", key, row))
