"""Pictures of like shape next to each other: a worker then keeps its sessions and buffers."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import ExifTags, Image

from nst_fast import images
from nst_fast.batch import storage
from nst_fast.batch.jobs import Job

WINDOW = 64  # jobs that may change places
HEADER = 65536  # bytes of a remote file, which hold the size of nearly every picture
Shape = tuple[int, int]
UNKNOWN: Shape = (0, 0)


def probe(job: Job) -> Shape:
    """Width and height that the job's picture will have, by its header; ``UNKNOWN`` if need be."""
    try:
        with Image.open(_header(job.content), formats=images.READABLE) as i:
            # Not i.getexif(): a PNG's would decode the picture to see what comes after it. The
            # size of a TIFF is turned already.
            turned = Image.Image.getexif(i).get(ExifTags.Base.Orientation, 1) >= 5
            size = (i.height, i.width) if turned and i.format != "TIFF" else i.size
        return images.fit(size, job.settings.size or max(size))
    except Exception:  # the worker that decodes it says what is wrong
        return UNKNOWN


def _header(url: str) -> Path | io.BytesIO:
    if storage.is_remote(url):
        return io.BytesIO(storage.head(url, HEADER))
    images.check_input(Path(url), url)  # reading a pipe would never end
    return Path(url)


def grouped(jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs, with those of each window sorted by shape, the shape before the window first."""
    source, last = iter(jobs), UNKNOWN
    with ThreadPoolExecutor(8) as threads:
        while window := list(itertools.islice(source, WINDOW)):
            shapes = list(threads.map(probe, window))
            order = sorted(range(len(window)), key=lambda k: (shapes[k] != last, shapes[k]))
            last = shapes[order[-1]]
            yield from (window[k] for k in order)
