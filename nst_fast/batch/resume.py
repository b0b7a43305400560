"""What earlier runs have made, and which of it still stands."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from nst_fast.batch import storage
from nst_fast.batch.jobs import Job
from nst_fast.batch.journal import rows
from nst_fast.errors import NstError


class Known(NamedTuple):
    """What a million rows can be remembered by; see Row."""

    finished: float
    done: bool
    digest: str
    length: int
    stamp: str
    content: str  # SHA-256
    besides: Mapping[str, int] = {}  # bytes of each file by its canonical name


def known(journals: Iterable[Path]) -> dict[str, Known]:
    """What is known of each output that is done, by its last row; raises BatchError.

    Outputs are keyed by ``storage.canonical``, as a rerun may spell the same folder otherwise.
    """
    last: dict[str, Known] = {}
    for row in itertools.chain.from_iterable(map(rows, journals)):
        output = storage.canonical(row.output)
        if output not in last or row.finished >= last[output].finished:
            done, content = row.status == "done", row.sha256.get("content", "")
            besides = {storage.canonical(url): size for url, size in row.besides.items()}
            last[output] = Known(
                row.finished, done, row.digest, row.length, row.stamp, content, besides
            )
    return {output: each for output, each in last.items() if each.done}


def redone(jobs: Iterable[Job], before: Mapping[str, Known]) -> list[Job]:
    """The jobs that were done with other settings, styles or another encoder, or without a file."""
    return [
        job
        for job in jobs
        if (each := before.get(storage.canonical(job.output)))
        and not (each.digest == job.digest and each.besides.keys() >= {*_besides(job)})
    ]


def standing(jobs: Sequence[Job], before: Mapping[str, Known]) -> set[str]:
    """The outputs that are whole, and of the settings and the content that their jobs have now.

    What is written besides them has to be whole, too. Contents are compared by their stamps, and
    read only where those differ. A frame stands only where the one that it starts from does not
    change; where that one failed, it started from its own content, and stands.
    """
    done = {job.output: each for job in jobs if (each := before.get(storage.canonical(job.output)))}
    sizes: dict[str, int] = {}
    for folder in {folder for job in jobs if job.output in done for folder in job.folders}:
        sizes |= storage.sizes(folder)
    changed = {job.output for job in redone(jobs, before)}
    whole = [
        job
        for job in jobs
        if job.output in done
        and job.output not in changed
        and done[job.output].length == sizes.get(storage.canonical(job.output))
        and all(done[job.output].besides[url] == sizes.get(url) for url in _besides(job))
    ]
    suspects = [job for job in whole if _differ(job.stamp, done[job.output].stamp)]
    with ThreadPoolExecutor(8) as threads:
        for job, sha256 in zip(suspects, threads.map(_hash, suspects), strict=True):
            if sha256 != done[job.output].content:
                changed.add(job.output)
    for job in jobs:
        if job.after in changed:
            changed.add(job.output)
    return {job.output for job in whole} - changed


def _besides(job: Job) -> Iterator[str]:
    """Canonical names of what is written besides the output."""
    return map(storage.canonical, job.files.values())


def _differ(now: str, then: str) -> bool:
    return bool(now and then) and now != then


def _hash(job: Job) -> str:
    """Of the content; "" where it cannot be read, which its worker then reports."""
    try:
        return hashlib.sha256(storage.read(job.content)).hexdigest()
    except NstError:
        return ""
