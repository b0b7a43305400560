"""BatchRunner: jobs against a journal; skips what is done, writes down what ends, and reports."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nst_fast.batch import report, resume, storage
from nst_fast.batch.jobs import Digests, Engine, Job, check
from nst_fast.batch.journal import Journal, Row
from nst_fast.batch.machine import Layout, gpus_of, worker_memory
from nst_fast.batch.pool import Pool, Watch, check_timeout
from nst_fast.batch.shapes import grouped
from nst_fast.errors import BatchError

JOURNAL, REPORT = "journal.jsonl", "report.html"


class Observer(Protocol):
    """Told what happens, in the runner's thread."""

    def begin(self, todo: int, done: int) -> None:
        """The run starts: pictures to make, and those that an earlier run made."""

    def started(self, worker: str, content: str) -> None:
        """A worker starts with a picture."""

    def ended(self, row: Row) -> None:
        """A picture is done or given up, and in the journal."""


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        done: pictures that this run made.
        failed: pictures that it gave up.
        skipped: pictures that were done before.
        left: pictures that it did not come to.
        seconds: that it took.
    """

    done: int
    failed: int
    skipped: int
    left: int
    seconds: float


# Makes jobs in its own way; the Watch is told who starts with what.
Rows = Generator[Row, None, None]
Execute = Callable[[Sequence[Job], Engine, str, Watch], Rows]


def local(workers: int | None = None, retries: int = 2, timeout: float | None = None) -> Execute:
    """Execution by worker processes of this machine; arguments as for ``stylize_many``."""
    check_timeout(timeout)

    def execute(jobs: Sequence[Job], engine: Engine, tag: str, watch: Watch) -> Rows:
        largest = max((job.settings for job in jobs), key=worker_memory)
        count = Layout.choose(
            workers=workers,
            threads=engine.threads,
            settings=largest,
            most=len(jobs),
            gpus=gpus_of(engine),
        ).workers
        frames = any(job.after for job in jobs)
        with Pool(engine, count, retries=retries, timeout=timeout, tag=tag, watch=watch) as pool:
            yield from pool.run(jobs if frames else grouped(jobs))

    return execute


class BatchRunner:
    """A batch that can be killed at any moment and run again until all of it is done.

    >>> jobs = [Job("a.jpg", ("style.jpg",), "out/a.png")]
    >>> BatchRunner(jobs, "out").run()                                    # doctest: +SKIP
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        journal: str | Path,
        *,
        engine: Engine | None = None,
        execute: Execute | None = None,
        max_errors: int | None = None,
        redo: bool = False,
        name: str = "",
    ) -> None:
        """Take and check the jobs; nothing is read or written yet.

        Args:
            jobs: every picture of the batch, done or not.
            journal: local folder of journal and report. Runs on other machines may share it where
                each has its own ``name``: what one has done the others skip.
            engine: how to compute; None for the defaults.
            execute: where; None for ``local``.
            max_errors: stop once more pictures than this have failed; None never stops.
            redo: make pictures again whose settings, styles or encoder have changed.
            name: of this part of the batch, in the names of its files.

        Raises:
            BatchError: an output cannot be written, is an input, or is that of another job.
        """
        self._jobs = list(jobs)
        check(self._jobs)
        self._folder = Path(journal)
        self._engine = engine or Engine()
        self._execute = execute or local()
        self._max_errors, self._redo = max_errors, redo
        part = f"-{name}" if name else ""
        self._journal = self._folder / JOURNAL.replace(".", f"{part}.")
        self.report = self._folder / REPORT.replace(".", f"{part}.")

    def plan(self) -> tuple[list[Job], int]:
        """The jobs that are still to do, with their digests and stamps, and how many are done.

        Raises:
            BatchError: a damaged journal, or changed settings.
        """
        digests = Digests(self._engine)
        stamps = storage.stamps(job.content for job in self._jobs)
        jobs = [
            replace(job, digest=digests.of(job), stamp=stamps.get(job.content, ""))
            for job in self._jobs
        ]
        before = resume.made(self._journals())
        redone = resume.redone(jobs, before)
        if redone and not self._redo:
            raise BatchError(
                f"{len(redone)} pictures, {redone[0].output} among them, were made with other "
                "settings, styles or another encoder: give --redo to make them again, or another "
                "--output"
            )
        standing = resume.standing(jobs, before)
        todo = [job for job in jobs if job.output not in standing]
        return todo, len(jobs) - len(todo)

    def _journals(self) -> list[Path]:
        """Those of all parts of the batch."""
        return sorted(self._folder.glob(JOURNAL.replace(".", "*.")))

    def run(self, observers: Sequence[Observer] = ()) -> Summary:
        """Make what is to do; returns when all has ended, or too many have failed.

        Raises:
            BatchError: as for ``plan``; another run has the journal; workers cannot start; no
                space is left. What is done stays done.
        """
        began = time.monotonic()
        with Journal(self._journal) as journal:
            todo, skipped = self.plan()
            tag = storage.owner_tag(str(self._journal))
            folders = {storage.parent(job.output) for job in self._jobs}
            for folder in folders:
                storage.sweep(folder, tag)
            for observer in observers:
                observer.begin(len(todo), skipped)
            counts = Counter[str]()
            try:
                self._work(todo, tag, journal, observers, counts)
            finally:
                for folder in folders:
                    storage.sweep(folder, tag)
                left = len(todo) - counts.total()
                report.write(self.report, self._journals(), self._jobs, left)
        took = time.monotonic() - began
        return Summary(counts["done"], counts["failed"], skipped, left, took)

    def _work(
        self,
        todo: Sequence[Job],
        tag: str,
        journal: Journal,
        observers: Sequence[Observer],
        counts: Counter[str],
    ) -> None:
        if not todo:
            return

        def watch(worker: str, content: str) -> None:
            for observer in observers:
                observer.started(worker, content)

        with closing(self._execute(todo, self._engine, tag, watch)) as ended:
            for row in ended:
                journal.append(row)
                counts[row.status] += 1
                for observer in observers:
                    observer.ended(row)
                if self._max_errors is not None and counts["failed"] > self._max_errors:
                    return
