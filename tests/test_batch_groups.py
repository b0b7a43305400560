"""Pictures that a worker makes together: who goes with whom, and what becomes of each."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from batches import make_jobs
from hypothesis import given
from hypothesis import strategies as st
from stylizing import quick

from nst_fast import images
from nst_fast.batch import work, worker
from nst_fast.batch.jobs import Job
from nst_fast.errors import NonFiniteError

PATTERN = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def loaded(style: str = "s.png", steps: int = 2, content=None) -> work.Loaded:
    picture = images.load(PATTERN if content is None else content)
    job = Job("c.png", (style,), "o.png", quick(steps=steps))
    return work.Loaded(job, picture, (images.load(PATTERN),), {}, 0.0)


@given(
    kinds=st.lists(st.sampled_from([("a.png", 2), ("a.png", 3), ("b.png", 2)]), max_size=20),
    most=st.integers(1, 6),
)
def test_groups_keep_the_order_and_hold_what_is_alike(kinds, most):
    queue: Queue = Queue()
    for item in [*enumerate(loaded(*kind) for kind in kinds), None]:
        queue.put(item)
    groups = list(worker._groups(queue, most))
    assert [key for group in groups for key, _ in group] == list(range(len(kinds)))
    for group in groups:
        assert len(group) <= most
        assert len({kinds[key] for key, _ in group}) == 1
    for one, other in pairwise(groups):
        assert len(one) == most or kinds[one[0][0]] != kinds[other[0][0]]


def test_a_group_does_not_wait_for_what_does_not_come(monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 0.01)
    queue: Queue = Queue()
    queue.put((0, loaded()))
    assert [key for key, _ in next(worker._groups(queue, 8))] == [0]


def test_each_of_a_group_has_its_own_end(stylizer, content, style, monkeypatch):
    genuine = stylizer.stylize_together

    def one_fails(contents, *arguments, **options):
        results = genuine(contents, *arguments, **options)
        results[1] = NonFiniteError("step 2: the loss is not finite")
        return results

    monkeypatch.setattr(stylizer, "stylize_together", one_fails)
    made: Queue = Queue()
    told: list = []
    group = [(key, loaded(content=picture)) for key, picture in enumerate([content, style, style])]
    worker._make(stylizer, group, made, told.append)
    assert told == [("failed", 1, "step 2: the loss is not finite", True)]
    (first, a), (third, b) = made.get(), made.get()
    assert (first, third) == (0, 2)
    for result, picture in ((a, content), (b, style)):
        alone = work.make(stylizer, loaded(content=picture))
        assert np.array_equal(result.result.picture.pixels, alone.result.picture.pixels)
        assert result.row.loss == alone.row.loss


def test_what_nobody_expected_is_told_of_each(stylizer, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("no idea")

    monkeypatch.setattr(stylizer, "stylize_together", fail)
    told: list = []
    worker._make(stylizer, [(4, loaded()), (5, loaded())], Queue(), told.append)
    assert told == [("failed", key, "RuntimeError: no idea", False) for key in (4, 5)]


@pytest.mark.parametrize("part", ["_read", "_write"])
def test_a_worker_whose_thread_breaks_dies_and_says_why(tmp_path, part):
    """Else its other threads would wait for it, and the batch for them."""
    jobs = make_jobs(tmp_path / "in", 1)
    script = f"""
import sys
from nst_fast.batch import worker

def broken(*arguments):
    if {part!r} == "_read":
        arguments[0].recv()
    else:
        arguments[0].get()
    raise LookupError("no such thing")

worker.{part} = broken

from batches import ENGINE
from nst_fast import StyleSettings
from nst_fast.batch import BatchOptions, Job, stylize_many

if __name__ == "__main__":
    job = Job({jobs[0].content!r}, {jobs[0].styles!r}, {jobs[0].output!r},
              StyleSettings(size=32, steps=1))
    for row in stylize_many([job], ENGINE, BatchOptions(workers=1, retries=1)):
        print(row.attempts, row.error)
"""
    path = tmp_path / "run.py"
    path.write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, env=environment, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.stdout.startswith("2 "), done.stderr
    assert "its worker process died (LookupError: no such thing)" in done.stdout
