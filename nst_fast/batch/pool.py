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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from types import TracebackType

from nst_fast.batch import storage, work, worker
from nst_fast.batch.jobs import Engine, Job
from nst_fast.batch.journal import Row
from nst_fast.batch.machine import Layout, gpus_of
from nst_fast.errors import BatchError, SettingsError

HELD = 2  # pictures or groups at a worker: one is being made, one is being read or written
START_FAILURES = 3  # workers in a row that die before they are ready
Watch = Callable[[str, str], None]  # name of a worker, content that it starts with


@dataclass(eq=False)
class _Task:
    """A job on its way."""

    job: Job
    failed: int = 0
    alone: bool = False
    avoid: str = ""


@dataclass(eq=False)
class _Worker:
    number: int
    process: SpawnProcess
    connection: Connection
    held: dict[int, _Task] = field(default_factory=dict)  # by key, in the order that they end in
    ready: bool = False
    since: float = 0.0  # when the first of them was first; `monotonic`
    hung: bool = False  # killed, as its time was up

    @property
    def name(self) -> str:
        """For the journal and the display."""
        return f"worker {self.number}"

    def take(self, key: int, task: _Task) -> None:
        """Hold a task; where it has no other, this one's time begins."""
        if not self.held:
            self.since = monotonic()
        self.held[key] = task

    def release(self, key: int) -> _Task:
        """Let go of a task that has ended; where it was the first, the next one's time begins."""
        if key == next(iter(self.held)):
            self.since = monotonic()
        return self.held.pop(key)

    def takes(self, task: _Task, others: bool) -> bool:
        """Whether this task may go here now; ``others``: there are other workers."""
        if task.alone and self.held:
            return False
        return not (others and task.avoid == self.name)


def stylize_many(
    jobs: Iterable[Job],
    engine: Engine | None = None,
    *,
    workers: int | None = None,
    retries: int = 2,
    timeout: float | None = None,
) -> Iterator[Row]:
    """Make pictures in worker processes; yields each one's row as it ends, in no fixed order.

    Jobs are taken from the iterable as workers become free. Close the iterator to stop early. In a
    script, call it below ``if __name__ == "__main__":``, as the workers import the script.

    Args:
        jobs: what to make.
        engine: how; None for the defaults, with threads to suit the machine.
        workers: processes; None for as many as suit the machine.
        retries: how often a picture is tried again that failed for no lasting reason, or whose
            worker died.
        timeout: seconds after which a picture's worker is killed; None: however long it takes.

    Raises:
        BatchError: workers cannot start, or an output has no space left.
        SettingsError: a number is out of range.
    """
    threads, engine = engine.threads if engine else None, engine or Engine()
    layout = Layout.choose(workers=workers, threads=threads, gpus=gpus_of(engine))
    engine = replace(engine, threads=layout.threads)
    tag = secrets.token_hex(6)
    with Pool(engine, layout.workers, retries=retries, timeout=timeout, tag=tag) as pool:
        yield from pool.run(jobs)


def _from_content(job: Job) -> Job:
    """The job where the picture that it should start from has failed."""
    return replace(job, settings=replace(job.settings, init="content"))


def check_timeout(timeout: float | None) -> None:
    """Refuse seconds that are not above 0; raises SettingsError."""
    if timeout is not None and not timeout > 0:
        raise SettingsError(f"timeout must be above 0 seconds, not {timeout}")


