"""BatchRunner: jobs against a journal; skips what is done, writes down what ends, and reports."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nst_fast.batch import estimate, report, resume, storage
from nst_fast.batch.jobs import Digests, Job, check
from nst_fast.batch.journal import Journal, Row
from nst_fast.batch.machine import Layout
from nst_fast.batch.pool import Pool, Watch
from nst_fast.batch.shapes import grouped
from nst_fast.batch_options import BatchOptions
from nst_fast.config import EngineOptions
from nst_fast.errors import BatchError

JOURNAL, REPORT = "journal.jsonl", "report.html"
STATES = "states"  # folder of those whose outputs are on an object store


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


Rows = Generator[Row, None, None]


class Execute(Protocol):
    """Makes jobs in its own way."""

    def __call__(self, jobs: Sequence[Job], tag: str, watch: Watch) -> Rows:
        """Yield the row of each as it ends; ``tag`` is in the names of temporary files."""


class BatchRunner:
    """A batch that can be killed at any moment and run again until all of it is done.

    >>> jobs = [Job("a.jpg", ("style.jpg",), "out/a.png")]
    >>> BatchRunner(jobs, "out").run()                                    # doctest: +SKIP

    Attributes:
        report: where the report is written.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        journal: str | Path,
        *,
        engine: EngineOptions | None = None,
        options: BatchOptions | None = None,
    ) -> None:
        """Take and check the jobs, and connect to the cluster that is asked for.

        Nothing is read or written yet.

        Args:
            jobs: every picture of this part of the batch, done or not.
            journal: local folder of journal and report. Runs on other machines may share it where
                each has its own ``options.shard``: what one has done the others skip.
            engine: how to compute; None for the defaults.
            options: how to carry it out; None for the defaults.

        Raises:
            BatchError: an output cannot be written, is an input, or is that of another job; Ray is
                missing or cannot be reached.
        """
        self._jobs = list(jobs)
        check(self._jobs)
        self._folder = Path(journal)
        self._engine, self._options = engine or EngineOptions(), options or BatchOptions()
        self._execute = self._executor()
        shard = self._options.shard
        part = "" if shard == "1/1" else f"-{shard.replace('/', '-of-')}"
        self._journal = self._folder / JOURNAL.replace(".", f"{part}.")
        self.report = self._folder / REPORT.replace(".", f"{part}.")

    def _executor(self) -> Execute:
        if self._options.executor == "ray":
            _check_states(self._jobs)
            from nst_fast.batch.ray_executor import RayExecutor

            return RayExecutor(self._engine, self._options)
        return self._execute_here

    def _execute_here(self, jobs: Sequence[Job], tag: str, watch: Watch) -> Rows:
        layout = self.layout(jobs)
        engine = layout.engine(self._engine)
        frames = any(job.after for job in jobs)
        with Pool(engine, layout.workers, self._options, tag=tag, watch=watch) as pool:
            yield from pool.run(jobs if frames else grouped(jobs))

    def layout(self, jobs: Sequence[Job]) -> Layout:
        """Workers and threads for some of the jobs; raises ProviderError.

        Where states are saved, those for all of them: a run goes on with as many threads as before.
        """
        if not any(job.making.save_every for job in jobs):
            return Layout.choose(self._engine, self._options, jobs)
        layout = Layout.choose(self._engine, self._options, self._jobs)
        return replace(layout, workers=min(layout.workers, len(jobs)))

    def estimate(self, jobs: Sequence[Job]) -> float | None:
        """Seconds that some of the jobs will take here; see ``estimate.seconds``."""
        layout = self.layout(jobs)
        return estimate.seconds(jobs, layout.engine(self._engine), layout.workers)

    def plan(self) -> tuple[list[Job], int]:
        """The jobs that are still to do, with their digests and stamps, and how many are done.

        Raises:
            BatchError: a damaged journal, or changed settings.
        """
        digests = Digests(self._engine, here=self._options.executor == "local")
        stamps = storage.stamps(job.content for job in self._jobs)
        jobs = [
            replace(
                job,
                digest=digests.of(job),
                stamp=stamps.get(job.content, ""),
                state=self._state(job),
            )
            for job in self._jobs
        ]
        before = resume.known(self._journals())
        redone = resume.redone(jobs, before)
        if redone and not self._options.redo:
            raise BatchError(
                f"{len(redone)} pictures, {redone[0].output} among them, were made with other "
                "settings, styles, precision or versions, another encoder, or without what is "
                "asked for besides them: give --redo to make them again, or another --output"
            )
        standing = resume.standing(jobs, before)
        todo = [job for job in jobs if job.output not in standing]
        return todo, len(jobs) - len(todo)

    def _state(self, job: Job) -> str:
        """Where the state of a job is saved whose output is on an object store."""
        if job.state or not storage.is_remote(job.output):
            return job.state
        name = hashlib.sha256(job.output.encode()).hexdigest()[:16]
        return str(self._folder / STATES / f"{name}.state")

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
            folders = {folder for job in self._jobs for folder in job.folders}
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

        most = self._options.max_errors
        with closing(self._execute(todo, tag, watch)) as ended:
            for row in ended:
                journal.append(row)
                counts[row.status] += 1
                for observer in observers:
                    observer.ended(row)
                if most is not None and counts["failed"] > most:
                    return


def _check_states(jobs: Iterable[Job]) -> None:
    """Refuse to save states that no other machine would find."""
    for job in jobs:
        if job.making.save_every and storage.is_remote(job.output):
            raise BatchError(
                f"--save-every: {job.output} is on an object store, and with --executor ray states "
                "lie beside the outputs: name a folder that all machines share"
            )
