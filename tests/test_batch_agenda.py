"""Whose turn it is, and sources that make their consumer wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count

import pytest
from batches import ENGINE, make_jobs

from nst_fast import StyleSettings
from nst_fast.batch import BatchOptions, Job, pool, stylize_many
from nst_fast.batch.agenda import Agenda, Task
from nst_fast.batch.source import Source


def job(name: str, after: str = "") -> Job:
    return Job(f"{name}.jpg", ("s.png",), name, StyleSettings(), after)


def agenda_of(*jobs: Job) -> Agenda:
    """One whose source has come as soon as it is asked for."""
    source = Source(jobs)
    genuine = source.take

    def take() -> Job | None:
        found = genuine()
        if found is None and not source.ended:
            assert source.bell.poll(30)
            found = genuine()
        return found

    source.take = take
    return Agenda(source)


def test_a_job_waits_for_the_one_that_it_starts_from():
    agenda = agenda_of(job("a"), job("b", after="a"), job("c", after="b"))
    assert agenda.next("one", True, ["one"]).job.output == "a"
    assert agenda.next("one", True, ["one"]) is None
    agenda.end("a", failed=False)
    assert agenda.next("one", True, ["one"]).job.output == "b"
    agenda.end("b", failed=True)
    last = agenda.next("one", True, ["one"])
    assert (last.job.output, last.job.settings.init) == ("c", "content")
    assert not agenda.done
    agenda.end("c", failed=False)
    assert agenda.done


def test_the_other_worker_runs_empty_for_what_died_at_the_first():
    """Both go on working meanwhile."""
    names = ["one", "two"]
    agenda = agenda_of(*(job(str(number)) for number in range(20)))
    poison = Task(job("poison"), failed=1, alone=True, avoid="one")
    agenda.again(poison)
    assert agenda.next("two", False, names) is None
    assert agenda.next("one", False, names).job.output == "0"
    assert agenda.next("two", True, names) is poison
    assert agenda.next("two", False, names).job.output == "1"


def test_what_failed_at_a_worker_goes_to_another_where_there_is_one():
    agenda = agenda_of(job("a"))
    task = agenda.next("one", True, ["one", "two"])
    task.avoid = "one"
    agenda.again(task)
    assert agenda.next("one", True, ["one", "two"]) is None
    assert agenda.next("two", True, ["one", "two"]) is task
    agenda.again(task)
    assert agenda.next("one", True, ["one"]) is task


# -------------------------------------------------------------------------------------- the source


def test_a_source_is_read_one_by_one_as_it_is_asked():
    read: list[int] = []
    with closing(Source(read.append(n) or job(str(n)) for n in count())) as source:
        for expected in range(5):
            while (came := source.take()) is None:
                assert source.bell.poll(30)
            assert came.output == str(expected)
            assert len(read) == expected + 1


def test_what_a_source_raises_is_raised_where_it_is_taken():
    def broken() -> Iterator[Job]:
        yield job("a")
        raise LookupError("the list is gone")

    with closing(Source(broken())) as source:
        assert source.take() is None
        assert source.bell.poll(30)
        assert source.take().output == "a"
        assert source.take() is None
        assert source.bell.poll(30)
        with pytest.raises(LookupError, match="the list is gone"):
            source.take()
        assert source.ended


def test_a_source_that_is_left_early_is_closed():
    closed = threading.Event()

    def endless() -> Iterator[Job]:
        try:
            while True:
                yield job("a")
        finally:
            closed.set()

    with closing(Source(endless())) as source:
        source.take()
        assert source.bell.poll(30)
    assert closed.wait(30)


def test_finished_pictures_do_not_wait_for_the_source(tmp_path):
    """The source brings its second job only once the first row has arrived."""
    first, second = make_jobs(tmp_path / "in", 2)
    arrived = threading.Event()

    def waiting() -> Iterator[Job]:
        yield first
        assert arrived.wait(120), "the row waits for the source, and the source for the row"
        yield second

    rows = stylize_many(waiting(), ENGINE, BatchOptions(workers=1))
    assert next(rows).output == first.output
    arrived.set()
    assert [row.status for row in rows] == ["done"]


@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_faults_are_noticed_while_the_source_waits(tmp_path, monkeypatch, fault):
    (first,) = make_jobs(tmp_path / "in", 1)
    ended = threading.Event()
    genuine = pool.Pool._hear

    def hear(self, each, message, agenda):
        if message[0] == "started":
            each.process.kill() if fault == "killed" else monkeypatch.setattr(
                pool, "monotonic", lambda: time.monotonic() + 1e6
            )
        yield from genuine(self, each, message, agenda)

    def waiting() -> Iterator[Job]:
        yield first
        assert ended.wait(120)

    monkeypatch.setattr(pool.Pool, "_hear", hear)
    options = BatchOptions(workers=1, retries=0, timeout=1000)
    rows = stylize_many(waiting(), ENGINE, options)
    row = next(rows)
    ended.set()
    assert row.status == "failed"
    assert ("not done within 1000 s" if fault == "hung" else "signal 9") in row.error
    assert list(rows) == []
