"""Worker processes and who does what: bounded, in order, each picture until it is done or given up.

A worker that dies is replaced, and one that takes too long is killed. Which of the pictures that it
held was at fault is not known, so each of them runs alone next time; then it counts as an attempt.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import secrets
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from types import TracebackType
from typing import Protocol

from nst_fast.batch import storage, work, worker
from nst_fast.batch.agenda import Agenda, Task
from nst_fast.batch.jobs import Job
from nst_fast.batch.journal import Row
from nst_fast.batch.machine import Layout, gpus_of, of_worker
from nst_fast.batch.source import Source
from nst_fast.batch_options import BatchOptions
from nst_fast.config import EngineOptions
from nst_fast.errors import BatchError
from nst_fast.limits import memory_hint

HELD = 2  # pictures or groups at a worker: one is being made, one is being read or written
START_FAILURES = 3  # workers in a row that die before they are ready
KILLED = -getattr(signal, "SIGKILL", 9)


class Watch(Protocol):
    """Told when a worker starts with a picture."""

    def __call__(self, worker: str, content: str) -> None:
        """Take the name of the worker and the path or URL of the content."""


def watch_nothing(worker: str, content: str) -> None:
    """Where nobody wants to know."""


@dataclass(eq=False)
class _Worker:
    number: int
    process: SpawnProcess
    connection: Connection
    held: dict[int, Task] = field(default_factory=dict)  # by key, in the order that they end in
    ready: bool = False
    since: float = 0.0  # when the first of them was first; `monotonic`
    hung: bool = False  # killed, as its time was up
    broken: str = ""  # what it said before it died

    @property
    def name(self) -> str:
        """For the journal and the display."""
        return f"worker {self.number}"

    def take(self, key: int, task: Task) -> None:
        """Hold a task; where it has no other, this one's time begins."""
        if not self.held:
            self.since = monotonic()
        self.held[key] = task

    def release(self, key: int) -> Task:
        """Let go of a task that has ended; where it was the first, the next one's time begins."""
        if key == next(iter(self.held)):
            self.since = monotonic()
        return self.held.pop(key)

    def has_room(self, most: int) -> bool:
        """Whether it may hold one more task."""
        return len(self.held) < most and not any(task.alone for task in self.held.values())


def stylize_many(
    jobs: Iterable[Job],
    engine: EngineOptions | None = None,
    options: BatchOptions | None = None,
) -> Iterator[Row]:
    """Make pictures in worker processes; yields each one's row as it ends, in no fixed order.

    Jobs are taken from the iterable as workers become free, in a thread, so that one that makes its
    consumer wait holds nothing up. Close the iterator to stop early. In a script, call it below
    ``if __name__ == "__main__":``, as the workers import the script.

    Args:
        jobs: what to make. Memory is shared out by the largest picture of a list, and by the
            default size where any other iterable brings them.
        engine: how to compute; None for the defaults, with threads to suit the machine.
        options: of these ``workers``, ``together``, ``retries`` and ``timeout``.

    Raises:
        BatchError: workers cannot start, or an output has no space left.
        SettingsError: a number is out of range.
    """
    engine, options = engine or EngineOptions(), options or BatchOptions()
    layout = Layout.choose(engine, options, jobs if isinstance(jobs, Sequence) else None)
    with Pool(layout.engine(engine), layout.workers, options) as pool:
        yield from pool.run(jobs)


