"""Pictures of like shape next to each other: a worker then keeps its sessions and buffers."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import ExifTags, Image

from nst_fast import images
from nst_fast.batch import storage
from nst_fast.batch.jobs import Job

WINDOW = 64  # jobs that may change places
HEADER = 65536  # bytes that hold the size of nearly every picture
Shape = tuple[int, int]
UNKNOWN: Shape = (0, 0)


def probe(job: Job) -> Shape:
    """Width and height that the job's picture will have, by its header; ``UNKNOWN`` if need be."""
    try:
        with Image.open(
            io.BytesIO(storage.head(job.content, HEADER)), formats=images.READABLE
        ) as i:
            turned = i.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            size = (i.height, i.width) if turned else i.size
        return images.fit(size, job.settings.size or max(size))
    except Exception:  # the worker that decodes it says what is wrong
        return UNKNOWN


def grouped(jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs, with those of each window sorted by shape, the shape before the window first."""
    source, last = iter(jobs), UNKNOWN
    with ThreadPoolExecutor(8) as threads:
        while window := list(itertools.islice(source, WINDOW)):
            shapes = list(threads.map(probe, window))
            order = sorted(range(len(window)), key=lambda k: (shapes[k] != last, shapes[k]))
            last = shapes[order[-1]]
            yield from (window[k] for k in order)