class Pool:
    """Worker processes; use it as a context manager, which ends them."""

    def __init__(
        self,
        engine: Engine,
        workers: int,
        *,
        retries: int,
        tag: str,
        timeout: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Start the processes.

        Args:
            engine: of every worker.
            workers: how many.
            retries: attempts after the first.
            tag: of temporary files; see ``storage.write``.
            timeout: of a picture in seconds, from when no other is before it at its worker.
            watch: told when a worker starts with a picture.

        Raises:
            SettingsError: ``timeout`` is not above 0.
        """
        check_timeout(timeout)
        self._gpus = gpus_of(engine)
        self._engine, self._retries, self._tag, self._timeout = engine, retries, tag, timeout
        self._watch = watch or (lambda worker, content: None)
        self._context = multiprocessing.get_context("spawn")
        self._keys = itertools.count()
        self._again: deque[_Task] = deque()
        self._waiting: dict[str, list[_Task]] = {}  # by the output that they wait for
        self._open: set[str] = set()  # outputs of tasks that have not ended
        self._given_up: set[str] = set()  # outputs of tasks that were given up
        self._start_failures = 0
        self._workers = [self._start(number + 1) for number in range(workers)]

    def run(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """Make pictures; see :func:`stylize_many`."""
        source = iter(jobs)
        while True:
            self._dispatch(source)
            if not self._open:
                return
            connections = [w.connection for w in self._workers]
            patience = max(0.0, min(map(self._time_left, self._workers)))
            wait(
                [*connections, *(w.process.sentinel for w in self._workers)],
                None if math.isinf(patience) else patience,
            )
            self._kill_hung()
            for each in list(self._workers):
                yield from self._listen(each)

    # ------------------------------------------------------------------------------- giving out

    def _dispatch(self, source: Iterator[Job]) -> None:
        """Fill the workers, those with least to do first."""
        held = HELD * self._engine.together
        for _ in range(held):
            for each in sorted(self._workers, key=lambda w: len(w.held)):
                if len(each.held) < held and (task := self._next(each, source)):
                    key = next(self._keys)
                    each.take(key, task)
                    self._send(each, (key, task.job))

    def _send(self, each: _Worker, message: object) -> None:
        # Where it has just died, _listen finds that out, and gives its tasks to another.
        with contextlib.suppress(OSError):
            each.connection.send(message)

    def _next(self, each: _Worker, source: Iterator[Job]) -> _Task | None:
        others = len(self._workers) > 1
        if any(held.alone for held in each.held.values()):
            return None
        for task in self._again:
            if each.takes(task, others):
                self._again.remove(task)
                return task
        if any(each is self._runs_empty_for(task) for task in self._again if task.alone):
            return None
        for job in source:
            self._open.add(job.output)
            if job.after in self._given_up:
                return _Task(_from_content(job))
            if job.after not in self._open:
                return _Task(job)
            self._waiting.setdefault(job.after, []).append(_Task(job))
        return None

    def _runs_empty_for(self, task: _Task) -> _Worker:
        """The worker that gets nothing else, so that it can take a task that runs alone."""
        first, *others = self._workers
        return others[0] if others and task.avoid == first.name else first

    # -------------------------------------------------------------------------------- listening

    def _listen(self, each: _Worker) -> Iterator[Row]:
        """What a worker has told since; a new process takes its place where it has died."""
        alive = each.process.is_alive()
        try:
            while each.connection.poll():
                yield from self._hear(each, each.connection.recv())
        except (EOFError, OSError):
            alive = False
        if not alive:
            yield from self._bury(each)

    def _hear(self, each: _Worker, message: worker.Message) -> Iterator[Row]:
        match message:
            case ("ready",):
                each.ready, each.since, self._start_failures = True, monotonic(), 0
            case ("started", key):
                self._watch(each.name, each.held[key].job.content)
            case ("done", key, row):
                task = each.release(key)
                yield self._end(task, replace(row, attempts=task.failed + 1, worker=each.name))
            case ("failed", key, error, final):
                yield from self._failed(each.release(key), each.name, error, final)
            case ("stop", error):
                raise BatchError(error)

    def _failed(self, task: _Task, name: str, error: str, final: bool) -> Iterator[Row]:
        task.failed += 1
        if final or task.failed > self._retries:
            yield self._end(task, replace(work.failure(task.job, error, task.failed), worker=name))
        else:
            task.avoid = name
            self._again.append(task)

    def _end(self, task: _Task, row: Row) -> Row:
        """Let go of a task, and of those that waited for it."""
        self._open.discard(row.output)
        failed = row.status == "failed"
        if failed:
            self._given_up.add(row.output)
        for follower in self._waiting.pop(row.output, []):
            follower.job = _from_content(follower.job) if failed else follower.job
            self._again.append(follower)
        return row

    def _bury(self, each: _Worker) -> Iterator[Row]:
        each.process.join()
        code = each.process.exitcode or 0
        if not each.ready:
            self._start_failures += 1
            if self._start_failures >= START_FAILURES:
                raise BatchError(
                    f"workers die before they can start (exit code {code}); "
                    "try fewer --workers, or nst-fast stylize on one of the pictures"
                )
        each.connection.close()
        self._sweep(each, each.held.values())
        self._workers[self._workers.index(each)] = self._start(each.number)
        certain = len(each.held) == 1 and each.ready
        for task in each.held.values():
            task.alone = True
            if certain:
                error = f"{task.job.content}: {self._reason(each, code)}"
                yield from self._failed(task, each.name, error, final=False)
            else:
                self._again.append(task)

    def _reason(self, each: _Worker, code: int) -> str:
        if each.hung:
            return f"not done within {self._timeout:g} s"
        died = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its worker process died ({died})"

    # ------------------------------------------------------------------------------------- time

    def _time_left(self, each: _Worker) -> float:
        """Seconds that the first task of a worker still has."""
        if self._timeout is None or not (each.ready and each.held):
            return math.inf
        return each.since + self._timeout - monotonic()

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
        engine = self._engine.of_worker(number - 1, self._gpus)
        arguments = (theirs, engine, self._tag_of(number))
        process = self._context.Process(target=worker.main, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(number, process, ours)

    def _tag_of(self, number: int) -> str:
        return f"{self._tag}-{number}"

    def _sweep(self, each: _Worker, tasks: Iterable[_Task]) -> None:
        """Remove what a dead worker left half-written."""
        for folder in {storage.parent(task.job.output) for task in tasks}:
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
            if self._open:
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
            self._sweep(each, each.held.values())