class Pool:
    """Worker processes; use it as a context manager, which ends them."""

    def __init__(
        self,
        engine: EngineOptions,
        workers: int,
        options: BatchOptions,
        *,
        tag: str = "",
        watch: Watch = watch_nothing,
    ) -> None:
        """Start the processes.

        Args:
            engine: of every worker.
            workers: how many.
            options: of these ``together``, ``retries`` and ``timeout``, which counts from when no
                other picture is before one at its worker.
            tag: of temporary files, see ``files.write_atomically``; empty for one of its own.
            watch: told when a worker starts with a picture.
        """
        self._gpus = gpus_of(engine)
        self._engine, self._options, self._watch = engine, options, watch
        self._tag = tag or secrets.token_hex(6)
        self._context = multiprocessing.get_context("spawn")
        self._keys = itertools.count()
        self._start_failures = 0
        self._workers = [self._start(number + 1) for number in range(workers)]

    def run(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """Make pictures; see :func:`stylize_many`."""
        with contextlib.closing(Source(jobs)) as source:
            agenda = Agenda(source)
            while True:
                self._dispatch(agenda)
                if agenda.done:
                    return
                self._wait([] if source.ended else [source.bell])
                self._kill_hung()
                for each in list(self._workers):
                    yield from self._listen(each, agenda)

    def _dispatch(self, agenda: Agenda) -> None:
        """Fill the workers, those with least to do first."""
        most = HELD * self._options.together
        names = [each.name for each in self._workers]
        for _ in range(most):
            for each in sorted(self._workers, key=lambda w: len(w.held)):
                if not each.has_room(most):
                    continue
                task = agenda.next(each.name, not each.held, names)
                if task is not None:
                    key = next(self._keys)
                    each.take(key, task)
                    self._send(each, (key, task.job))

    def _send(self, each: _Worker, message: object) -> None:
        # Where it has just died, _listen finds that out, and gives its tasks to another.
        with contextlib.suppress(OSError):
            each.connection.send(message)

    def _wait(self, others: list[Connection]) -> None:
        """Until something is told, a worker dies, or a picture's time is up."""
        patience = min(map(self._time_left, self._workers))
        wait(
            [*others, *(x for w in self._workers for x in (w.connection, w.process.sentinel))],
            None if math.isinf(patience) else max(0.0, patience),
        )

    # -------------------------------------------------------------------------------- listening

    def _listen(self, each: _Worker, agenda: Agenda) -> Iterator[Row]:
        """What a worker has told since; a new process takes its place where it has died."""
        alive = each.process.is_alive()
        try:
            while each.connection.poll():
                yield from self._hear(each, each.connection.recv(), agenda)
        except (EOFError, OSError):
            alive = False
        if not alive:
            yield from self._bury(each, agenda)

    def _hear(self, each: _Worker, message: worker.Message, agenda: Agenda) -> Iterator[Row]:
        match message:
            case ("ready",):
                each.ready, each.since, self._start_failures = True, monotonic(), 0
            case ("started", key):
                self._watch(each.name, each.held[key].job.content)
            case ("done", key, row):
                task = each.release(key)
                agenda.end(row.output, failed=False)
                yield replace(row, attempts=task.failed + 1, worker=each.name)
            case ("failed", key, error, final):
                yield from self._failed(each.release(key), each.name, error, final, agenda)
            case ("broken", error):
                each.broken = error
            case ("stop", error):
                raise BatchError(error)

    def _failed(
        self, task: Task, name: str, error: str, final: bool, agenda: Agenda
    ) -> Iterator[Row]:
        task.failed += 1
        if final or task.failed > self._options.retries:
            agenda.end(task.job.output, failed=True)
            yield replace(work.failure(task.job, error, task.failed), worker=name)
        else:
            task.avoid = name
            agenda.again(task)

    def _bury(self, each: _Worker, agenda: Agenda) -> Iterator[Row]:
        each.process.join()
        reason = self._reason(each)
        if not each.ready:
            self._start_failures += 1
            if self._start_failures >= START_FAILURES:
                raise BatchError(
                    f"workers die before they can start: {reason}; "
                    "try fewer --workers, or nst-fast stylize on one of the pictures"
                )
        each.connection.close()
        self._sweep(each)
        self._workers[self._workers.index(each)] = self._start(each.number)
        certain = len(each.held) == 1 and each.ready
        for task in each.held.values():
            task.alone = True
            if certain:
                error = f"{task.job.content}: {reason}"
                yield from self._failed(task, each.name, error, False, agenda)
            else:
                agenda.again(task)

    def _reason(self, each: _Worker) -> str:
        if each.hung:
            return f"not done within {self._options.timeout:g} s"
        code = each.process.exitcode or 0
        told = each.broken or (f"signal {-code}" if code < 0 else f"exit code {code}")
        died = f"its worker process died ({told})"
        if code == KILLED:  # it is how Linux ends what asks for more memory than there is
            return f"{died}, most likely for want of memory: fewer --workers or a smaller --size"
        return died + memory_hint()

    # ------------------------------------------------------------------------------------- time

    def _time_left(self, each: _Worker) -> float:
        """Seconds that the first task of a worker still has."""
        if self._options.timeout is None or not (each.ready and each.held):
            return math.inf
        return each.since + self._options.timeout - monotonic()

    def _kill_hung(self) -> None:
        """Kill the workers whose time is up, but for those that have something to tell."""
        for each in self._workers:
            if self._time_left(each) <= 0 and not each.connection.poll():
                each.hung = True
                each.process.kill()
                each.process.join()

    # --------------------------------------------------------------------------- start and end

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        engine = of_worker(self._engine, number - 1, self._gpus)
        arguments = (theirs, engine, self._options.together, self._tag_of(number))
        process = self._context.Process(target=worker.main, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(number, process, ours)

    def _tag_of(self, number: int) -> str:
        return f"{self._tag}-{number}"

    def _sweep(self, each: _Worker) -> None:
        """Remove what a dead worker left half-written."""
        for folder in {folder for task in each.held.values() for folder in task.job.folders}:
            storage.sweep(folder, self._tag_of(each.number))

    def __enter__(self) -> Pool:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the workers: kindly where they have nothing to do, else by force."""
        for each in self._workers:
            if each.held:
                each.process.kill()
            else:
                self._send(each, None)
        deadline = monotonic() + 10.0
        for each in self._workers:
            each.process.join(max(0.0, deadline - monotonic()))
            if each.process.is_alive():
                each.process.kill()
                each.process.join()
            each.process.close()
            each.connection.close()
            self._sweep(each)
