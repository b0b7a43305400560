"""Which picture is whose turn: fresh ones, those that failed, those that wait for another one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nst_fast.batch.jobs import Job
from nst_fast.batch.source import Source


@dataclass(eq=False)
class Task:
    """A job on its way.

    Attributes:
        job: what to make.
        failed: how often it has failed.
        alone: whether its worker may hold nothing else, as it may have killed the one before.
        avoid: name of the worker where it failed last.
    """

    job: Job
    failed: int = 0
    alone: bool = False
    avoid: str = ""


class Agenda:
    """What is to do, from a source and from what comes back."""

    def __init__(self, source: Source) -> None:
        """Start with what the source will bring."""
        self._source = source
        self._again: deque[Task] = deque()
        self._waiting: dict[str, list[Task]] = {}  # by the output that they wait for
        self._open: set[str] = set()  # outputs of tasks that have not ended
        self._given_up: set[str] = set()  # outputs of tasks that were

    @property
    def done(self) -> bool:
        """Whether every task has ended, and none will come."""
        return self._source.ended and not self._open

    def next(self, name: str, idle: bool, names: Sequence[str]) -> Task | None:
        """What a worker does next; None where there is nothing for it now.

        A task that runs alone has a worker that runs empty for it while the others go on.

        Args:
            name: of the worker.
            idle: whether it holds nothing.
            names: of all workers.
        """
        alone = next((task for task in self._again if task.alone), None)
        if alone is not None and name == _other(alone.avoid, names):
            return self._take(alone) if idle else None
        for task in self._again:
            if not task.alone and (task.avoid != name or len(names) == 1):
                return self._take(task)
        return self._fresh()

    def again(self, task: Task) -> None:
        """Do a task once more, after those that came back before it."""
        self._again.append(task)

    def end(self, output: str, failed: bool) -> None:
        """Let go of a task, and of those that waited for it."""
        self._open.discard(output)
        if failed:
            self._given_up.add(output)
        for follower in self._waiting.pop(output, []):
            follower.job = _from_content(follower.job) if failed else follower.job
            self._again.append(follower)

    def _take(self, task: Task) -> Task:
        self._again.remove(task)
        return task

    def _fresh(self) -> Task | None:
        while (job := self._source.take()) is not None:
            self._open.add(job.output)
            if job.after in self._given_up:
                return Task(_from_content(job))
            if job.after not in self._open:
                return Task(job)
            self._waiting.setdefault(job.after, []).append(Task(job))
        return None


def _other(avoid: str, names: Sequence[str]) -> str:
    """The first worker but for the one to avoid; that one where there is no other."""
    return next((name for name in names if name != avoid), avoid)


def _from_content(job: Job) -> Job:
    """The job where the picture that it should start from has failed."""
    return replace(job, settings=replace(job.settings, init="content"))
